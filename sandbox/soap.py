"""SOAP envelopes and CallFire's five subscription operations as XML: bytes to requests, answers to bytes.

Requests are validated against the very schema that the sandbox serves, so a client that passes here speaks the
published contract. Pure: no HTTP, no accounts.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lxml import etree

from sandbox.events import DATA, SOAP_12
from sandbox.subscriptions import NotificationFormat, Subscription, SubscriptionFilter, TriggerEvent

SERVICE = "http://api.callfire.com/service/xsd"
SOAP_11 = "http://schemas.xmlsoap.org/soap/envelope/"

CONTRACT = Path(__file__).parent / "wsdl"
VERSIONS = ("1.0", "1.1")

_NAMESPACE = re.compile(r"\{[^}']*\}")
_PARSER = etree.XMLParser(
    resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
)


class FaultCode(StrEnum):
    """The codes of svc:ServiceFaultInfo."""

    BAD_REQUEST = "BAD_REQUEST"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    UNAVAILABLE = "UNAVAILABLE"
    TIMEOUT = "TIMEOUT"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"


class Operation(StrEnum):
    """The operations of the Subscription port."""

    CREATE = "CreateSubscription"
    QUERY = "QuerySubscriptions"
    GET = "GetSubscription"
    UPDATE = "UpdateSubscription"
    DELETE = "DeleteSubscription"


class SoapFault(Exception):  # noqa: N818 - SOAP's own word
    """An answer that says what the caller did wrong. Without a code it carries no ServiceFaultInfo."""

    def __init__(self, code: FaultCode | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class SoapRequest:
    """One validated call. `envelope` is the namespace of its envelope, in which the answer goes back."""

    operation: Operation
    element: etree._Element
    envelope: str


def parse_envelope(body: bytes) -> tuple[str, etree._Element]:
    """The envelope's namespace (SOAP 1.1 or 1.2) and the one element in its Body.

    Raises:
        SoapFault: the body is no such thing.
    """
    try:
        root = etree.fromstring(body, _PARSER)
    except etree.XMLSyntaxError as error:
        raise SoapFault(FaultCode.BAD_REQUEST, f"the request is not XML: {error}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise SoapFault(FaultCode.BAD_REQUEST, "the request has a document type declaration, which SOAP forbids")
    name = etree.QName(root)
    if name.localname != "Envelope" or name.namespace not in {SOAP_11, SOAP_12}:
        raise SoapFault(FaultCode.BAD_REQUEST, f"the request is no SOAP envelope: its root is {root.tag}")
    content = root.find(f"{{{name.namespace}}}Body")
    if content is None or len(content) != 1 or not isinstance(content[0].tag, str):
        raise SoapFault(FaultCode.BAD_REQUEST, "the SOAP Body must hold exactly one element, the operation")
    return name.namespace, content[0]


def known_operation(element: etree._Element) -> Operation | None:
    """Which of the five operations an element calls, if any."""
    name = etree.QName(element)
    known = name.namespace == SERVICE and name.localname in list(Operation)
    return Operation(name.localname) if known else None


def parse_operation(envelope: str, element: etree._Element, schema: etree.XMLSchema) -> SoapRequest:
    """The call in a Body, checked against the schema of its API version.

    Raises:
        SoapFault: no such operation, or a field that the schema does not allow, named.
    """
    operation = known_operation(element)
    if operation is None:
        known = ", ".join(Operation)
        raise SoapFault(FaultCode.NOT_IMPLEMENTED, f"no operation {element.tag} here; the sandbox has {known}")
    if not schema.validate(element):
        raise SoapFault(FaultCode.BAD_REQUEST, _NAMESPACE.sub("", str(schema.error_log[0].message)))
    return SoapRequest(operation, element, envelope)


def load_schema(version: str) -> etree.XMLSchema:
    """The schema of an API version. One belongs to one thread: it remembers what was wrong last."""
    document = etree.fromstring((CONTRACT / "callfire-service.xsd").read_bytes())
    location = document.find(".//{http://www.w3.org/2001/XMLSchema}import")
    location.set("schemaLocation", str(CONTRACT / version / "callfire-data.xsd"))
    return etree.XMLSchema(document)


def _boolean(text: str) -> bool:
    return text.strip() in {"true", "1"}


def _format(text: str) -> NotificationFormat:
    return NotificationFormat(text or "XML")


_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "Enabled": ("enabled", _boolean),
    "NonStrictSsl": ("non_strict_ssl", _boolean),
    "Endpoint": ("endpoint", str.strip),
    "NotificationFormat": ("notification_format", _format),
    "TriggerEvent": ("trigger_event", TriggerEvent),
    "ExpiresAt": ("expires_at", int),
}
_FILTER_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "BroadcastId": ("broadcast_id", int),
    "BatchId": ("batch_id", int),
    "FromNumber": ("from_number", str),
    "ToNumber": ("to_number", str),
    "Inbound": ("inbound", _boolean),
}


@dataclass(frozen=True, slots=True)
class SubscriptionFields:
    """A Subscription element of a request: only what the caller wrote, by this project's names."""

    id: int | None
    fields: Mapping[str, Any]
    filter: Mapping[str, Any] | None


