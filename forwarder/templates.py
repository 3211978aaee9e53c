"""Subject and body of a mail as a template with the fields of a text.

Templates are Jinja's, in its sandbox, and plain text. A mistake in one is found when the forwarder starts: a name that
is no field by looking at the template, everything else by rendering it for texts that are likely to break it.
"""

import difflib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from typing import Any, Final

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from forwarder.contacts import Contacts
from forwarder.numbers import to_display, to_e164
from forwarder.postback import InboundText

MAX_RENDERED: Final = 1_000_000
"""Longest text that a template may make, in characters."""

FIELDS: Final = {
    "message": "what the person wrote",
    "from_number": "who wrote, as CallFire sent it: `18185551212`",
    "to_number": "the number that was written to, as CallFire sent it",
    "from_e164": "who wrote: `+18185551212`",
    "to_e164": "the number that was written to: `+18186469991`",
    "from_display": "who wrote, for people: `+1 818-555-1212`",
    "to_display": "the number that was written to, for people",
    "from_name": "who wrote: the name in the contacts file, or else `from_display`",
    "to_name": "the name of the number that was written to, or else `to_display`",
    "created": "when it was written, as CallFire sent it: `2012-09-24T05:02:35Z`",
    "time": "the same as a Python `datetime` in the route's time zone: `{{ time.strftime('%d %B, %H:%M') }}`",
    "text_id": "CallFire's id of the text",
    "subscription_id": "CallFire's id of the subscription through which it came",
    "route": "the name of the route",
}
"""What a template can use, and what it means; the table in docs/routes.md."""

_ENVIRONMENT: Final = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
)


@dataclass(frozen=True, slots=True)
class Template:
    """A template that has proved itself on the samples."""

    compiled: jinja2.Template

    def render(self, fields: dict[str, Any]) -> str:
        """The text it makes of `fields`; raises Exception of any kind, because templates can do much."""
        rendered = self.compiled.render(fields)
        if len(rendered) > MAX_RENDERED:
            raise ValueError(f"it makes {len(rendered)} characters, more than {MAX_RENDERED}")
        return rendered


def compile_template(source: str) -> Template:
    """The template written in `source`; raises ValueError saying what is wrong with it."""
    try:
        unknown = sorted(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source)) - FIELDS.keys())
        template = Template(_ENVIRONMENT.from_string(source))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from error
    if unknown:
        raise ValueError("; ".join(_unknown(name) for name in unknown))
    for what, text in _SAMPLES.items():
        try:
            template.render(text_fields(text, time.time(), "sample", None, Contacts()))
        except Exception as error:
            raise ValueError(f"fails for {what}: {error}") from error
    return template


def text_fields(
    text: InboundText, received_at: float, route: str, zone: tzinfo | None, contacts: Contacts
) -> dict[str, Any]:
    """What a template can use of `text`: the keys of FIELDS."""
    from_display, to_display_ = to_display(text.from_number), to_display(text.to_number)
    return {
        "message": text.message,
        "from_number": text.from_number,
        "to_number": text.to_number,
        "from_e164": to_e164(text.from_number),
        "to_e164": to_e164(text.to_number),
        "from_display": from_display,
        "to_display": to_display_,
        "from_name": contacts.name(text.from_number) or from_display,
        "to_name": contacts.name(text.to_number) or to_display_,
        "created": text.created,
        "time": local_time(text, received_at, zone or UTC),
        "text_id": text.id,
        "subscription_id": text.subscription_id,
        "route": route,
    }


def local_time(text: InboundText, received_at: float, zone: tzinfo) -> datetime:
    """When `text` was written, in `zone`; when it was received, if CallFire sent something that is not a time."""
    created_at = text.created_at
    try:
        return datetime.fromtimestamp(received_at if created_at is None else created_at, zone)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(received_at, zone)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, FIELDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(FIELDS)}"
    return f"{name} is no field of a text; {hint}"


_ORDINARY: Final = InboundText(
    5707328001, "19001", "18185551212", "18186469991", "2012-09-24T05:02:35Z", "Hello, World!", b""
)
_SAMPLES: Final = {
    "an ordinary text": _ORDINARY,
    "an empty text": replace(_ORDINARY, message=""),
    "a text from a short code": replace(_ORDINARY, message="Your order\r\nhas left.", from_number="72345"),
}
