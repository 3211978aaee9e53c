"""CONTRACT.md line by line: what the vendor's files, pages and captures show, the sandbox does.

The vendor's WSDLs and schemas are read where they stand, beside the project.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import zeep
from lxml import etree
from zeep.helpers import serialize_object

from sandbox import Sandbox
from sandbox.pytest_plugin import PostbackEndpoint
from tests.contract.sandbox_peers import (
    DATA,
    INBOUND_TEXT,
    SERVICE,
    SOAP_11,
    SOAP_12,
    body_of,
    fault_of,
    post_soap,
    soap_service,
    vendor_file,
)

XSD = "{http://www.w3.org/2001/XMLSchema}"
WSDL = "{http://schemas.xmlsoap.org/wsdl/}"
WSDL_SOAP_12 = "{http://schemas.xmlsoap.org/wsdl/soap12/}"
VENDOR = {"1.0": "1.0", "1.1": "1.1-latest"}
OPERATIONS = ["CreateSubscription", "QuerySubscriptions", "GetSubscription", "UpdateSubscription", "DeleteSubscription"]
TIMES = ["Created", "Modified", "FinishTime", "AnswerTime", "LastModified"]
EVERYTHING = {
    "Enabled": True,
    "NonStrictSsl": True,
    "Endpoint": "http://localhost/x",
    "NotificationFormat": "JSON",
    "TriggerEvent": "OUTBOUND_TEXT_FINISHED",
    "ExpiresAt": 1893456000,
    "SubscriptionFilter": {
        "BroadcastId": 123,
        "BatchId": 456,
        "FromNumber": "67076",
        "ToNumber": "13105551212",
        "Inbound": False,
    },
}


@pytest.fixture
def service(sandbox: Sandbox) -> Iterator[Any]:
    """The Subscription port of API 1.1."""
    with soap_service(sandbox) as service:
        yield service


def served(sandbox: Sandbox, version: str, name: str) -> Any:
    """A file of the contract as the sandbox serves it."""
    answer = requests.get(f"{sandbox.url}/api/{version}/wsdl/{name}", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/xml; charset=utf-8"
    return etree.fromstring(answer.content)


def vendor(version: str, name: str) -> Any:
    """The vendor's file of that name."""
    return etree.parse(vendor_file("wsdl", VENDOR[version], name)).getroot()


def vendor_schema(version: str) -> etree.XMLSchema:
    """The vendor's schema of an API version."""
    return etree.XMLSchema(etree.parse(vendor_file("wsdl", VENDOR[version], "callfire-service.xsd")))