def read_subscription(request: SoapRequest) -> SubscriptionFields:
    """The Subscription of a create or update."""
    element = request.element.find(f"{{{DATA}}}Subscription")
    filters = element.find(f"{{{DATA}}}SubscriptionFilter")
    ident = element.get("id")
    return SubscriptionFields(
        id=None if ident is None else int(ident),
        fields=_read(element, _FIELDS),
        filter=None if filters is None else _read(filters, _FILTER_FIELDS),
    )


def read_long(request: SoapRequest, name: str, default: int = 0) -> int:
    """An xs:long parameter; the default where it is left out or empty, as the schema's own default says."""
    text = request.element.findtext(f"{{{SERVICE}}}{name}")
    return int(text) if text else default


def read_request_id(request: SoapRequest) -> str | None:
    """The RequestId, or None where it is left out or empty."""
    return request.element.findtext(f"{{{SERVICE}}}RequestId") or None


def _read(element: etree._Element, fields: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    found = {}
    for child in element.iterchildren(tag=etree.Element):
        known = fields.get(etree.QName(child).localname)
        if known:
            name, parse = known
            found[name] = parse(child.text or "")
    return found


def compose_answer(content: etree._Element | None, envelope: str) -> bytes:
    """An envelope around an answer; None is an empty Body."""
    root = etree.Element(f"{{{envelope}}}Envelope", nsmap={"soap": envelope, "svc": SERVICE, "data": DATA})
    body = etree.SubElement(root, f"{{{envelope}}}Body")
    if content is not None:
        body.append(content)
    return bytes(etree.tostring(root, encoding="UTF-8", xml_declaration=True))


def created_id(ident: int) -> etree._Element:
    """The answer to CreateSubscription."""
    element = etree.Element(f"{{{SERVICE}}}CreatedId")
    element.text = str(ident)
    return element


def subscription_element(subscription: Subscription, version: str) -> etree._Element:
    """A subscription as that API version shows it: 1.0 has neither trigger nor the later fields."""
    element = etree.Element(f"{{{DATA}}}Subscription", id=str(subscription.id))
    newer = version != "1.0"
    _append(element, "Enabled", subscription.enabled)
    if newer:
        _append(element, "NonStrictSsl", subscription.non_strict_ssl)
    _append(element, "Endpoint", subscription.endpoint)
    if newer or subscription.notification_format is not NotificationFormat.LEGACY:
        _append(element, "NotificationFormat", subscription.notification_format)
    if newer:
        _append(element, "TriggerEvent", subscription.trigger_event)
        _append(element, "ExpiresAt", subscription.expires_at)
    if subscription.filter != SubscriptionFilter():
        filters = etree.SubElement(element, f"{{{DATA}}}SubscriptionFilter")
        for name, (attribute, _) in _FILTER_FIELDS.items():
            _append(filters, name, getattr(subscription.filter, attribute))
    return element


def query_result(total: int, page: list[Subscription], version: str) -> etree._Element:
    """The answer to QuerySubscriptions."""
    element = etree.Element(f"{{{SERVICE}}}SubscriptionQueryResult")
    etree.SubElement(element, f"{{{SERVICE}}}TotalResults").text = str(total)
    element.extend(subscription_element(subscription, version) for subscription in page)
    return element


def compose_fault(fault: SoapFault, envelope: str) -> bytes:
    """A fault in the caller's version of SOAP, with ServiceFaultInfo as its detail where the fault has a code."""
    element = etree.Element(f"{{{envelope}}}Fault", nsmap={"soap": envelope})
    receiver = fault.code in {FaultCode.UNAVAILABLE, FaultCode.TIMEOUT}
    if envelope == SOAP_11:
        etree.SubElement(element, "faultcode").text = "soap:Server" if receiver else "soap:Client"
        etree.SubElement(element, "faultstring").text = fault.message
        detail = "detail"
    else:
        code = etree.SubElement(element, f"{{{envelope}}}Code")
        etree.SubElement(code, f"{{{envelope}}}Value").text = "soap:Receiver" if receiver else "soap:Sender"
        reason = etree.SubElement(etree.SubElement(element, f"{{{envelope}}}Reason"), f"{{{envelope}}}Text")
        reason.set("{http://www.w3.org/XML/1998/namespace}lang", "en")
        reason.text = fault.message
        detail = f"{{{envelope}}}Detail"
    if fault.code is not None:
        info = etree.SubElement(
            etree.SubElement(element, detail), f"{{{SERVICE}}}ServiceFaultInfo", nsmap={"svc": SERVICE}
        )
        etree.SubElement(info, f"{{{SERVICE}}}FaultCode").text = fault.code
        etree.SubElement(info, f"{{{SERVICE}}}Message").text = fault.message
    return compose_answer(element, envelope)


def _append(parent: etree._Element, name: str, value: object) -> None:
    if value is not None:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        etree.SubElement(parent, f"{{{DATA}}}{name}").text = text
