"""What happens in a CallFire account - texts, calls, campaigns - and how CallFire writes it into a postback.

Pure: an event and a subscription id go in, bytes come out. The forms follow CONTRACT.md section 5; elements stand in
the order of the vendor's schema.
"""

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from enum import StrEnum
from typing import Any, Literal

from lxml import etree

from sandbox.subscriptions import Facts, NotificationFormat, TriggerEvent

DATA = "http://api.callfire.com/data"
NOTIFICATION = "http://api.callfire.com/notification/xsd"
SOAP_12 = "http://www.w3.org/2003/05/soap-envelope"

_DECLARATION = b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
_NUMERIC = re.compile(r"-?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text message that has been received or sent."""

    kind: Literal["text"] = "text"
    id: int
    from_number: str
    to_number: str
    message: str
    inbound: bool
    created: datetime
    modified: datetime
    contact_id: int
    record_id: int
    batch_id: int | None = None
    broadcast_id: int | None = None

    def facts(self) -> Facts:
        """What triggers and filters look at."""
        trigger = TriggerEvent.INBOUND_TEXT_FINISHED if self.inbound else TriggerEvent.OUTBOUND_TEXT_FINISHED
        return Facts(trigger, self.from_number, self.to_number, self.broadcast_id, self.batch_id, self.inbound)


class CallResult(StrEnum):
    """How a call ended (data:Result, as far as it is about calls)."""

    LA = "LA"
    """Live answer."""
    AM = "AM"
    """Answering machine."""
    BUSY = "BUSY"
    DNC = "DNC"
    """Do not call."""
    XFER = "XFER"
    XFER_LEG = "XFER_LEG"
    NO_ANS = "NO_ANS"
    UNDIALED = "UNDIALED"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    CARRIER_ERROR = "CARRIER_ERROR"
    CARRIER_TEMP_ERROR = "CARRIER_TEMP_ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One phone call that has ended. `duration` is in seconds."""

    kind: Literal["call"] = "call"
    id: int
    from_number: str
    to_number: str
    inbound: bool
    created: datetime
    modified: datetime
    contact_id: int
    record_id: int
    duration: int
    result: CallResult = CallResult.LA
    batch_id: int | None = None
    broadcast_id: int | None = None

    def facts(self) -> Facts:
        """What triggers and filters look at."""
        trigger = TriggerEvent.INBOUND_CALL_FINISHED if self.inbound else TriggerEvent.OUTBOUND_CALL_FINISHED
        return Facts(trigger, self.from_number, self.to_number, self.broadcast_id, self.batch_id, self.inbound)


class CampaignChange(StrEnum):
    """What a campaign just did."""

    STARTED = "STARTED"
    STOPPED = "STOPPED"
    FINISHED = "FINISHED"


_STATUS = {CampaignChange.STARTED: "RUNNING", CampaignChange.STOPPED: "STOPPED", CampaignChange.FINISHED: "FINISHED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One text campaign (a Broadcast, in the API's word) that has started, stopped or finished."""

    kind: Literal["campaign"] = "campaign"
    id: int
    name: str
    change: CampaignChange
    from_number: str
    message: str
    created: datetime
    modified: datetime

    def facts(self) -> Facts:
        """What triggers and filters look at."""
        return Facts(TriggerEvent[f"CAMPAIGN_{self.change}"], from_number=self.from_number, broadcast_id=self.id)


Event = Text | Call | Campaign


@dataclass(frozen=True, slots=True)
class Notification:
    """The content of one postback."""

    content_type: str
    body: bytes


def compose_notification(event: Event, subscription_id: int, form: NotificationFormat) -> Notification:
    """What CallFire posts to a subscription's endpoint about an event.

    XML is on one line, as captured. SOAP wraps it in a SOAP 1.2 envelope, which nobody has seen on the wire; LEGACY is
    not documented anywhere and sent as XML.
    """
    root = _notification_element(event, subscription_id)
    if form is NotificationFormat.JSON:
        document = {etree.QName(root).localname: _as_json(root)}
        return Notification("application/json; charset=UTF-8", json.dumps(document, separators=(",", ":")).encode())
    if form is NotificationFormat.SOAP:
        envelope = etree.Element(f"{{{SOAP_12}}}Envelope", nsmap={"soap": SOAP_12})
        etree.SubElement(envelope, f"{{{SOAP_12}}}Body").append(root)
        return Notification(
            "application/soap+xml; charset=UTF-8", _DECLARATION + etree.tostring(envelope, encoding="UTF-8")
        )
    return Notification("text/xml; charset=UTF-8", _DECLARATION + etree.tostring(root, encoding="UTF-8"))


def malformed(notification: Notification) -> Notification:
    """The same, broken the way CallFire's documented sample is: `</Modified` lacks its `>`. JSON loses its end."""
    broken = notification.body.replace(b"</Modified>", b"</Modified", 1)
    if broken == notification.body:
        broken = notification.body[:-1]
    return replace(notification, body=broken)


def timestamp(moment: datetime) -> str:
    """A time as CallFire writes it: UTC, whole seconds, Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _notification_element(event: Event, subscription_id: int) -> etree._Element:
    match event:
        case Text():
            root, payload = _root("TextNotification", subscription_id, "Text", event.id)
            _write_text(payload, event)
        case Call():
            root, payload = _root("CallFinished", subscription_id, "Call", event.id)
            _write_call(payload, event)
        case Campaign():
            root, payload = _root("BroadcastNotification", subscription_id, "Broadcast", event.id)
            _write_campaign(payload, event)
    return root


def _root(name: str, subscription_id: int, payload: str, ident: int) -> tuple[etree._Element, etree._Element]:
    root = etree.Element(f"{{{NOTIFICATION}}}{name}", nsmap={None: DATA, "n": NOTIFICATION})
    etree.SubElement(root, f"{{{NOTIFICATION}}}SubscriptionId").text = str(subscription_id)
    return root, _element(root, payload, ident)


def _element(parent: etree._Element, name: str, ident: int) -> etree._Element:
    return etree.SubElement(parent, f"{{{DATA}}}{name}", id=str(ident))


def _write(parent: etree._Element, **children: object) -> None:
    """Append one element per given value, in order; None leaves the element out."""
    for name, value in children.items():
        if value is None:
            continue
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, datetime):
            text = timestamp(value)
        else:
            text = str(value)
        etree.SubElement(parent, f"{{{DATA}}}{name}").text = text


def _write_action(parent: etree._Element, action: Text | Call, final_result: str) -> None:
    _write(
        parent,
        FromNumber=action.from_number,
        ToNumber=action.to_number,
        State="FINISHED",
        BatchId=action.batch_id,
        BroadcastId=action.broadcast_id,
        ContactId=action.contact_id,
        Inbound=action.inbound,
        Created=action.created,
        Modified=action.modified,
        FinalResult=final_result,
    )


def _write_text(parent: etree._Element, text: Text) -> None:
    """An inbound text carries its message twice, an outbound one only in its record, as documented."""
    result = "RECEIVED" if text.inbound else "SENT"
    _write_action(parent, text, result)
    if text.inbound:
        _write(parent, Message=text.message)
    record = _element(parent, "TextRecord", text.record_id)
    _write(record, Result=result, FinishTime=text.modified, BilledAmount="0.03", Message=text.message)


def _write_call(parent: etree._Element, call: Call) -> None:
    _write_action(parent, call, call.result)
    record = _element(parent, "CallRecord", call.record_id)
    _write(
        record,
        Result=call.result,
        FinishTime=call.modified,
        BilledAmount="1.6667",
        AnswerTime=call.created,
        Duration=call.duration,
    )


def _write_campaign(parent: etree._Element, campaign: Campaign) -> None:
    _write(parent, Name=campaign.name, Status=_STATUS[campaign.change], LastModified=campaign.modified, Type="TEXT")
    config = _element(parent, "TextBroadcastConfig", campaign.id)
    _write(
        config,
        Created=campaign.created,
        FromNumber=campaign.from_number,
        Message=campaign.message,
        BigMessageStrategy="SEND_MULTIPLE",
    )


def _as_json(element: etree._Element) -> Any:
    """An element in the captured JSON form: attributes as @strings, what looks like a number as a number."""
    if not len(element) and not element.attrib:
        return _coerced(element.text or "")
    document: dict[str, Any] = {f"@{name}": value for name, value in element.attrib.items()}
    for child in element:
        name, value = etree.QName(child).localname, _as_json(child)
        if name not in document:
            document[name] = value
        elif isinstance(document[name], list):
            document[name].append(value)
        else:
            document[name] = [document[name], value]
    return document


def _coerced(text: str) -> str | int | float | bool:
    if text in {"true", "false"}:
        return text == "true"
    if not _NUMERIC.fullmatch(text):
        return text
    number = float(text)
    return int(text) if "." not in text else int(number) if number.is_integer() else number


def compose_email(event: Event, subscription_id: int, sender: str, recipient: str) -> bytes:
    """The mail that an EMAIL subscription gets: readable lines. CallFire's own wording is not known."""
    message = EmailMessage(policy=policy.SMTP)
    message["From"] = sender
    message["To"] = recipient
    message["Date"] = event.modified
    message["Message-ID"] = f"<{event.kind}-{event.id}-{subscription_id}@callfire.example>"
    message["Subject"] = f"CallFire notification: {event.facts().trigger}"
    lines = [f"Subscription: {subscription_id}", f"Event: {event.facts().trigger}", f"Id: {event.id}"]
    if isinstance(event, Campaign):
        lines += [f"Campaign: {event.name}", f"Message: {event.message}"]
    else:
        lines += [f"From: {event.from_number}", f"To: {event.to_number}"]
    lines.append(f"Time: {timestamp(event.modified)}")
    if isinstance(event, Text):
        lines.append(f"Message: {event.message}")
    if isinstance(event, Call):
        lines.append(f"Duration: {event.duration} s")
    message.set_content("\n".join(lines) + "\n")
    return message.as_bytes()