# Section 1: addresses and namespaces


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_wsdl_names_what_the_vendors_names(sandbox: Sandbox, version: str) -> None:
    """Target namespace, service, ports in order with their bindings, actions and message names."""

    def outline(root: Any) -> dict[str, Any]:
        binding = root.find(f"{WSDL}binding[@name='SubscriptionServiceBinding']")
        return {
            "target": root.get("targetNamespace"),
            "import": [(found.get("namespace"), found.get("location")) for found in root.iter(f"{WSDL}import")],
            "service": [found.get("name") for found in root.iter(f"{WSDL}service")],
            "ports": [(found.get("name"), found.get("binding")) for found in root.iter(f"{WSDL}port")],
            "transport": binding.find(f"{WSDL_SOAP_12}binding").get("transport"),
            "use": {found.get("use") for found in binding.iter(f"{WSDL_SOAP_12}body")},
            "style": [found.get("style") for found in binding.iter(f"{WSDL_SOAP_12}operation")],
            "actions": [found.get("soapAction") for found in binding.iter(f"{WSDL_SOAP_12}operation")],
            "messages": [found.get("name") for found in binding.iter(f"{WSDL}input", f"{WSDL}output", f"{WSDL}fault")],
        }

    name = "callfire-service-http-soap12.wsdl"
    mine = outline(served(sandbox, version, name))
    assert mine == outline(vendor(version, name))
    assert mine["ports"][1][0] == "SubscriptionServicePort"
    assert mine["actions"][0] == "http://api.callfire.com/service/wsdl/SubscriptionServicePortType/CreateSubscription"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_wsdls_addresses_are_this_servers(sandbox: Sandbox, version: str) -> None:
    """By whatever name it was asked for; the path is the vendor's."""
    vendors = [
        found.get("location")
        for found in vendor(version, "callfire-service-http-soap12.wsdl").iter(f"{WSDL_SOAP_12}address")
    ]
    for url in (sandbox.url, sandbox.url.replace("127.0.0.1", "localhost")):
        answer = requests.get(f"{url}/api/{version}/wsdl/callfire-service-http-soap12.wsdl", timeout=10)
        mine = [found.get("location") for found in etree.fromstring(answer.content).iter(f"{WSDL_SOAP_12}address")]
        assert mine == [address.replace("https://www.callfire.com", url) for address in vendors]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_wsdl_imports_as_the_vendors_does(sandbox: Sandbox, version: str) -> None:
    """By relative path, down to the annotations' schema; messages and port type are the vendor's."""
    mine, theirs = served(sandbox, version, "callfire-service.wsdl"), vendor(version, "callfire-service.wsdl")
    assert mine.get("targetNamespace") == theirs.get("targetNamespace")
    assert mine.find(f".//{XSD}import").attrib == theirs.find(f".//{XSD}import").attrib
    for operation in OPERATIONS:
        path = f".//{WSDL}portType[@name='SubscriptionServicePortType']/{WSDL}operation[@name='{operation}']"
        parts = [
            [(part.tag, dict(part.attrib)) for part in root.find(path) if part.tag != f"{WSDL}documentation"]
            for root in (mine, theirs)
        ]
        assert parts[0] == parts[1]
    for name in ("callfire-service.xsd", "callfire-data.xsd"):
        mine, theirs = served(sandbox, version, name), vendor(version, name)
        assert mine.get("targetNamespace") == theirs.get("targetNamespace")
        assert mine.find(f"{XSD}import").attrib == theirs.find(f"{XSD}import").attrib
    last = "callfire-ann.xsd"
    assert served(sandbox, version, last).get("targetNamespace") == vendor(version, last).get("targetNamespace")


def declared(root: Any, kind: str, name: str) -> list[Any]:
    """What a schema says about an element or type: names, types, occurrence, defaults, enumerations and patterns."""

    def local(text: str | None) -> str | None:
        return text.rpartition(":")[2] if text else text

    node = root.find(f"{XSD}{kind}[@name='{name}']")
    return [
        (
            etree.QName(found).localname,
            found.get("name") or local(found.get("ref")),
            local(found.get("type")),
            found.get("minOccurs"),
            found.get("maxOccurs"),
            found.get("default"),
            found.get("value"),
        )
        for found in node.iter(f"{XSD}element", f"{XSD}attribute", f"{XSD}enumeration", f"{XSD}pattern")
    ]


@pytest.mark.parametrize(
    ("version", "file", "kind", "name"),
    [
        *[
            (version, "callfire-data.xsd", kind, name)
            for version in ("1.0", "1.1")
            for kind, name in [
                ("element", "Subscription"),
                ("simpleType", "PhoneNumber"),
                ("simpleType", "NotificationFormat"),
            ]
        ],
        ("1.1", "callfire-data.xsd", "simpleType", "SubscriptionTriggerEvent"),
        *[
            ("1.1", "callfire-service.xsd", kind, name)
            for kind, name in [
                ("simpleType", "FaultCode"),
                ("element", "ServiceFaultInfo"),
                ("complexType", "IdRequest"),
                ("complexType", "Query"),
                ("complexType", "SubscriptionRequest"),
                ("element", "CreatedId"),
                *[("element", operation) for operation in OPERATIONS],
            ]
        ],
    ],
)
def test_the_schema_declares_what_the_vendors_declares(
    sandbox: Sandbox, version: str, file: str, kind: str, name: str
) -> None:
    """The same fields in the same order with the same types, defaults, values and patterns."""
    assert declared(served(sandbox, version, file), kind, name) == declared(vendor(version, file), kind, name)


def test_a_hard_coded_first_port_has_no_subscription_operation(sandbox: Sandbox) -> None:
    """As with CallFire, whose first port is Broadcast (section 4)."""
    client = zeep.Client(sandbox.wsdl)
    assert next(iter(client.wsdl.services["CallFireApi"].ports)) == "BroadcastServicePort"
    with pytest.raises(AttributeError):
        client.service.CreateSubscription(Subscription={})


# Section 2: operations


