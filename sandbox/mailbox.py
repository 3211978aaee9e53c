"""A mailbox: mails that have arrived, to be looked at one by one or by conversation. It knows nothing of CallFire."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import cached_property
from itertools import count
from typing import Any

from sandbox.journal import BoundedLog, Feed, Topic

MAX_PARSED = 128 * 1024
"""Bytes of a mail that are read; what stands behind them is only in the raw mail. Parsing takes up to 6 us a byte."""
MAX_HEADER = 2000
"""Characters of a header that are decoded; a longer one is shown as it was sent, as decoding can take its square."""

_MESSAGE_ID = re.compile(r"<[^<>\s]+>")


class _Policy(policy.EmailPolicy):
    """The standard library's reading of a mail, except that it never decodes a header beyond the bound."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        return value if len(value) > MAX_HEADER else super().header_fetch_parse(name, value)


_POLICY = _Policy()


@dataclass(frozen=True, kw_only=True)
class Mail:
    """One mail as it arrived. `id` increases; `raw` is the message with CRLF line ends."""

    id: int
    mail_from: str
    rcpt_to: list[str]
    raw: bytes
    received: datetime = field(default_factory=lambda: datetime.now(UTC))

    def size(self) -> int:
        """Roughly its bytes in memory, read or not."""
        return 2000 + len(self.raw) + 3 * min(len(self.raw), MAX_PARSED)

    @cached_property
    def message(self) -> EmailMessage:
        """The message, parsed when first looked at."""
        try:
            return message_from_bytes(self.raw[:MAX_PARSED], policy=_POLICY)  # type: ignore[arg-type]  # typeshed
        except RecursionError:  # parts within parts within parts
            return EmailMessage(_POLICY)

    @property
    def subject(self) -> str:
        """The subject, decoded; empty if there is none."""
        return self._header("Subject")

    @property
    def text(self) -> str:
        """The plain text of the mail, its lines ended by line feeds; empty if it has none."""
        return self._content("plain")

    @property
    def html(self) -> str:
        """The HTML of the mail; empty if it has none."""
        return self._content("html")

    @cached_property
    def headers(self) -> dict[str, str]:
        """All headers, decoded, by name as written; the values of a repeated one stand on lines of their own."""
        found: dict[str, str] = {}
        for name, raw in self.message.raw_items():
            value = _decoded(name, raw)
            found[name] = f"{found[name]}\n{value}" if name in found else value
        return found

    @cached_property
    def references(self) -> list[str]:
        """The message ids this mail refers to, oldest first, from References and In-Reply-To."""
        written = f"{self._header('References')} {self._header('In-Reply-To')}"
        return list(dict.fromkeys(_MESSAGE_ID.findall(written)))

    @property
    def message_id(self) -> str | None:
        """The mail's own id, in angle brackets; None if it has none."""
        found = _MESSAGE_ID.search(self._header("Message-ID"))
        return found[0] if found else None

    def as_json(self) -> dict[str, Any]:
        """The mail as the mailbox API shows it."""
        return dict(self._shown)

    @cached_property
    def _shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "mail_from": self.mail_from,
            "rcpt_to": self.rcpt_to,
            "subject": self.subject,
            "message_id": self.message_id,
            "references": self.references,
            "headers": self.headers,
            "text": self.text,
            "html": self.html,
            "received": self.received.isoformat(),
        }

    def _header(self, name: str) -> str:
        """The first header of that name, decoded; empty if there is none."""
        return next(
            (_decoded(name, raw) for known, raw in self.message.raw_items() if known.lower() == name.lower()), ""
        )

    def _content(self, kind: str) -> str:
        try:
            part = self.message.get_body(preferencelist=(kind,))
            text = "" if part is None else str(part.get_content())
        except Exception:  # noqa: BLE001 - as in _decoded; a broken mail is shown as it came
            text = self.raw[:MAX_PARSED].partition(b"\r\n\r\n")[2].decode("utf-8", "replace") if kind == "plain" else ""
        return text.replace("\r\n", "\n")


def _decoded(name: str, raw: str) -> str:
    """A header's value as people read it; as it was sent where that cannot be made out."""
    try:
        return str(_POLICY.header_fetch_parse(name, raw))
    except Exception:  # noqa: BLE001 - the standard library's parser raises all sorts of things over broken headers
        return str(raw)


class Mailbox:
    """The mails that have arrived.

    Args:
        feed: is told about every mail.
    """

    def __init__(self, feed: Feed) -> None:
        self.mails: BoundedLog[Mail] = BoundedLog(max_entries=5000, max_bytes=128 * 1024 * 1024)
        self._feed = feed
        self._ids = count(1)

    def add(self, mail_from: str, rcpt_to: list[str], raw: bytes) -> Mail:
        """Keep a mail."""
        mail = Mail(id=next(self._ids), mail_from=mail_from, rcpt_to=rcpt_to, raw=raw)
        self.mails.add(mail)
        self._feed.publish(Topic.MAILS)
        return mail

    def clear(self) -> None:
        """Throw all mails away. Ids go on counting, so that a wait for the next mail keeps its meaning."""
        self.mails.clear()
        self._feed.publish(Topic.MAILS)


def threads(mails: Iterable[Mail]) -> list[list[Mail]]:
    """Mails by conversation, as a mail program shows them.

    Mails belong together if one refers to the other, or both to a third, whether that one ever arrived or not
    (RFC 5322 section 3.6.4). Within a conversation the oldest mail stands first; of the conversations, the one with
    the newest mail.
    """
    leader: dict[str, str] = {}

    def find(ident: str) -> str:
        while leader.setdefault(ident, ident) != ident:
            leader[ident] = ident = leader[leader[ident]]
        return ident

    keys = []
    for mail in mails:
        key = mail.message_id or f"mail {mail.id}"
        for reference in mail.references:
            leader[find(key)] = find(reference)
        keys.append((key, mail))
    conversations: dict[str, list[Mail]] = {}
    for key, mail in keys:
        conversations.setdefault(find(key), []).append(mail)
    return sorted(conversations.values(), key=lambda conversation: -conversation[-1].id)
