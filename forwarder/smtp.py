"""One connection to the mail server, kept open and used for one mail after another.

aiosmtplib connects, turns TLS on and logs in. After that this module speaks for itself, because sending is where the
time goes: where the server offers PIPELINING the end of one mail and the envelope of the next travel together
(RFC 2920), which costs one round trip a mail instead of four.
"""

import asyncio
import os
import re
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self, cast

import aiosmtplib

from forwarder.errors import MailServerUnavailable

MAX_REPLY: Final = 32_768
"""Most bytes of an unfinished reply; a server that sends more is broken."""
CLOSING: Final = 421
"""The server hangs up, whatever it was asked (RFC 5321, 3.8)."""

_DOT: Final = re.compile(rb"(?m)^\.")


class Security(StrEnum):
    """How the connection to the mail server is protected."""

    STARTTLS = "starttls"
    """Plain at first, then TLS before anything else is said; refused if the server cannot."""
    TLS = "tls"
    """TLS from the first byte."""
    NONE = "none"
    """In the clear: for a mail server on this machine; never with a password."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed over, and how."""

    host: str
    port: int
    security: Security
    username: str | None = None
    password: str | None = None
    timeout: float = 60.0
    """Seconds to wait for a connection, and for each reply."""

    def __repr__(self) -> str:
        """Never the password."""
        return f"MailServer({self.host}:{self.port}, {self.security})"


@dataclass(frozen=True, slots=True)
class Envelope:
    """One mail for one recipient."""

    sender: str
    recipient: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What the mail server said."""

    code: int
    text: str

    @property
    def accepted(self) -> bool:
        """2xx: it is the server's responsibility now."""
        return 200 <= self.code < 300  # noqa: PLR2004 - RFC 5321, 4.2.1

    @property
    def permanent(self) -> bool:
        """5xx: trying again would get the same answer."""
        return 500 <= self.code < 600  # noqa: PLR2004 - RFC 5321, 4.2.1

    def __str__(self) -> str:
        """As it stands in the list of dead deliveries."""
        return f"{self.code} {self.text}"


class ConnectionLostError(Exception):
    """The connection broke, or the server stopped answering; what was under way may or may not have arrived."""


