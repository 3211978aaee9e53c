"""Templates: the fields of a text in words of one's own, and mistakes found before the first text comes."""

import re
import time
from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from forwarder.contacts import Contacts
from forwarder.templates import FIELDS, compile_template, text_fields
from tests.forwarder_kit import inbound

CONTACTS = Contacts({"+18185551212": "Ada Lovelace"})


def _render(source: str, message: str = "Hello", **fields: str) -> str:
    zone = ZoneInfo("America/Los_Angeles")
    return compile_template(source).render(text_fields(inbound(7, message, **fields), 0.0, "sales", zone, CONTACTS))


def test_every_field_has_a_value() -> None:
    """What is documented is there, and nothing else is."""
    fields = text_fields(inbound(7), time.time(), "sales", UTC, CONTACTS)
    assert fields.keys() == FIELDS.keys()
    source = "{{ from_name }}/{{ to_name }}/{{ from_e164 }}/{{ to_display }}/{{ created }}/{{ route }}/{{ text_id }}"
    assert _render(source) == "Ada Lovelace/+1 818-646-9991/+18185551212/+1 818-646-9991/2012-09-24T05:02:35Z/sales/7"


def test_time_is_in_the_routes_time_zone() -> None:
    """What CallFire sends in UTC is shown where the reader is; what is not a time gives way to the arrival."""
    assert _render("{{ time.strftime('%d %B %Y, %H:%M %Z') }}") == "23 September 2012, 22:02 PDT"
    for created in ("yesterday", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        assert _render("{{ time.year }}", created=created) in {"1969", "9999", "1"}


def test_what_a_person_writes_is_never_a_template() -> None:
    """Braces in a message are braces."""
    assert _render("{{ message }}", "{{ 7 * 7 }}{% for %}") == "{{ 7 * 7 }}{% for %}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ from }}", "from is no field of a text; did you mean"),
        ("{% if false %}{{ sender }}{% endif %}", "sender is no field of a text; the fields are message"),
        ("{{ message", "line 1: unexpected end of template"),
        ("\n{% for %}", "line 2: "),
        ("{{ message.split()[0] }}", "fails for an empty text: list object has no element 0"),
        ("{{ message.shout() }}", "fails for an ordinary text: 'str object' has no attribute 'shout'"),
        ("{{ 1 / 0 }}", "fails for an ordinary text: division by zero"),
        ("{{ message | shout }}", "line 1: No filter named 'shout'."),
        (
            "{{ ''.__class__.__mro__ }}",
            "fails for an ordinary text: access to attribute '__class__' of 'str' object is",
        ),
        ("{{ message.__init__.__globals__ }}", "fails for an ordinary text: access to attribute '__init__'"),
        ("{% for a in range(99999999) %}{% endfor %}", "fails for an ordinary text: Range too big"),
        ("{{ 'x' * 9999999 }}", "it makes 9999999 characters"),
        ("{% include 'x' %}", "fails for an ordinary text: no loader"),
    ],
)
def test_a_mistake_is_found_before_the_first_text(source: str, said: str) -> None:
    """Wrong names, wrong syntax, what breaks for an empty text, and every way out of the sandbox."""
    with pytest.raises(ValueError, match=re.escape(said)):
        compile_template(source)
