"""The mailbox's SMTP server: accepts mail for everybody, or refuses it the way it is told to. Written on aiosmtpd."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import cast

from aiosmtpd.smtp import SMTP, Envelope, Session

from sandbox.journal import Feed, Topic
from sandbox.mailbox import Mailbox
from sandbox.trouble import Rule, Trouble, Troubles

MAX_MAIL = 5 * 1024 * 1024
"""Bytes of one mail; announced with SIZE."""
MAX_CONNECTIONS = 50
MAX_RECIPIENTS = 1000
MAX_GREYLISTED = 10_000

_AT_DATA = frozenset({Trouble.MAIL_TEMPORARY, Trouble.MAIL_PERMANENT, Trouble.MAIL_HANG, Trouble.MAIL_DROP})


class SmtpServer:
    """Accepts mail into a mailbox.

    Args:
        mailbox: keeps what is accepted.
        troubles: say which mails go wrong.
        feed: is told when trouble strikes.
        pause: waits that many seconds, or for ever with None, but not beyond the end of the sandbox.
    """

    def __init__(
        self, mailbox: Mailbox, troubles: Troubles, feed: Feed, pause: Callable[[float | None], Awaitable[None]]
    ) -> None:
        self._mailbox = mailbox
        self._troubles = troubles
        self._feed = feed
        self._pause = pause
        self._connections: set[_Connection] = set()

    def protocol(self) -> SMTP:
        """A new connection's protocol."""
        return _Connection(self, self._connections)

    def stop(self) -> None:
        """Drop all connections."""
        for connection in list(self._connections):
            connection.drop()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's hook
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Aiosmtpd's hook: somebody is named to receive the mail."""
        if len(envelope.rcpt_tos) >= MAX_RECIPIENTS:
            return "452 4.5.3 too many recipients"
        if time.monotonic() < self._greylisted_until((envelope.mail_from or "", address)):
            return "450 4.2.0 greylisted, try again later"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Aiosmtpd's hook: a mail has arrived."""
        rule = self._strike(_AT_DATA)
        match rule.kind if rule else None:
            case Trouble.MAIL_TEMPORARY:
                return "451 4.3.0 trouble on demand, try again later"
            case Trouble.MAIL_PERMANENT:
                return "550 5.7.1 trouble on demand, do not try again"
            case Trouble.MAIL_HANG if rule:
                await self._pause(rule.seconds)
                return _drop(server)
        content = envelope.original_content or b""
        mail = self._mailbox.add(envelope.mail_from or "", list(envelope.rcpt_tos), content)
        return _drop(server) if rule else f"250 2.0.0 kept as mail {mail.id}"

    def _greylisted_until(self, key: tuple[str, str]) -> float:
        """When a sender and recipient are accepted, in monotonic seconds; 0 if they are not put off."""
        greylisted = self._troubles.greylisted
        if key not in greylisted and (rule := self._strike({Trouble.MAIL_GREYLIST})):
            greylisted[key] = time.monotonic() + (rule.seconds or 0)
            while len(greylisted) > MAX_GREYLISTED:
                greylisted.popitem(last=False)
        return greylisted.get(key, 0)

    def _strike(self, among: frozenset[Trouble] | set[Trouble]) -> Rule | None:
        rule = self._troubles.strike("mail", among=among)
        if rule:
            self._feed.publish(Topic.TROUBLE)
        return rule


class _Connection(SMTP):
    """One client. Beyond a number of them the next is turned away, as by any mail server."""

    def __init__(self, handler: SmtpServer, connections: set["_Connection"]) -> None:
        super().__init__(
            handler,
            hostname="sandbox.callfire.example",
            ident="callfire-sandbox",
            data_size_limit=MAX_MAIL,
            enable_SMTPUTF8=True,
        )
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            cast("asyncio.Transport", transport).write(b"421 4.3.2 too many connections\r\n")
            transport.close()
            return
        self._connections.add(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._connections:
            self._connections.discard(self)
            super().connection_lost(error)

    def drop(self) -> None:
        """Hang up at once."""
        if self.transport is not None:
            cast("asyncio.Transport", self.transport).abort()


def _drop(server: SMTP) -> str:
    if isinstance(server, _Connection):
        server.drop()
    return "421 4.3.0 dropped"