@pytest.mark.parametrize("wsdl", [None, "1.1-2014", "1.1-latest"])
def test_a_subscription_lives_through_the_five_operations(sandbox: Sandbox, wsdl: str | None) -> None:
    """With a client made from the served WSDL, and with ones made from the vendor's files."""
    path = wsdl and str(vendor_file("wsdl", wsdl, "callfire-service-http-soap12.wsdl"))
    with soap_service(sandbox, wsdl=path) as service:
        fields = {"Endpoint": "http://localhost/x", "TriggerEvent": INBOUND_TEXT}
        ident = service.CreateSubscription(Subscription=fields)
        assert isinstance(ident, int)
        assert service.GetSubscription(ident).NotificationFormat == "XML"
        assert service.UpdateSubscription(Subscription={"id": ident, "Enabled": False}) is None
        found = service.QuerySubscriptions()
        assert (found.TotalResults, found.Subscription[0].id, found.Subscription[0].Enabled) == (1, ident, False)
        assert service.DeleteSubscription(ident) is None
        assert service.QuerySubscriptions().Subscription == []


def test_api_1_0_knows_no_trigger(sandbox: Sandbox, postback_endpoint: PostbackEndpoint) -> None:
    """A subscription made through it is told about every kind of event; through 1.1 it has no particular trigger."""
    vendors = str(vendor_file("wsdl", "1.0", "callfire-service-http-soap12.wsdl"))
    with soap_service(sandbox, version="1.0", wsdl=vendors) as old, soap_service(sandbox) as new:
        ident = old.CreateSubscription(Subscription={"Endpoint": postback_endpoint.url})
        assert old.GetSubscription(ident).Endpoint == postback_endpoint.url
        assert new.GetSubscription(ident).TriggerEvent == "UNDEFINED_EVENT"
    sandbox.send_text("in")
    sandbox.send_text("out", inbound=False)
    sandbox.make_call()
    sandbox.run_campaign("STARTED")
    roots = [etree.QName(etree.fromstring(postback_endpoint.take().body)).localname for _ in range(4)]
    assert roots == ["TextNotification", "TextNotification", "CallFinished", "BroadcastNotification"]


def test_all_fields_come_back_as_they_were_given(sandbox: Sandbox, service: Any) -> None:
    """None is lost, none is changed."""
    ident = service.CreateSubscription(Subscription=EVERYTHING)
    assert serialize_object(service.GetSubscription(ident), dict) == EVERYTHING | {"id": ident}


def test_update_leaves_what_it_does_not_mention(sandbox: Sandbox, service: Any) -> None:
    """Each field can be changed alone."""
    ident = service.CreateSubscription(Subscription=EVERYTHING)
    changes = {
        "Enabled": False,
        "NonStrictSsl": False,
        "Endpoint": "https://localhost/y",
        "NotificationFormat": "SOAP",
        "TriggerEvent": "CAMPAIGN_STARTED",
        "ExpiresAt": 5,
    }
    expected = EVERYTHING | {"id": ident}
    for name, value in changes.items():
        service.UpdateSubscription(Subscription={"id": ident, name: value})
        expected |= {name: value}
        assert serialize_object(service.GetSubscription(ident), dict) == expected


def test_what_an_update_does_to_a_filter_can_be_switched(sandbox: Sandbox, service: Any) -> None:
    """Whether CallFire clears the filter fields that are left out is not known."""
    ident = service.CreateSubscription(Subscription=EVERYTHING)
    change = {"id": ident, "SubscriptionFilter": {"ToNumber": "15555550100"}}
    service.UpdateSubscription(Subscription=change)
    assert service.GetSubscription(ident).SubscriptionFilter.FromNumber == "67076"
    sandbox.set_quirks(update_replaces_filter=True)
    service.UpdateSubscription(Subscription=change)
    found = service.GetSubscription(ident).SubscriptionFilter
    assert (found.FromNumber, found.ToNumber) == (None, "15555550100")


