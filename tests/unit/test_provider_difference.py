"""What a difference leads to: the table, and that nothing else is one."""

from typing import Any

import pytest
from pulumi.output import Unknown

from provider.difference import RULES, Change, compare

HELD: dict[str, Any] = {
    "endpoint": "https://mail.example.com/postback/0123456789abcdef",
    "notification_format": "XML",
    "trigger_event": "INBOUND_TEXT_FINISHED",
    "enabled": True,
    "filter": {
        "broadcast_id": "1",
        "batch_id": "2",
        "from_number": "18185551212",
        "to_number": "18186469991",
        "inbound": True,
    },
}
OTHER = {
    "endpoint": "https://mail.example.com/postback/fedcba9876543210",
    "notification_format": "JSON",
    "trigger_event": "INBOUND_CALL_FINISHED",
    "enabled": False,
    "non_strict_ssl": True,
    "broadcast_id": "3",
    "batch_id": "4",
    "from_number": "18185551213",
    "to_number": "18186469992",
    "inbound": False,
}


@pytest.mark.parametrize("name", RULES)
def test_another_value_is_an_update(name: str) -> None:
    """Of every property."""
    top, _, below = name.partition(".")
    value = {**HELD["filter"], below: OTHER[below]} if below else OTHER[top]
    difference = compare(HELD, {**HELD, top: value})
    assert difference.updates == (name,)
    assert difference.replaces == ()
    assert difference.changes == {top: value}


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.taken_away is Change.REPLACE])
def test_taking_away_what_callfire_may_not_clear_is_a_replacement(name: str) -> None:
    """The trigger and the fields of the filter."""
    top, _, below = name.partition(".")
    value = {n: v for n, v in HELD["filter"].items() if n != below} if below else None
    assert compare(HELD, {**HELD, top: value}).replaces == (name,)


@pytest.mark.parametrize("nothing", [None, {}])
def test_taking_the_whole_filter_away_is_a_replacement(nothing: dict[str, Any] | None) -> None:
    """However it is written."""
    assert len(compare(HELD, {**HELD, "filter": nothing}).replaces) == 5


def test_taking_non_strict_ssl_away_makes_it_strict_again() -> None:
    """Left out means strict, so the difference has a cure."""
    difference = compare({**HELD, "non_strict_ssl": True}, HELD)
    assert difference.changes == {"non_strict_ssl": False}
    assert not compare({**HELD, "non_strict_ssl": False}, HELD)


@pytest.mark.parametrize(
    "same",
    [
        {"endpoint": "HTTPS://MAIL.example.com:443/postback/0123456789abcdef"},
        {"trigger_event": "inbound_text_finished"},
        {"filter": dict(reversed(HELD["filter"].items()))},
        {"filter": {**HELD["filter"], "to_number": "+1 818 646 9991", "batch_id": 2.0}},
        {"__provider": "another blob", "__name": "another name", "adopt": False, "expires_at": 7},
    ],
)
def test_another_spelling_is_no_difference(same: dict[str, object]) -> None:
    """Nor is anything that is not declared."""
    assert not compare({**HELD, **same}, HELD)


def test_a_changed_filter_is_sent_whole() -> None:
    """Whether CallFire keeps the fields that an update's filter leaves out is unknown."""
    wanted = {**HELD["filter"], "to_number": "18186469992"}
    assert compare(HELD, {**HELD, "filter": wanted}).changes == {"filter": wanted}


def test_what_is_not_known_yet_may_change() -> None:
    """A preview says so."""
    unknown = Unknown()
    assert compare(HELD, {**HELD, "endpoint": unknown}).updates == ("endpoint",)
    assert "filter.to_number" in compare(HELD, {**HELD, "filter": unknown}).updates
    assert compare(HELD, {**HELD, "filter": {**HELD["filter"], "to_number": unknown}}).updates == ("filter.to_number",)
