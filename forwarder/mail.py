"""From a text to the bytes of an email: pure, and by hand, because `EmailMessage` costs more than all else together.

What a line of a header may hold is decided here and nowhere else: a value reaches it as one printable line, encoded if
it is not plain ASCII, so that nothing a sender writes can become a header. The tests compare with the standard library.
"""

import binascii
import hmac
import re
from dataclasses import dataclass
from email.header import Header
from email.utils import formatdate
from functools import cached_property, lru_cache
from typing import Final

from forwarder.numbers import to_display, to_e164
from forwarder.postback import InboundText

MAX_LINE: Final = 998
"""Longest line of a mail, in bytes (RFC 5322, 2.1.1)."""
MAX_SUBJECT: Final = 250
"""Longest subject, in characters; a longer one ends in an ellipsis."""

_RECOVERED: Final = "X-CallFire-Recovered: malformed postback\r\n"
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_SPACE: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Letterhead:
    """What every mail of one forwarder has in common."""

    address: str
    """Sender of every mail."""
    thread_key: bytes
    """Keys the hash that names a conversation, so that its id tells nobody the numbers."""
    region: str = "US"
    """Where a number without a country code belongs."""

    @cached_property
    def domain(self) -> str:
        """What stands behind the @ in Message-IDs."""
        return self.address.rpartition("@")[2]


def conversation(letterhead: Letterhead, from_number: str, to_number: str) -> str:
    """Message-ID of the mail that never was, under which clients gather all mails between these two numbers."""
    pair = f"{to_e164(from_number, letterhead.region)} {to_e164(to_number, letterhead.region)}"
    digest = hmac.digest(letterhead.thread_key, pair.encode(), "sha256").hex()[:32]
    return f"<sms-{digest}@{letterhead.domain}>"


def default_subject(text: InboundText) -> str:
    """The tutorial's subject, to the letter (CONTRACT.md, section 7)."""
    return f"{text.to_number} received a new SMS from {text.from_number}"


def default_body(text: InboundText, time: str | None = None) -> str:
    """The tutorial's body, to the letter; `time` is shown instead of what CallFire sent."""
    return f"From: {text.from_number}\n  To: {text.to_number}\nTime: {time or text.created}\nText: {text.message}\n"


def compose_email(  # noqa: PLR0913 - a mail has this many parts
    letterhead: Letterhead,
    text: InboundText,
    received_at: float,
    *,
    to: str,
    cc: str = "",
    subject: str,
    body: str,
    name: str | None = None,
) -> bytes:
    """The mail for `text`, with CRLF line ends, byte for byte the same at every attempt.

    `to` and `cc` are addresses as they stand in the header; `name` is shown for the sender instead of the number.
    """
    encoding, content = _content(body)
    head = (
        f"{_sender_lines(letterhead, text.from_number, text.to_number, name)}"
        f"To: {to}\r\n"
        f"{f'Cc: {cc}' + chr(13) + chr(10) if cc else ''}"
        f"Subject: {header_value('Subject', subject)}\r\n"
        f"Date: {formatdate(received_at, usegmt=True)}\r\n"
        f"Message-ID: <text-{text.id}@{letterhead.domain}>\r\n"
        "Auto-Submitted: auto-generated\r\n"
        f"X-CallFire-Text-Id: {text.id}\r\n"
        f"X-CallFire-Subscription-Id: {header_value('X-CallFire-Subscription-Id', text.subscription_id)}\r\n"
        f"{_RECOVERED if text.recovered else ''}"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode("ascii") + content


@lru_cache(4096)
def _sender_lines(letterhead: Letterhead, from_number: str, to_number: str, name: str | None) -> str:
    """The header lines that are the same for a whole conversation."""
    shown = f"{name or to_display(from_number, letterhead.region)} via CallFire"
    thread = conversation(letterhead, from_number, to_number)
    return f"From: {_display_name(shown)} <{letterhead.address}>\r\nIn-Reply-To: {thread}\r\nReferences: {thread}\r\n"


def _display_name(name: str) -> str:
    line = one_line(name)
    if _PLAIN.fullmatch(line) and "=?" not in line:
        escaped = line.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return _encoded("From", line)


def header_value(header: str, value: str) -> str:
    """`value` as it may stand behind `header:`, whatever it holds."""
    line = one_line(value)
    if len(line) > MAX_SUBJECT:
        line = line[: MAX_SUBJECT - 1] + "…"
    return line if _PLAIN.fullmatch(line) and "=?" not in line else _encoded(header, line)


def one_line(value: str) -> str:
    """`value` without line ends, tabs and control characters."""
    return value if _PLAIN.fullmatch(value) else _SPACE.sub(" ", value).strip()


def _encoded(header: str, line: str) -> str:
    return Header(line, "utf-8", header_name=header).encode(linesep="\r\n")


def _content(body: str) -> tuple[str, bytes]:
    """Transfer encoding and content of `body`: as it is where every mail server takes that, else base64."""
    text = _LINE_END.sub("\r\n", body)
    raw = text.encode("utf-8", "replace")
    if text.isascii() and "\0" not in text and max(map(len, text.split("\r\n"))) <= MAX_LINE:
        return "7bit", raw
    return "base64", b"".join(
        binascii.b2a_base64(raw[start : start + 57], newline=False) + b"\r\n" for start in range(0, len(raw), 57)
    )