def test_queries_page_with_the_vendors_defaults(sandbox: Sandbox, service: Any) -> None:
    """1000 at once unless fewer are asked for, and never more."""
    sandbox.plant({"subscriptions": [{"endpoint": "http://h/", "trigger_event": INBOUND_TEXT}] * 1200})
    assert len(service.QuerySubscriptions().Subscription) == 1000
    assert len(service.QuerySubscriptions(MaxResults=5000).Subscription) == 1000
    page = service.QuerySubscriptions(MaxResults=3, FirstResult=1198)
    assert (page.TotalResults, len(page.Subscription)) == (1200, 2)
    empty = body_of(
        post_soap(sandbox, "<svc:QuerySubscriptions><svc:MaxResults/><svc:FirstResult/></svc:QuerySubscriptions>")
    )
    assert len(empty.findall(f"{{{DATA}}}Subscription")) == 1000


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_every_answer_is_valid_by_the_vendors_schema(sandbox: Sandbox, version: str) -> None:
    """Created id, subscription, query result and fault detail, also for subscriptions of the other version."""
    schema = vendor_schema(version)
    for trigger, form, more in itertools.product(
        ("UNDEFINED_EVENT", INBOUND_TEXT), ("XML", "LEGACY"), ({}, {"non_strict_ssl": True, "expires_at": 7})
    ):
        sandbox.create_subscription(endpoint="http://h/", trigger_event=trigger, notification_format=form, **more)
    sandbox.create_subscription(
        endpoint="a@example.com",
        notification_format="EMAIL",
        trigger_event=INBOUND_TEXT,
        filter={"inbound": True, "batch_id": 3},
    )
    trigger = "" if version == "1.0" else f"<data:TriggerEvent>{INBOUND_TEXT}</data:TriggerEvent>"
    requests_ = [
        f"<svc:CreateSubscription><data:Subscription><data:Endpoint>http://h/</data:Endpoint>{trigger}</data:Subscription></svc:CreateSubscription>",
        "<svc:QuerySubscriptions/>",
        *[
            f"<svc:GetSubscription><svc:Id>{found['id']}</svc:Id></svc:GetSubscription>"
            for found in sandbox.subscriptions()
        ],
    ]
    for content in requests_:
        answer = post_soap(sandbox, content, version=version)
        assert answer.status_code == 200, answer.text
        schema.assertValid(body_of(answer))
    fault = etree.fromstring(
        post_soap(sandbox, "<svc:GetSubscription><svc:Id>1</svc:Id></svc:GetSubscription>", version=version).content
    )
    schema.assertValid(fault.find(f".//{{{SERVICE}}}ServiceFaultInfo"))


def test_create_and_query_answer_in_the_documented_elements(sandbox: Sandbox) -> None:
    """CreatedId and Subscription stand directly in the Body; update and delete leave it empty."""
    create = f"<svc:CreateSubscription><data:Subscription><data:Endpoint>http://h/</data:Endpoint><data:NotificationFormat/><data:TriggerEvent>{INBOUND_TEXT}</data:TriggerEvent></data:Subscription></svc:CreateSubscription>"
    created = body_of(post_soap(sandbox, create))
    assert created.tag == f"{{{SERVICE}}}CreatedId"
    got = body_of(post_soap(sandbox, f"<svc:GetSubscription><svc:Id>{created.text}</svc:Id></svc:GetSubscription>"))
    assert (got.tag, got.get("id")) == (f"{{{DATA}}}Subscription", created.text)
    assert got.findtext(f"{{{DATA}}}NotificationFormat") == "XML"
    update = f'<svc:UpdateSubscription><data:Subscription id="{created.text}"/></svc:UpdateSubscription>'
    assert body_of(post_soap(sandbox, update)) is None
    assert (
        body_of(post_soap(sandbox, f"<svc:DeleteSubscription><svc:Id>{created.text}</svc:Id></svc:DeleteSubscription>"))
        is None
    )


def test_a_repeated_request_id_returns_the_first_answer(sandbox: Sandbox, service: Any) -> None:
    """Even of a subscription deleted since; and not at all when switched off, as it is unproven."""
    fields = {"Endpoint": "http://h/", "TriggerEvent": INBOUND_TEXT}
    first = service.CreateSubscription(RequestId="urn:1", Subscription=fields)
    assert service.CreateSubscription(RequestId="urn:1", Subscription=fields) == first
    assert service.CreateSubscription(RequestId="urn:2", Subscription=fields) != first
    service.DeleteSubscription(first)
    assert service.CreateSubscription(RequestId="urn:1", Subscription=fields) == first
    sandbox.set_quirks(dedupe_request_ids=False)
    assert service.CreateSubscription(RequestId="urn:1", Subscription=fields) != first


