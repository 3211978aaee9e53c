"""From the bytes of a postback to what they mean: pure functions, no clock, no disk, no network.

CallFire posts XML, JSON or XML in a SOAP envelope, with one event or several (CONTRACT.md, section 5). Everything here
is total: any bytes at all give a list of events, never an exception. Names are matched by namespace and local name,
enumerations are not validated and unknown elements are passed over, because both grew over the years.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from lxml import etree

NOTIFICATION: Final = "{http://api.callfire.com/notification/xsd}"
DATA: Final = "{http://api.callfire.com/data}"

TEXT_EVENTS: Final = frozenset({"TextNotification", "TextReceived", "TextSent"})
OTHER_EVENTS: Final = {
    "CallFinished": "call",
    "BroadcastNotification": "campaign",
    "BroadcastStarted": "campaign",
    "BroadcastStopped": "campaign",
    "BroadcastFinished": "campaign",
}
MAX_SHORT: Final = 64
"""Longest number, time or id that is taken for one."""
MAX_EVENTS: Final = 1000
"""Most events in one body; CallFire sends one."""

_SHORT_FIELDS: Final = ("FromNumber", "ToNumber", "Created")
_XML_SAFE: Final[Mapping[str, bool]] = {
    "resolve_entities": False,
    "no_network": True,
    "load_dtd": False,
    "huge_tree": False,
    "remove_comments": True,
    "remove_pis": True,
}
_PAIRS: Final = tuple(
    (re.compile(rb"<(?:[\w.-]+:)?%b[\s>]" % name), re.compile(rb"</(?:[\w.-]+:)?%b\s*>" % name))
    for name in (b"Text", b"Message")
)
"""Every text and message that was begun in a malformed body must have been ended."""
_ANY_NOTIFICATION: Final = f"{NOTIFICATION}*"
_SUBSCRIPTION_ID: Final = f"{NOTIFICATION}SubscriptionId"
_TEXT: Final = f"{DATA}Text"
_TEXT_RECORD: Final = f"{DATA}TextRecord"
_MESSAGE: Final = f"{DATA}Message"
_FIELDS: Final = {f"{DATA}{field}": field for field in (*_SHORT_FIELDS, "Inbound", "Message")}
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class InboundText:
    """One text that a person sent to one of the account's numbers."""

    id: int
    """`Text/@id`, an xs:long: the key by which a text is delivered once."""
    subscription_id: str
    from_number: str
    """As CallFire sent it, usually digits with the country code and no plus sign."""
    to_number: str
    created: str
    """As CallFire sent it, usually `2012-09-24T05:02:35Z`."""
    message: str
    raw: bytes
    """The bytes this text was read from: the body, or its own part of a body with several events."""
    recovered: bool = False
    """The body was malformed, and what lxml recovered from it is a complete text."""

    @property
    def created_at(self) -> float | None:
        """`created` in seconds since the epoch, or None if it is not a time."""
        return _moment(self.created)


@dataclass(frozen=True, slots=True)
class Ignored:
    """An event that never becomes an email; `reason` is call, campaign or outbound."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An event, or a whole body, that says nothing we understand; a person decides."""

    reason: str


Event = InboundText | Ignored | Unreadable


@lru_cache(1024)
def _moment(created: str) -> float | None:
    try:
        moment = datetime.fromisoformat(created)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


class _NoTextError(Exception):
    """The fields are not those of a text; the message says which one and why."""


def parse_postback(body: bytes) -> list[Event]:
    """Everything that `body` says, in its order; at least one event."""
    start = body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if not start:
        return [Unreadable("the body is empty")]
    if start in b"{[":
        return _parse_json(body)
    return _parse_xml(body)


def _parse_xml(body: bytes) -> list[Event]:
    recovered = False
    try:
        root = etree.fromstring(body, etree.XMLParser(**_XML_SAFE))
    except (etree.XMLSyntaxError, ValueError) as error:
        root = _recover(body)
        if root is None:
            return [Unreadable(f"not well-formed XML: {error}")]
        recovered = True
    if root.getroottree().docinfo.doctype or (recovered and b"<!DOCTYPE" in body):
        return [Unreadable("it has a document type definition, which no postback has")]
    found = list(_xml_events(root))
    if not found:
        return [Unreadable(f"no CallFire event in <{root.tag}>")]
    if len(found) > MAX_EVENTS:
        return [Unreadable(f"{len(found)} events in one body, more than {MAX_EVENTS}")]
    alone = len(found) == 1
    return [
        _xml_event(name, subscription, payload, body if alone else etree.tostring(payload), recovered=recovered)
        for name, subscription, payload in found
    ]


def _recover(body: bytes) -> etree._Element | None:
    """What lxml makes of a malformed body, if no text in it can have been cut short."""
    if not all(0 < len(opened.findall(body)) == len(closed.findall(body)) for opened, closed in _PAIRS):
        return None
    try:
        return etree.fromstring(body, etree.XMLParser(recover=True, **_XML_SAFE))
    except (etree.XMLSyntaxError, ValueError):
        return None


