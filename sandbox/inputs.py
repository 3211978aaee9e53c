"""Reads what people and programs ask of the control API, the command line and the Python object: JSON in, values out.

Every problem of a document is reported together, each with the field, the value and what would be right.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from sandbox.errors import InvalidInputError

EnumT = TypeVar("EnumT", bound=StrEnum)

MAX_MESSAGE = 10_000
MAX_LONG = 2**63 - 1

_KEYWORD = re.compile(r"[a-zA-Z_]+")
_NUMBER = re.compile(r"\+?[0-9]+")
_PUNCTUATION = re.compile(r"[\s.()\[\]-]")
_DIGITS = re.compile(r"[0-9]{1,19}")
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a document: how to read it, and what it is if left out."""

    read: Callable[[Any], Any]
    default: Any = None
    required: bool = False


def read_document(document: object, fields: Mapping[str, Field], what: str) -> dict[str, Any]:
    """The values of a JSON object.

    Args:
        document: what was sent.
        fields: the fields that it may have; null is as good as left out.
        what: names it in the error.

    Raises:
        InvalidInputError: lists everything that is wrong.
    """
    if not isinstance(document, Mapping):
        raise InvalidInputError(f"{what} must be a JSON object with the fields {', '.join(fields)}")
    problems = [
        f"{shown(name)} is not a field; there are {', '.join(fields)}" for name in document if name not in fields
    ]
    values = {}
    for name, field in fields.items():
        given = document.get(name)
        if given is None:
            if field.required:
                problems.append(f"{name} is missing")
            values[name] = field.default
            continue
        try:
            values[name] = field.read(given)
        except ValueError as error:
            problems.append(f"{name} {error}, not {shown(given)}")
    if problems:
        raise InvalidInputError(f"{what}: " + "; ".join(problems))
    return values


def number(value: Any) -> str:
    """A phone number or keyword as the schema allows it; spaces, dots, dashes and brackets in a number are dropped."""
    found = isinstance(value, str) and (_KEYWORD.fullmatch(value) or _NUMBER.fullmatch(_PUNCTUATION.sub("", value)))
    if not found or len(found[0]) > 32:  # noqa: PLR2004 - the longest that the sandbox holds
        raise ValueError('must be a string like "18185551212", digits with an optional +, or a keyword of letters')
    return found[0]


def message(value: Any) -> str:
    """Text that XML can carry."""
    if not isinstance(value, str) or len(value) > MAX_MESSAGE:
        raise ValueError(f"must be a string of at most {MAX_MESSAGE} characters")
    if _NOT_XML.search(value):
        raise ValueError("must hold only characters that XML can carry, so no control characters")
    return value


def ident(value: Any) -> int:
    """An id: a positive xs:long, as a number or a string of digits."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_LONG:
        raise ValueError("must be a whole number above 0")
    return value


def first_id(value: Any) -> int:
    """An id to count on from, with room above it."""
    first = ident(value)
    if first > MAX_LONG // 2:
        raise ValueError(f"must be at most {MAX_LONG // 2}")
    return first


def count(value: Any) -> int:
    """A number of times or seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LONG:
        raise ValueError("must be a whole number, 0 or more")
    return value


def fraction(value: Any) -> float:
    """A probability."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("must be a number from 0 to 1")
    return float(value)


def seconds(most: float) -> Callable[[Any], float]:
    """A reader for a span of time."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise ValueError(f"must be a number of seconds from 0 to {most:g}")
        return float(value)

    return read


def boolean(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 - read_document lists ValueErrors
    return value


def string(value: Any) -> str:
    """Some text of moderate length."""
    if not isinstance(value, str) or not 0 < len(value) <= 200:  # noqa: PLR2004 - the line says it
        raise ValueError("must be a string of 1 to 200 characters")
    return message(value)


def login(value: Any) -> str:
    """A login, as HTTP Basic can carry it."""
    name = string(value)
    if ":" in name:
        raise ValueError("must have no colon")
    return name


def endpoint(value: Any) -> str:
    """A URL or email address; which ones are right, the account decides."""
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - read_document lists ValueErrors
    return message(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """A JSON object."""
    if not isinstance(value, Mapping):
        raise ValueError("must be a JSON object")  # noqa: TRY004 - read_document lists ValueErrors
    return value


def documents(value: Any) -> list[Mapping[str, Any]]:
    """A list of JSON objects."""
    if not isinstance(value, list):
        raise ValueError("must be a list")  # noqa: TRY004 - read_document lists ValueErrors
    return [mapping(item) for item in value]


def moment(value: Any) -> datetime:
    """A time: a datetime or ISO 8601 text; without an offset it is UTC."""
    try:
        parsed = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError('must be a time like "2012-09-24T05:02:35Z"') from None
    if not 1970 <= parsed.year < 3000:  # noqa: PLR2004 - the line says it
        raise ValueError("must be a time from 1970 to 2999")
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)


def one_of(kind: type[EnumT]) -> Callable[[Any], EnumT]:
    """A reader for one of an enumeration's values."""

    def read(value: Any) -> EnumT:
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(kind)}") from None

    return read


def shown(value: object) -> str:
    """A value as an error message can hold it: in printable characters, and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004 - the line says it