def test_accounts_never_see_each_other(sandbox: Sandbox) -> None:
    """Neither in a query nor by id, and events of one are told to its own subscriptions alone."""
    sandbox.add_account("other", "secret")
    fields = {"Endpoint": "http://127.0.0.1:1/", "TriggerEvent": INBOUND_TEXT}
    with soap_service(sandbox) as mine, soap_service(sandbox, login="other", password="secret") as theirs:
        ident = mine.CreateSubscription(Subscription=fields)
        assert theirs.QuerySubscriptions().TotalResults == 0
        for call in (theirs.GetSubscription, theirs.DeleteSubscription):
            with pytest.raises(zeep.exceptions.Fault, match=f"subscription {ident} not found"):
                call(ident)
        with pytest.raises(zeep.exceptions.Fault, match="not found"):
            theirs.UpdateSubscription(Subscription={"id": ident, "Enabled": False})
        second = theirs.CreateSubscription(RequestId="urn:1", Subscription=fields)
        assert mine.CreateSubscription(RequestId="urn:1", Subscription=fields) != second
    text = sandbox.send_text("hello", account="other")
    assert len(text["postbacks"]) == 1
    assert sandbox.wait_for_postback()["subscription_id"] == str(second)


def test_the_10001st_subscription_is_refused(sandbox: Sandbox, service: Any) -> None:
    """The account's limit; other accounts have their own."""
    fields = {"endpoint": "http://h/", "trigger_event": INBOUND_TEXT}
    sandbox.plant({"subscriptions": [fields] * 10_000})
    one_more = {"Endpoint": "http://h/", "TriggerEvent": INBOUND_TEXT}
    with pytest.raises(zeep.exceptions.Fault, match="10000 subscriptions, which is the limit"):
        service.CreateSubscription(Subscription=one_more)
    last = service.QuerySubscriptions(MaxResults=1, FirstResult=9999)
    assert (last.TotalResults, len(last.Subscription)) == (10_000, 1)
    sandbox.add_account("other", "secret")
    with soap_service(sandbox, login="other", password="secret") as other:
        assert isinstance(other.CreateSubscription(Subscription=one_more), int)


# Section 3: faults


@pytest.mark.parametrize("code", ["BAD_REQUEST", "FORBIDDEN", "NOT_FOUND", "UNAVAILABLE", "TIMEOUT", "NOT_IMPLEMENTED"])
def test_every_fault_code_is_valid_by_the_vendors_schema(sandbox: Sandbox, code: str) -> None:
    """As trouble on demand, for whatever the sandbox does not do by itself."""
    sandbox.trouble("soap-fault", fault=code, message="on demand")
    answer = post_soap(sandbox, "<svc:QuerySubscriptions/>")
    assert fault_of(answer) == (code, "on demand")
    info = etree.fromstring(answer.content).find(f".//{{{SERVICE}}}ServiceFaultInfo")
    vendor_schema("1.1").assertValid(info)


