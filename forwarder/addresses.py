"""Mail addresses: plain ASCII ones, which every mail server takes, and how several of them stand in a header."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import AfterValidator

MAX_ADDRESS: Final = 254
"""Longest address that can be mailed to (RFC 5321, 4.5.3.1.3, without the angle brackets)."""

_LOCAL: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_ADDRESS: Final = re.compile(rf"{_LOCAL}@{_LABEL}(?:\.{_LABEL})*")


def mail_address(value: str) -> str:
    """`value` if it is one plain mail address; raises ValueError if it is not."""
    if len(value) > MAX_ADDRESS:
        raise ValueError(f"{value[:40]!r}… has {len(value)} characters; a mail address has at most {MAX_ADDRESS}")
    if not _ADDRESS.fullmatch(value):
        raise ValueError(f"{value!r} is not a mail address such as texts@example.com")
    return value


def split_commas(value: Any) -> Any:
    """The parts of a comma-separated setting; anything but a string as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def address_list(addresses: Iterable[str]) -> str:
    """Several addresses as they stand in To or Cc, one a line so that no line grows too long."""
    return ",\r\n ".join(addresses)


MailAddress = Annotated[str, AfterValidator(mail_address)]
