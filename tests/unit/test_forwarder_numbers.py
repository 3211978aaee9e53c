"""One number, one spelling: for comparing, for people, for logs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.numbers import mask, to_display, to_e164


@pytest.mark.parametrize(
    ("number", "region", "e164", "display"),
    [
        ("18185551212", "US", "+18185551212", "+1 818-555-1212"),
        ("+1 (818) 555-1212", "US", "+18185551212", "+1 818-555-1212"),
        ("8185551212", "US", "+18185551212", "+1 818-555-1212"),
        ("07911123456", "GB", "+447911123456", "+44 7911 123456"),
        ("447911123456", "US", "+447911123456", "+44 7911 123456"),
        ("+447911123456", "GB", "+447911123456", "+44 7911 123456"),
        ("67076", "US", "67076", "67076"),
        ("MyBank", "US", "MyBank", "MyBank"),
        ("", "US", "", ""),
    ],
)
def test_a_number_has_one_spelling(number: str, region: str, e164: str, display: str) -> None:
    """With and without plus sign, national or not; short codes and names stay as they are."""
    assert to_e164(number, region) == e164
    assert to_display(number, region) == display


@given(st.text(max_size=80))
def test_any_characters_are_some_number(number: str) -> None:
    """Whatever stands where a number should, nothing raises an error."""
    to_e164(number)
    to_display(number)


@given(st.text(max_size=80))
def test_a_masked_number_shows_at_most_four_characters(number: str) -> None:
    """And nothing at all of one that has no more."""
    shown = mask(number).removeprefix("•••")
    assert len(shown) == (4 if len(number) > 4 else 0)
    assert number.endswith(shown)