@pytest.mark.parametrize("envelope", [SOAP_11, SOAP_12])
@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ("<svc:GetSubscription><svc:Id>1</svc:Id></svc:GetSubscription>", "NOT_FOUND", "subscription 1 not found"),
        (
            "<svc:DeleteSubscription><svc:Id>1</svc:Id></svc:DeleteSubscription>",
            "NOT_FOUND",
            "subscription 1 not found",
        ),
        (
            "<svc:DeleteSubscription><svc:Id/></svc:DeleteSubscription>",
            "BAD_REQUEST",
            "Element 'Id': '' is not a valid value",
        ),
        (
            '<svc:UpdateSubscription><data:Subscription id="1"/></svc:UpdateSubscription>',
            "NOT_FOUND",
            "subscription 1 not found",
        ),
        ("<svc:UpdateSubscription><data:Subscription/></svc:UpdateSubscription>", None, None),
        ("<svc:CreateSubscription/>", "BAD_REQUEST", "Missing child element"),
        (
            "<svc:CreateSubscription><data:Subscription/></svc:CreateSubscription>",
            "BAD_REQUEST",
            "Endpoint is required",
        ),
        (
            "<svc:CreateSubscription><data:Subscription><data:Endpoint>http://h/</data:Endpoint></data:Subscription></svc:CreateSubscription>",
            "BAD_REQUEST",
            "TriggerEvent is required",
        ),
        (
            "<svc:CreateSubscription><data:Subscription><data:Endpoint>http://h/</data:Endpoint><data:TriggerEvent>TEXT</data:TriggerEvent></data:Subscription></svc:CreateSubscription>",
            "BAD_REQUEST",
            "TriggerEvent",
        ),
        (
            "<svc:CreateSubscription><data:Subscription><data:EndPoint>http://h/</data:EndPoint></data:Subscription></svc:CreateSubscription>",
            "BAD_REQUEST",
            "Element 'EndPoint': This element is not expected",
        ),
        (
            "<svc:CreateSubscription><data:Subscription><data:SubscriptionFilter><data:ToNumber>67076:KEYWORD</data:ToNumber></data:SubscriptionFilter></data:Subscription></svc:CreateSubscription>",
            "BAD_REQUEST",
            "67076:KEYWORD",
        ),
        (
            "<svc:QuerySubscriptions><svc:MaxResults>-1</svc:MaxResults></svc:QuerySubscriptions>",
            "BAD_REQUEST",
            "must not be negative",
        ),
        ("<svc:createSubscription/>", "NOT_IMPLEMENTED", "no operation"),
        ("<svc:SendText/>", "NOT_IMPLEMENTED", "no operation"),
    ],
)
def test_what_is_wrong_is_a_fault_that_says_so(
    sandbox: Sandbox, envelope: str, content: str, code: str | None, message: str | None
) -> None:
    """In the caller's version of SOAP, with the code of ServiceFaultInfo; an update without id has no detail."""
    answer = post_soap(sandbox, content, envelope=envelope)
    found_code, found_message = fault_of(answer)
    assert answer.status_code == 500
    assert body_of(answer).tag == f"{{{envelope}}}Fault"
    assert found_code == code
    assert (found_message is None) == (message is None)
    assert message is None or message in (found_message or "")
    assert sandbox.subscriptions() == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not XML"),
        (b"{}", "not XML"),
        (b"<a/>", "no SOAP envelope"),
        (b'<Envelope xmlns="urn:x"><Body/></Envelope>', "no SOAP envelope"),
        (f'<e:Envelope xmlns:e="{SOAP_12}"><e:Body/></e:Envelope>'.encode(), "exactly one element"),
        (
            f'<!DOCTYPE a [<!ENTITY b "c">]><e:Envelope xmlns:e="{SOAP_12}"><e:Body>&b;</e:Body></e:Envelope>'.encode(),
            "document type declaration",
        ),
    ],
)
def test_what_is_no_soap_is_a_fault_too(sandbox: Sandbox, body: bytes, message: str) -> None:
    """Named, and never a server error of another kind."""
    auth = (sandbox.login, sandbox.password)
    answer = requests.post(f"{sandbox.url}/api/1.1/soap12/subscription", data=body, auth=auth, timeout=10)
    code, found = fault_of(answer)
    assert (answer.status_code, code) == (500, "BAD_REQUEST")
    assert message in (found or "")


def test_other_services_and_versions_are_not_here(sandbox: Sandbox) -> None:
    """A service of CallFire's that is not imitated says so; a version that never was is not found."""
    assert fault_of(post_soap(sandbox, "<svc:SendText/>", service="text")) == (
        "NOT_IMPLEMENTED",
        "the sandbox has no text service, only subscription",
    )
    assert post_soap(sandbox, "<svc:QuerySubscriptions/>", version="1.2").status_code == 404
    assert requests.get(f"{sandbox.url}/api/1.1/wsdl/..%2Fsoap.py", timeout=10).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic c2FuZGJveDp3cm9uZw=="},
        {"Authorization": "Basic %%%"},
        {"Authorization": "Bearer x"},
    ],
    ids=["none", "wrong password", "not base64", "other scheme"],
)
def test_wrong_credentials_are_401_with_an_empty_body(sandbox: Sandbox, headers: dict[str, str]) -> None:
    """Whatever is asked; nothing is done. Empty, because zeep loses the status otherwise (section 4)."""
    answer = post_soap(sandbox, "<svc:QuerySubscriptions/>", auth=lambda request: request, headers=headers)
    assert (answer.status_code, answer.content) == (401, b"")
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    with soap_service(sandbox, password="wrong") as service, pytest.raises(zeep.exceptions.TransportError) as refused:
        service.QuerySubscriptions()
    assert refused.value.status_code == 401