class SmtpConnection(asyncio.Protocol):
    """An open, authenticated connection: `offer`, `answer_to_offer`, `deliver` (with the next offer), `outcome`."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._transport: asyncio.Transport
        self._buffer = b""
        self._lines: list[str] = []
        self._replies: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._pipelining = False
        self.used = False
        """A mail has been offered on this connection before."""

    @classmethod
    async def open(cls, server: MailServer, context: ssl.SSLContext | None) -> Self:
        """Connect, protect, log in. Raises MailServerUnavailable with the reason."""
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.security is Security.TLS,
            start_tls=server.security is Security.STARTTLS,
            tls_context=context,
            timeout=server.timeout,
            local_hostname=_own_name(),
        )
        where = f"{server.host}:{server.port}"
        try:
            async with asyncio.timeout(server.timeout):
                await client.connect(username=server.username, password=server.password)
                if client.is_ehlo_or_helo_needed:
                    await client.ehlo()
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            client.close()
            raise MailServerUnavailable(f"mail server {where}: {_reason(error)}") from error
        connection = cls(server.timeout)
        transport = cast("asyncio.Transport", client.transport)
        connection._pipelining = client.supports_extension("pipelining")
        connection._transport = transport
        transport.set_protocol(connection)
        if transport.is_closing():
            raise MailServerUnavailable(f"mail server {where}: the connection was closed")
        return connection

    @property
    def pipelining(self) -> bool:
        """The server takes the next envelope before it has answered for the last mail."""
        return self._pipelining

    @property
    def alive(self) -> bool:
        """As far as is known."""
        return self._lost is None

    def data_received(self, data: bytes) -> None:
        """Cut what arrives into replies."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_REPLY or len(self._lines) > MAX_REPLY // 80:
            self._fail("its reply does not end")
            return
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            self._lines.append(text[4:].strip())
            if text[3:4] == "-":
                continue
            code = text[:3]
            if not (code.isascii() and code.isdigit()):
                self._fail(f"it does not speak SMTP: {text[:80]!r}")
                return
            self._replies.append(Reply(int(code), " ".join(self._lines)[:500]))
            self._lines = []
        if self._replies and self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember why, and tell whoever waits."""
        self._fail(f"the connection broke: {exc}" if exc else "it closed the connection")

    def _fail(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
            self._transport.close()
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    async def _reply(self) -> Reply:
        while not self._replies:
            if self._lost is not None:
                raise ConnectionLostError(self._lost)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._waiter
            except TimeoutError:
                self._fail(f"no answer within {self._timeout:g} s")
        reply = self._replies.popleft()
        if reply.code == CLOSING:
            self._fail(str(reply))
            raise ConnectionLostError(str(reply))
        return reply

    def offer(self, envelope: Envelope) -> None:
        """Announce a mail; `answer_to_offer` tells whether the server wants it."""
        if self._pipelining:
            self._transport.write(_offer(envelope))
        else:
            self._transport.write(_mail_from(envelope))

    async def answer_to_offer(self, envelope: Envelope) -> Reply | None:
        """None if the server waits for the content, else its refusal; after a refusal the next offer may follow."""
        self.used = True
        if self._pipelining:
            answers = [await self._reply(), await self._reply(), await self._reply()]
            if all(answer.code < 400 for answer in answers):  # noqa: PLR2004 - RFC 5321, 4.2.1
                return None
            if answers[2].code == 354:  # noqa: PLR2004 - RFC 2920, 3.1: it wants data for nobody
                self._transport.write(b".\r\n")
                await self._reply()
            refusal = next(answer for answer in answers if answer.code >= 400)  # noqa: PLR2004
        else:
            refusal = None
            for command in (None, _rcpt_to(envelope), b"DATA\r\n"):
                if command:
                    self._transport.write(command)
                answer = await self._reply()
                if answer.code >= 400:  # noqa: PLR2004
                    refusal = answer
                    break
            if refusal is None:
                return None
        self._transport.write(b"RSET\r\n")
        await self._reply()
        return refusal

    def deliver(self, envelope: Envelope, then: Envelope | None = None) -> None:
        """Send the content the server waits for and, with PIPELINING, offer the next mail along with it."""
        content = _DOT.sub(b"..", envelope.content)
        end = b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n"
        self._transport.write(content + end + (_offer(then) if then else b""))

    async def outcome(self) -> Reply:
        """What became of the content: accepted, or not."""
        return await self._reply()

    async def close(self) -> None:
        """Say goodbye, and don't wait long for the answer."""
        if self._lost is None:
            self._transport.write(b"QUIT\r\n")
            self._timeout = 2.0
            try:
                await self._reply()
            except ConnectionLostError:
                return
            self._transport.close()

    def abort(self) -> None:
        """Hang up."""
        self._transport.abort()


def _mail_from(envelope: Envelope) -> bytes:
    return b"MAIL FROM:<%b>\r\n" % envelope.sender.encode()


def _rcpt_to(envelope: Envelope) -> bytes:
    return b"RCPT TO:<%b>\r\n" % envelope.recipient.encode()


def _offer(envelope: Envelope) -> bytes:
    return b"MAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n" % (envelope.sender.encode(), envelope.recipient.encode())


def _own_name() -> str:
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name) else "[127.0.0.1]"


def _reason(error: Exception) -> str:
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return f"{error.code} {error.message}"
    cause = error.__cause__
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
        return str(cause.strerror if isinstance(cause, socket.gaierror) else os.strerror(cause.errno)).lower()
    return " ".join(str(error).split()) or type(error).__name__
