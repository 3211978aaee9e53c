"""One connection to the mail server, kept open and used for one mail after another.

aiosmtplib connects, turns TLS on and logs in. After that this module speaks for itself, because sending is where the
time goes: where the server offers PIPELINING the end of one mail and the envelope of the next travel together
(RFC 2920), which costs one round trip a mail instead of four.
"""

import asyncio
import contextlib
import re
import socket
import ssl
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NoReturn, Self, cast

import aiosmtplib

from forwarder.errors import MailServerUnavailable
from forwarder.refusals import explain

MAX_REPLY: Final = 32_768
"""Most bytes of an unfinished line; a server that sends more is broken."""
MAX_REPLY_LINES: Final = 400
CLOSING: Final = 421
"""The server hangs up, whatever it was asked (RFC 5321, 3.8)."""

GO_ON: Final = 354
"""The server waits for the content."""
PATIENCE: Final = 10
"""How many times longer the last word about a mail may take than any other reply."""
GOODBYE_SECONDS: Final = 2.0

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
    """Seconds to wait for a connection, and for each reply; ten times that for the last word about a mail, because a
    server that looks for viruses first has sent it when it answers at last (RFC 5321, 4.5.3.2.6)."""

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
    """An open, authenticated connection: `offer`, `answer_to_offer`, `deliver` (with the next offer), `outcome`.

    Each command adds to the number of replies that are owed, so that no reply is taken for that to another mail.
    """

    def __init__(self, where: str, timeout: float) -> None:
        self._where = where
        self._timeout = timeout
        self._transport: asyncio.Transport
        self._buffer = b""
        self._lines: list[str] = []
        self._replies: deque[Reply] = deque()
        self._owed = 0
        self._waiter: asyncio.Future[None] | None = None
        self._lost: str | None = None
        self._pipelining = False
        self.used = False
        """A mail has been offered on this connection before."""

    @classmethod
    async def open(cls, server: MailServer, context: ssl.SSLContext | None) -> Self:
        """Connect, protect, log in. Raises MailServerUnavailable with the reason and what to do about it."""
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.security is Security.TLS,
            start_tls=server.security is Security.STARTTLS,
            tls_context=context,
            timeout=server.timeout,
            local_hostname=_own_name(),
        )
        where = f"mail server {server.host}:{server.port}"
        try:
            async with asyncio.timeout(server.timeout):
                await client.connect()
                if client.is_ehlo_or_helo_needed:
                    await client.ehlo()
                if server.username:
                    await client.login(server.username, server.password or "")
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            if client.transport:  # closing TLS politely would wait for the other side's goodbye
                cast("asyncio.Transport", client.transport).abort()
            client.close()
            raise MailServerUnavailable(f"{where}: {explain(error, server.timeout)}") from error
        connection = cls(where, server.timeout)
        transport = cast("asyncio.Transport", client.transport)
        connection._pipelining = client.supports_extension("pipelining")
        connection._transport = transport
        transport.set_protocol(connection)
        if transport.is_closing():
            raise MailServerUnavailable(f"{where}: the connection was closed")
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
        if len(self._buffer) > MAX_REPLY:
            self._fail("its reply does not end")
            return
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            code = text[:3]
            if not (code.isascii() and code.isdigit() and text[3:4] in {"", " ", "-"}):
                self._fail(f"it does not speak SMTP: {text[:80]!r}")
                return
            self._lines.append(text[4:].strip())
            if len(self._lines) > MAX_REPLY_LINES:
                self._fail("its reply does not end")
                return
            if text[3:4] == "-":
                continue
            self._understand(Reply(int(code), " ".join(self._lines)[:500]))
            self._lines = []
        if self._replies and self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _understand(self, reply: Reply) -> None:
        if reply.code == CLOSING:
            self._fail(str(reply))
        elif len(self._replies) >= self._owed:
            self._fail(f"it said something unasked: {reply}")
        elif self._lost is None:
            self._replies.append(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember why, and tell whoever waits."""
        self._fail(f"the connection broke: {exc}" if exc else "it closed the connection")

    def _fail(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
            self._transport.abort()
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _say(self, words: bytes, replies: int) -> None:
        """Say something that so many replies are owed for."""
        self._owed += replies
        self._transport.write(words)

    async def _reply(self, patience: float | None = None) -> Reply:
        """The next reply; what came before the connection broke still counts."""
        if not self._replies:
            patience = patience or self._timeout
            loop = asyncio.get_running_loop()
            timer = loop.call_later(patience, self._fail, f"no answer within {patience:g} s")
            try:
                while not self._replies:
                    if self._lost is not None:
                        raise ConnectionLostError(self._lost)
                    self._waiter = loop.create_future()
                    await self._waiter
            finally:
                timer.cancel()
        self._owed -= 1
        return self._replies.popleft()

    def offer(self, envelope: Envelope) -> None:
        """Announce a mail; `answer_to_offer` tells whether the server wants it."""
        if self._pipelining:
            self._say(_offer(envelope), 3)
        else:
            self._say(_mail_from(envelope), 1)

    async def answer_to_offer(self, envelope: Envelope) -> Reply | None:
        """None if the server waits for the content, else its refusal; then the next offer may follow, if it is alive.

        A server may hang up on whom it refuses; what it said of the mail counts all the same. Raises
        MailServerUnavailable if it takes no mail at all for now.
        """
        first, self.used = not self.used, True
        answer = await self._reply()
        if 400 <= answer.code < 500:  # noqa: PLR2004 - RFC 5321, 4.2.1
            self._put_off(answer, first=first)
        refusal = await (self._announced(answer) if self._pipelining else self._announce(answer, envelope))
        if refusal:
            await self._tidy_up(b"RSET\r\n")
        return refusal

    def _put_off(self, answer: Reply, *, first: bool) -> NoReturn:
        """The sender is the same in every mail, so every mail would get this answer: too many of them, or no room.

        A connection that has taken some may only have had its share; whether it is so shows on the next one.
        """
        self._fail(str(answer))
        if first:
            raise MailServerUnavailable(f"{self._where}: {answer}")
        raise ConnectionLostError(str(answer))

    async def _tidy_up(self, words: bytes) -> None:
        """Say what ends a refused mail, if anybody still listens."""
        with contextlib.suppress(ConnectionLostError):
            self._say(words, 1)
            await self._reply()

    async def _announced(self, answer: Reply) -> Reply | None:
        """The answers to recipient and DATA, which were said at once with the sender (RFC 2920, 3.1)."""
        refusal = answer if answer.code >= 400 else None  # noqa: PLR2004 - RFC 5321, 4.2.1
        for _ in range(2):
            try:
                answer = await self._reply()
            except ConnectionLostError:
                if refusal:
                    return refusal
                raise
            if answer.code >= 400:  # noqa: PLR2004 - RFC 5321, 4.2.1
                refusal = refusal or answer
        if not refusal:
            self._must_be_go_on(answer)
        elif answer.code == GO_ON:  # it refused, and wants data for nobody
            await self._tidy_up(b".\r\n")
        return refusal

    async def _announce(self, answer: Reply, envelope: Envelope) -> Reply | None:
        """The same, one after the other."""
        for command in (_rcpt_to(envelope), b"DATA\r\n"):
            if answer.code >= 400:  # noqa: PLR2004 - RFC 5321, 4.2.1
                return answer
            self._say(command, 1)
            answer = await self._reply()
        if answer.code >= 400:  # noqa: PLR2004 - as above
            return answer
        self._must_be_go_on(answer)
        return None

    def _must_be_go_on(self, answer: Reply) -> None:
        if answer.code != GO_ON:
            self._fail(f"it answered DATA with: {answer}")
            raise ConnectionLostError(f"it answered DATA with: {answer}")

    def deliver(self, envelope: Envelope, then: Envelope | None = None) -> None:
        """Send the content the server waits for and, with PIPELINING, offer the next mail along with it."""
        content = _DOT.sub(b"..", envelope.content)
        end = b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n"
        self._say(content + end + (_offer(then) if then else b""), 4 if then else 1)

    async def outcome(self) -> Reply:
        """What became of the content: accepted, or not."""
        reply = await self._reply(PATIENCE * self._timeout)
        if not (reply.accepted or reply.code >= 400):  # noqa: PLR2004 - RFC 5321, 4.2.1
            self._fail(f"it answered a mail with: {reply}")
            raise ConnectionLostError(f"it answered a mail with: {reply}")
        return reply

    async def close(self) -> None:
        """Say goodbye, and don't wait long for the answer."""
        if self._lost is None:
            self._say(b"QUIT\r\n", 1)
            with contextlib.suppress(ConnectionLostError):
                await self._reply(GOODBYE_SECONDS)
        self._transport.abort()

    def abort(self) -> None:
        """Hang up."""
        self._fail("we hung up")


def _mail_from(envelope: Envelope) -> bytes:
    return b"MAIL FROM:<%b>\r\n" % envelope.sender.encode()


def _rcpt_to(envelope: Envelope) -> bytes:
    return b"RCPT TO:<%b>\r\n" % envelope.recipient.encode()


def _offer(envelope: Envelope) -> bytes:
    return b"MAIL FROM:<%b>\r\nRCPT TO:<%b>\r\nDATA\r\n" % (envelope.sender.encode(), envelope.recipient.encode())


def _own_name() -> str:
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name) else "[127.0.0.1]"
