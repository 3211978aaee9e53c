"""Events as CallFire writes them, against the captured and documented samples."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from lxml import etree

from sandbox.events import (
    Call,
    Campaign,
    CampaignChange,
    Event,
    Text,
    compose_email,
    compose_notification,
    malformed,
)
from sandbox.subscriptions import NotificationFormat
from tests.contract.sandbox_peers import vendor_file

XML, JSON, SOAP = NotificationFormat.XML, NotificationFormat.JSON, NotificationFormat.SOAP


def moment(text: str) -> datetime:
    """A time of a sample."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


TEXT = Text(
    id=1234,
    from_number="15551231234",
    to_number="15551231235",
    message="test",
    inbound=True,
    created=moment("2013-08-13T17:05:37Z"),
    modified=moment("2013-08-13T17:05:37Z"),
    contact_id=1234,
    record_id=1234,
)


def shape(xml: bytes) -> list[tuple[str, str | None, str]]:
    """Elements in order with id and text, without whitespace and without what a sample has made up."""
    root = etree.fromstring(xml)
    return [
        (element.tag, element.get("id"), (element.text or "").strip())
        for element in root.iter(etree.Element)
        if etree.QName(element).localname not in {"BilledAmount", "FinishTime"}
    ]


def test_an_inbound_text_is_written_as_captured() -> None:
    """Byte for byte the captured line, but for the price."""
    sample = vendor_file("samples", "text-inbound-oneline.xml").read_bytes().strip()
    written = compose_notification(TEXT, 1234, XML).body
    assert written == sample.replace(b"<BilledAmount>1.0<", b"<BilledAmount>0.03<")


@pytest.mark.parametrize(
    ("event", "subscription", "sample"),
    [
        pytest.param(
            Text(
                id=11111111111,
                from_number="67076",
                to_number="11111111111",
                message="Hello, CallFire!",
                inbound=False,
                created=moment("2013-03-11T20:09:58Z"),
                modified=moment("2013-03-11T20:10:07Z"),
                contact_id=11111111111,
                record_id=11111111111,
                batch_id=11111111,
                broadcast_id=111111111,
            ),
            41001,
            "text-outbound.xml",
            id="outbound text: its message stands only in the record",
        ),
        pytest.param(
            Call(
                id=1234,
                from_number="15551231234",
                to_number="15551231235",
                inbound=True,
                created=moment("2013-08-13T22:52:40Z"),
                modified=moment("2013-08-13T22:52:46Z"),
                contact_id=1234,
                record_id=1234,
                duration=3,
            ),
            1234,
            "call-inbound.xml",
            id="inbound call",
        ),
        pytest.param(
            Campaign(
                id=1057444001,
                name="Testing Broadcast",
                change=CampaignChange.FINISHED,
                from_number="67076",
                message="Hello, CallFire!",
                created=moment("2013-08-13T22:00:00Z"),
                modified=moment("2013-08-13T22:52:46Z"),
            ),
            41001,
            "campaign-finished.inferred.xml",
            id="finished campaign",
        ),
    ],
)
def test_every_kind_of_event_has_the_shape_of_its_sample(event: Event, subscription: int, sample: str) -> None:
    """Same elements, same order, same values."""
    written = compose_notification(event, subscription, XML).body
    assert shape(written) == shape(vendor_file("samples", sample).read_bytes())


def test_json_coerces_as_the_captured_one() -> None:
    """Attributes are strings with @; what looks like a number becomes one, phone numbers too."""
    sample = json.loads(vendor_file("samples", "text-inbound.json").read_text())
    text = Text(
        id=589048310003,
        from_number="15555550101",
        to_number="15555550102",
        message="Testttt",
        inbound=True,
        created=moment("2015-09-11T22:25:50Z"),
        modified=moment("2015-09-11T22:25:50Z"),
        contact_id=455032665003,
        record_id=328887350003,
    )
    sample["TextNotification"]["Text"]["TextRecord"]["BilledAmount"] = 0.03
    notification = compose_notification(text, 480085003, JSON)
    assert notification.content_type.startswith("application/json")
    assert json.loads(notification.body) == sample
    numeric = json.loads(compose_notification(replace(text, message="007"), 1, JSON).body)
    assert numeric["TextNotification"]["Text"]["Message"] == 7


def test_soap_wraps_the_same_notification() -> None:
    """The inferred form: the XML notification in the Body of a SOAP 1.2 envelope."""
    sample = etree.fromstring(vendor_file("samples", "text-inbound.soap.inferred.xml").read_bytes())
    written = etree.fromstring(compose_notification(TEXT, 1234, SOAP).body)
    assert [written.tag, written[0].tag, written[0][0].tag] == [sample.tag, sample[0].tag, sample[0][0].tag]
    assert etree.tostring(written[0][0]) != b""


def test_the_malformed_form_is_the_documented_one() -> None:
    """`</Modified` lacks its bracket, and no parser takes it."""
    broken = malformed(compose_notification(TEXT, 1, XML)).body
    assert b"</Modified<FinalResult>" in broken
    assert b"</Modified\n" in vendor_file("samples", "text-inbound.as-documented-malformed.xml").read_bytes()
    with pytest.raises(etree.XMLSyntaxError):
        etree.fromstring(broken)
    with pytest.raises(ValueError, match="delimiter"):
        json.loads(malformed(compose_notification(TEXT, 1, JSON)).body)


@pytest.mark.parametrize(
    "message", ["<b>&amp;</b>", "]]>", "naïve 😊 日本語", " lead and trail ", "two\nlines", "a\r\nb", ""]
)
def test_any_message_survives_the_way_through_xml(message: str) -> None:
    """What a parser reads is what was texted."""
    root = etree.fromstring(compose_notification(replace(TEXT, message=message), 1, XML).body)
    namespace = {"d": "http://api.callfire.com/data"}
    assert root.findtext("d:Text/d:Message", namespaces=namespace) == message
    assert root.findtext("d:Text/d:TextRecord/d:Message", namespaces=namespace) == message


def test_a_notification_by_mail_says_what_happened() -> None:
    """Sender, receiver, time and message are in it, in any script."""
    mail = compose_email(replace(TEXT, message="naïve 😊"), 7, "from@example.com", "to@example.com")
    assert b"To: to@example.com\r\n" in mail
    assert b"Content-Type: text/plain" in mail
    call = compose_email(
        Call(
            id=1,
            from_number="1",
            to_number="2",
            inbound=False,
            created=TEXT.created,
            modified=TEXT.created,
            contact_id=1,
            record_id=1,
            duration=60,
        ),
        7,
        "a@example.com",
        "b@example.com",
    )
    assert b"Subject: CallFire notification: OUTBOUND_CALL_FINISHED\r\n" in call
    assert b"Duration: 60 s\r\n" in call
