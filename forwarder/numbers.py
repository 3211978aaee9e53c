"""Phone numbers: one spelling for comparing, one for people, one for logs."""

import re
from functools import lru_cache
from typing import Final

import phonenumbers

_CACHED: Final = 10_000
_SHORT_CODE: Final = re.compile("[0-9]{3,6}")


@lru_cache(_CACHED)
def to_e164(number: str, region: str = "US") -> str:
    """`number` with its country code and a plus sign; short codes and names stay as they are."""
    found = _parse(number, region)
    return phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.E164) if found else number


@lru_cache(_CACHED)
def to_display(number: str, region: str = "US") -> str:
    """`number` as people read it: `+1 818-555-1212`."""
    found = _parse(number, region)
    return phonenumbers.format_number(found, phonenumbers.PhoneNumberFormat.INTERNATIONAL) if found else number


def is_number(number: str, region: str = "US") -> bool:
    """Whether `number` can be a phone number, or a short code."""
    return _SHORT_CODE.fullmatch(number) is not None or _parse(number, region) is not None


def mask(number: str) -> str:
    """`number` with only its last four digits left, for logs and pages: `•••1212`."""
    return f"•••{number[-4:]}" if len(number) > 4 else "•••"  # noqa: PLR2004 - the four that stay


@lru_cache(_CACHED)
def _parse(number: str, region: str) -> phonenumbers.PhoneNumber | None:
    """What `number` means where it is written in `region`.

    CallFire writes international numbers without the plus sign, people write national ones. So a number that is not
    valid in the region is tried as an international one; one that is nowhere valid, but could be, is a national one.
    """
    national, international = _read(number, region), _read(f"+{number}", None)
    for found in (national, international):
        if found and phonenumbers.is_valid_number(found):
            return found
    return national if national and phonenumbers.is_possible_number(national) else None


def _read(number: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None