def _xml_events(root: etree._Element) -> Iterator[tuple[str, str, etree._Element]]:
    """Event name, subscription and payload of every event below `root`, which may be one itself."""
    for element in root.iter(_ANY_NOTIFICATION):
        name = element.tag[len(NOTIFICATION) :]
        if name in OTHER_EVENTS:
            yield name, "", element
        elif name in TEXT_EVENTS:
            subscription, texts = "", []
            for child in element:
                if child.tag == _SUBSCRIPTION_ID:
                    subscription = child.text or ""
                elif child.tag == _TEXT:
                    texts.append(child)
            for text in texts or (element,):
                yield name, subscription, text


def _xml_event(name: str, subscription: str, payload: etree._Element, raw: bytes, *, recovered: bool) -> Event:
    if name in OTHER_EVENTS:
        return Ignored(OTHER_EVENTS[name])
    fields: dict[str, str] = {}
    record: str | None = None
    for child in payload:
        field = _FIELDS.get(child.tag)
        if field and field not in fields:
            fields[field] = _xml_text(child)
        elif record is None and child.tag == _TEXT_RECORD:
            record = next((_xml_text(message) for message in child if message.tag == _MESSAGE), None)
    if record is not None:
        fields.setdefault("Message", record)
    fields["@id"] = payload.get("id", "")
    return _text_event(name, subscription, fields, raw, recovered=recovered)


def _xml_text(element: etree._Element) -> str:
    return "".join(element.itertext()) if len(element) else element.text or ""


def _parse_json(body: bytes) -> list[Event]:
    try:
        document = json.loads(body, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as error:
        return [Unreadable(f"not JSON: {error}")]
    found = list(_json_events(document))
    if not found:
        return [Unreadable("no CallFire event in the JSON document")]
    if len(found) > MAX_EVENTS:
        return [Unreadable(f"{len(found)} events in one body, more than {MAX_EVENTS}")]
    alone = len(found) == 1
    return [
        _json_event(name, subscription, payload, body if alone else json.dumps(payload).encode())
        for name, subscription, payload in found
    ]


def _json_events(document: Any) -> Iterator[tuple[str, str, Any]]:
    for node in _as_list(document):
        for name, notifications in node.items() if isinstance(node, dict) else ():
            if name not in TEXT_EVENTS and name not in OTHER_EVENTS:
                continue
            for notification in _as_list(notifications):
                subscription, texts = "", notification
                if isinstance(notification, dict):
                    subscription = _json_text(notification.get("SubscriptionId"))
                    texts = notification.get("Text")
                for text in _as_list(texts) or [None]:
                    yield name, subscription, text


def _json_event(name: str, subscription: str, payload: Any, raw: bytes) -> Event:
    if name in OTHER_EVENTS:
        return Ignored(OTHER_EVENTS[name])
    if not isinstance(payload, dict):
        return Unreadable(f"{name} without a Text")
    fields = {key: _json_text(value) for key, value in payload.items() if key != "TextRecord"}
    for record in _as_list(payload.get("TextRecord")):
        if isinstance(record, dict) and "Message" in record:
            fields.setdefault("Message", _json_text(record["Message"]))
    return _text_event(name, subscription, fields, raw, recovered=False)


def _as_list(value: Any) -> list[Any]:
    """CallFire's JSON writes one thing as itself and several as a list."""
    return value if isinstance(value, list) else [value]


def _json_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)


def _text_event(name: str, subscription: str, fields: Mapping[str, str], raw: bytes, *, recovered: bool) -> Event:
    inbound = fields.get("Inbound", "").strip().lower()
    if inbound in {"false", "0"} or (name == "TextSent" and not inbound):
        return Ignored("outbound")
    try:
        from_number, to_number, created = (_short(fields, field) for field in _SHORT_FIELDS)
        text_id = _text_id(fields)
    except _NoTextError as error:
        return Unreadable(f"{name}: {error}")
    if recovered and "Message" not in fields:
        return Unreadable(f"{name}: malformed, and its Message could not be recovered")
    return InboundText(
        id=text_id,
        subscription_id=_one_line(subscription)[:MAX_SHORT],
        from_number=from_number,
        to_number=to_number,
        created=created,
        message=_UNSTORABLE.sub("\ufffd", fields.get("Message", "")),
        raw=raw,
        recovered=recovered,
    )


def _short(fields: Mapping[str, str], field: str) -> str:
    value = _one_line(fields.get(field, ""))
    if not value:
        raise _NoTextError(f"{field} is missing")
    if len(value) > MAX_SHORT:
        raise _NoTextError(f"{field} has {len(value)} characters, more than {MAX_SHORT}")
    return value


def _one_line(value: str) -> str:
    """`value` as it may stand in a header: no line ends, no control characters, nothing that cannot be stored."""
    if not (value.isascii() and value.isprintable()):
        value = _CONTROLS.sub(" ", _UNSTORABLE.sub("\ufffd", value))
    return value.strip()


def _text_id(fields: Mapping[str, str]) -> int:
    value = fields.get("@id", "").strip()
    if not value:
        raise _NoTextError("Text has no id")
    if not (value.isascii() and value.isdigit() and len(value) < 20 and 0 < int(value) < 2**63):  # noqa: PLR2004 - xs:long
        raise _NoTextError(f"the id of Text is {value[:MAX_SHORT]!r}, not a positive whole number of 64 bits")
    return int(value)