def test_answers_come_in_the_callers_version_of_soap(sandbox: Sandbox) -> None:
    """SOAP 1.1 to the 1.2 address is what the tutorial's PHP sends; the content type goes with the envelope."""
    for envelope, content_type in (
        (SOAP_11, "text/xml; charset=utf-8"),
        (SOAP_12, "application/soap+xml; charset=utf-8"),
    ):
        answer = post_soap(sandbox, "<svc:QuerySubscriptions/>", envelope=envelope)
        assert answer.headers["Content-Type"] == content_type
        assert etree.QName(etree.fromstring(answer.content)).namespace == envelope


# Section 5: postbacks


def test_a_postback_looks_as_captured(sandbox: Sandbox, service: Any, postback_endpoint: PostbackEndpoint) -> None:
    """Method, headers and body of the 2013 capture; nothing that the capture lacks."""
    service.CreateSubscription(Subscription={"Endpoint": postback_endpoint.url, "TriggerEvent": INBOUND_TEXT})
    sandbox.send_text("Hello, World!")
    received = postback_endpoint.take()
    assert received.path == "/postback/token"
    assert received.headers == {
        "Content-Type": "text/xml; charset=UTF-8",
        "Content-Length": str(len(received.body)),
        "Host": postback_endpoint.url.split("/")[2],
        "Connection": "Keep-Alive",
        "User-Agent": "CallFire-HTTP/1.0",
    }
    declaration, _, rest = received.body.partition(b"?>")
    assert declaration == b'<?xml version="1.0" encoding="UTF-8" standalone="yes"'
    assert b"\n" not in rest
    assert rest.startswith(
        b'<n:TextNotification xmlns="http://api.callfire.com/data" xmlns:n="http://api.callfire.com/notification/xsd">'
    )


EVENTS: dict[str, tuple[str, dict[str, object]]] = {
    "INBOUND_TEXT_FINISHED": ("text", {"inbound": True}),
    "OUTBOUND_TEXT_FINISHED": ("text", {"inbound": False}),
    "INBOUND_CALL_FINISHED": ("call", {"inbound": True}),
    "OUTBOUND_CALL_FINISHED": ("call", {"inbound": False}),
    "CAMPAIGN_STARTED": ("campaign", {"change": "STARTED"}),
    "CAMPAIGN_STOPPED": ("campaign", {"change": "STOPPED"}),
    "CAMPAIGN_FINISHED": ("campaign", {"change": "FINISHED"}),
}


def happen(sandbox: Sandbox, trigger: str) -> dict[str, Any]:
    """Make the event that a trigger is about."""
    kind, more = EVENTS[trigger]
    make = {
        "text": lambda **fields: sandbox.send_text("Hello", **fields),
        "call": sandbox.make_call,
        "campaign": sandbox.run_campaign,
    }
    return make[kind](**more)


def test_each_trigger_is_told_of_its_own_kind_of_event(sandbox: Sandbox) -> None:
    """Seven subscriptions, seven events: each gets one postback, and the one of API 1.0 gets them all."""
    endpoint = "http://127.0.0.1:1/"
    idents = [sandbox.create_subscription(endpoint=endpoint, trigger_event=trigger)["id"] for trigger in EVENTS]
    everything = sandbox.create_subscription(endpoint=endpoint, trigger_event="UNDEFINED_EVENT")["id"]
    for trigger in EVENTS:
        happen(sandbox, trigger)
    told = [(found["subscription_id"], found["event"]["trigger"]) for found in sandbox.postbacks()]
    expected = [
        pair
        for ident, trigger in zip(idents, EVENTS, strict=True)
        for pair in ((ident, trigger), (everything, trigger))
    ]
    assert told == expected


