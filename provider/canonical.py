"""One spelling for each value, so that two ways of writing the same thing never make a difference.

Every function returns the canonical form or raises `ValueError` with a reason that reads after the property's name and
never repeats a secret value. Each is idempotent: the canonical form of a canonical form is itself.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import phonenumbers
from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

NOTIFICATION_FORMATS: Final = ("XML", "JSON", "SOAP", "EMAIL", "LEGACY")
TRIGGER_EVENTS: Final = (
    "INBOUND_TEXT_FINISHED",
    "OUTBOUND_TEXT_FINISHED",
    "INBOUND_CALL_FINISHED",
    "OUTBOUND_CALL_FINISHED",
    "CAMPAIGN_STARTED",
    "CAMPAIGN_STOPPED",
    "CAMPAIGN_FINISHED",
    "UNDEFINED_EVENT",
)
LARGEST_ID: Final = 2**63 - 1
EXACT_FLOATS: Final = 2**53
"""Pulumi carries numbers as doubles; above this they are no longer exact."""

_HTTP_URL: Final = TypeAdapter(AnyHttpUrl)
_EMAIL: Final = re.compile(r"[^\s@:/<>\"(),;]+@[^\s@:/<>\"(),;]+\.[^\s@:/<>\"(),;.]+", re.ASCII)
_KEYWORD: Final = re.compile(r"[a-zA-Z_]+")
_SHORT_CODE: Final = re.compile(r"[0-9]{3,6}")
_DIGITS: Final = re.compile(r"[0-9]+")
_NORTH_AMERICAN: Final = re.compile(r"\+1[2-9][0-9]{2}[2-9][0-9]{6}")


def endpoint(value: object) -> str:
    """Return an http(s) URL as the WHATWG spells it, or an email address with its domain in lower case."""
    text = value.strip() if isinstance(value, str) else ""
    if _EMAIL.fullmatch(text):
        local, _, domain = text.rpartition("@")
        return f"{local}@{domain.lower()}"
    try:
        url = _HTTP_URL.validate_python(text)
    except ValidationError:
        raise ValueError(
            "must be an http:// or https:// URL, or an email address with notification_format EMAIL"
        ) from None
    if url.fragment is not None:
        raise ValueError("must not have a fragment (#…): it is never sent to a server")
    return str(url)


def is_email(canonical_endpoint: str) -> bool:
    """Whether a canonical endpoint is an email address."""
    return "://" not in canonical_endpoint


def number(value: object) -> str:
    """Return a number in CallFire's digits, country code first: `+1 (818) 646-9991` is `18186469991`.

    Short codes (`67076`), keywords (`JOIN`) and both (`67076:JOIN`) stay as they are. A number whose digits alone would
    be taken for a North American one keeps its plus sign.
    """
    text = _number_text(value)
    code, colon, keyword = text.partition(":")
    if colon:
        if not re.fullmatch(r"[0-9a-zA-Z_]+", keyword):
            raise ValueError("must have a keyword of letters, digits and _ after the colon, such as 67076:JOIN")
        return f"{number(code)}:{keyword}"
    if _KEYWORD.fullmatch(text) or _SHORT_CODE.fullmatch(text):
        return text
    return _phone_number(text)


def record_id(value: object) -> str:
    """Return one of CallFire's 64-bit ids as a string of digits."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOATS:
        value = int(value)
    text = value.strip() if isinstance(value, str) else str(value) if type(value) is int else ""
    if not re.fullmatch(r"[0-9]{1,19}", text) or not 0 < int(text) <= LARGEST_ID:
        raise ValueError("must be an id of CallFire's: a whole number above 0, as a string (numbers lose digits)")
    return str(int(text))


def notification_format(value: object) -> str:
    """Return a notification format in CallFire's capitals."""
    return _one_of(NOTIFICATION_FORMATS, value)


def trigger_event(value: object) -> str:
    """Return a trigger event in CallFire's capitals."""
    return _one_of(TRIGGER_EVENTS, value)


def lenient(canonicalise: Callable[[object], str], value: str) -> str:
    """Return the canonical form, or the value as it is: an account may hold what this provider would refuse."""
    try:
        return canonicalise(value)
    except ValueError:
        return value


def _one_of(names: tuple[str, ...], value: object) -> str:
    name = value.strip().upper() if isinstance(value, str) else ""
    if name not in names:
        raise ValueError("must be one of " + ", ".join(names))
    return name


def _number_text(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_FLOATS:
        value = int(value)
    if type(value) is int:
        return str(value)
    return value.strip() if isinstance(value, str) else ""


@lru_cache(maxsize=65536)
def _phone_number(text: str) -> str:
    e164 = _e164(text)
    if e164.startswith("+1") and not _NORTH_AMERICAN.fullmatch(e164):
        raise ValueError(
            "must be a phone number such as 18185551212: in North America, area code and exchange begin with 2 to 9"
            " (is a digit missing?), and numbers of other countries begin with +"
        )
    digits = e164.removeprefix("+")
    return digits if _e164(digits) == e164 else e164


def _e164(text: str) -> str:
    spellings = [text, f"+{text}"] if _DIGITS.fullmatch(text) else [text]
    for spelling in spellings:
        try:
            parsed = phonenumbers.parse(spelling, "US")
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_possible_number_with_reason(parsed) == phonenumbers.ValidationResult.IS_POSSIBLE:
            return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    raise ValueError("must be a phone number such as 18185551212, a short code, or a keyword such as 67076:JOIN")