@pytest.mark.parametrize("trigger", EVENTS)
def test_a_postback_says_what_happened_where_the_documents_say(
    sandbox: Sandbox, postback_endpoint: PostbackEndpoint, trigger: str
) -> None:
    """Root by kind; direction only in Inbound, a campaign's event only in Status; times in UTC and whole seconds."""
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event=trigger)
    happen(sandbox, trigger)
    received = postback_endpoint.take()
    root = etree.fromstring(received.body)
    kind, more = EVENTS[trigger]
    name = {"text": "TextNotification", "call": "CallFinished", "campaign": "BroadcastNotification"}[kind]
    assert root.tag == f"{{http://api.callfire.com/notification/xsd}}{name}"
    assert trigger.encode() not in received.body
    status = {"STARTED": "RUNNING", "STOPPED": "STOPPED", "FINISHED": "FINISHED"}.get(str(more.get("change")))
    assert root.findtext(f".//{{{DATA}}}Status") == status
    inbound: dict[object, str] = {True: "true", False: "false"}
    assert root.findtext(f".//{{{DATA}}}Inbound") == inbound.get(more.get("inbound"))
    times = [found.text for found in root.iter(*[f"{{{DATA}}}{name}" for name in TIMES])]
    assert len(times) >= 2
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text or "") for text in times)


def test_a_call_is_valid_as_a_whole_and_a_text_is_not(sandbox: Sandbox, postback_endpoint: PostbackEndpoint) -> None:
    """By the vendor's own schema, which has no element of the name that real texts have (section 5)."""
    document = etree.parse(vendor_file("wsdl", "callfire-notification.xsd"))
    data = vendor_file("wsdl", "1.1-latest", "callfire-data.xsd")
    document.find(f"{XSD}import").set("schemaLocation", str(data))
    schema = etree.XMLSchema(document)
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event="UNDEFINED_EVENT")
    sandbox.make_call()
    schema.assertValid(etree.fromstring(postback_endpoint.take().body))
    sandbox.send_text("Hello")
    text = etree.fromstring(postback_endpoint.take().body)
    assert not schema.validate(text)
    text.tag = "{http://api.callfire.com/notification/xsd}TextReceived"
    schema.assertValid(text)


def test_payloads_are_valid_by_the_vendors_schema(
    sandbox: Sandbox, postback_endpoint: PostbackEndpoint, tmp_path: Path
) -> None:
    """Text, Call and Broadcast of real postbacks; the roots are the documented ones, which the schema partly lacks."""
    schema = etree.XMLSchema(etree.parse(vendor_file("wsdl", "1.1-latest", "callfire-data.xsd")))
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event="UNDEFINED_EVENT")
    sandbox.send_text("in", broadcast_id=5, batch_id=6)
    sandbox.send_text("out", inbound=False)
    sandbox.make_call(duration=90, result="AM")
    for change in ("STARTED", "STOPPED", "FINISHED"):
        sandbox.run_campaign(change)
    statuses = []
    for _ in range(6):
        root = etree.fromstring(postback_endpoint.take().body)
        ident, payload = root
        assert ident.tag == "{http://api.callfire.com/notification/xsd}SubscriptionId"
        schema.assertValid(payload)
        statuses.append(payload.findtext(f"{{{DATA}}}Status"))
    assert statuses == [None, None, None, "RUNNING", "STOPPED", "FINISHED"]


@pytest.mark.parametrize(
    ("form", "content_type", "start"),
    [
        ("XML", "text/xml; charset=UTF-8", b"<?xml"),
        ("LEGACY", "text/xml; charset=UTF-8", b"<?xml"),
        ("JSON", "application/json; charset=UTF-8", b'{"TextNotification":{"SubscriptionId":19001,'),
        ("SOAP", "application/soap+xml; charset=UTF-8", b"<?xml"),
    ],
)
def test_each_subscription_gets_its_own_format(
    sandbox: Sandbox, postback_endpoint: PostbackEndpoint, form: str, content_type: str, start: bytes
) -> None:
    """XML and JSON as captured, SOAP and LEGACY as guessed."""
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event=INBOUND_TEXT, notification_format=form)
    sandbox.send_text("Hello")
    received = postback_endpoint.take()
    assert received.headers["Content-Type"] == content_type
    assert received.body.startswith(start)


def test_an_email_subscription_gets_a_mail(sandbox: Sandbox) -> None:
    """In the sandbox's own mailbox; an endpoint that is an address gets mail in any format."""
    sandbox.create_subscription(endpoint="ops@example.com", trigger_event=INBOUND_TEXT, notification_format="EMAIL")
    sandbox.send_text("naïve 😊")
    mail = sandbox.wait_for_mail()
    assert mail["rcpt_to"] == ["ops@example.com"]
    assert "Message: naïve 😊\n" in mail["text"]
    assert sandbox.wait_for_postback()["answer"]["status"] is None
