"""One SMTP connection against servers of every manner: each reply belongs to its mail, and nothing waits for ever."""

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult

from forwarder.errors import MailServerUnavailable
from forwarder.smtp import ConnectionLostError, Envelope, MailServer, Reply, Security, SmtpConnection
from tests.forwarder_kit import mail_sink

_Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _envelope(number: int, recipient: str = "office@example.com", body: bytes = b"Hi\r\n") -> Envelope:
    return Envelope("texts@example.com", recipient, b"X-CallFire-Text-Id: %d\r\n\r\n%b" % (number, body))


async def _open(port: int, **options: Any) -> SmtpConnection:
    security = options.pop("security", Security.NONE)
    context = options.pop("context", None)
    host = options.pop("host", "127.0.0.1")
    return await SmtpConnection.open(MailServer(host, port, security, **{"timeout": 5.0} | options), context)


async def _send(connection: SmtpConnection, envelope: Envelope) -> Reply:
    connection.offer(envelope)
    refusal = await connection.answer_to_offer(envelope)
    if refusal:
        return refusal
    connection.deliver(envelope)
    return await connection.outcome()


async def _against(talk: _Talk, use: Callable[[int], Awaitable[None]]) -> None:
    """Run `use` with the port of a server that says what `talk` says."""

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(session, "127.0.0.1", 0)
    async with server:
        await use(server.sockets[0].getsockname()[1])


def _script(*answers: bytes, pipelining: bool = True) -> _Talk:
    """A server that answers each line (or the end of content) with the next of `answers`, then says nothing more."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 script\r\n")
        await reader.readline()
        writer.write(b"250-script\r\n250 PIPELINING\r\n" if pipelining else b"250 script\r\n")
        content = False
        for answer in answers:
            line = await (reader.readuntil(b".\r\n") if content else reader.readline())
            assert line
            content = answer.startswith(b"354")
            writer.write(answer)
        await reader.read()

    return talk


def _replies(*answers: bytes, pipelining: bool = True, timeout: float = 5.0) -> Reply | str:
    """What comes of one mail to a server with these answers: a reply, or why the connection was lost."""
    found: list[Reply | str] = []

    async def use(port: int) -> None:
        connection = await _open(port, timeout=timeout)
        try:
            found.append(await _send(connection, _envelope(1)))
        except ConnectionLostError as error:
            found.append(str(error))
        connection.abort()

    asyncio.run(_against(_script(*answers, pipelining=pipelining), use))
    return found[0]


@pytest.mark.parametrize("pipelining", [True, False])
def test_mails_arrive_as_they_are_over_one_connection(pipelining: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """With PIPELINING or without; dots at the start of a line stay."""
    bodies = [b"Hi\r\n", b".\r\n..\r\n.x\r\n", b"no line end", b""]
    with mail_sink(pipelining=pipelining) as sink:

        async def use() -> None:
            connection = await _open(sink.port)
            assert connection.pipelining is pipelining
            for number, body in enumerate(bodies):
                assert (await _send(connection, _envelope(number, body=body))).accepted
            await connection.close()

        asyncio.run(use())
        assert sink.connections == 1
        assert [mail.content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for mail in sink.mails] == [
            body.removesuffix(b"\r\n") for body in bodies
        ]


def test_each_reply_belongs_to_its_mail_when_mails_travel_together() -> None:
    """The end of one mail and the announcement of the next share a write; a refused one in between moves nothing."""
    recipients = ["a@example.com", "no@example.com", "later@example.com", "b@example.com"]
    with mail_sink() as sink:
        sink.on_rcpt = {"no@example.com": "550 no", "later@example.com": "451 later"}.get

        async def use() -> list[int]:
            connection = await _open(sink.port)
            codes = []
            mails = [_envelope(number, recipient) for number, recipient in enumerate(recipients)]
            connection.offer(mails[0])
            offered = True
            for mail, following in zip(mails, [*mails[1:], None], strict=True):
                if not offered:
                    connection.offer(mail)
                refusal = await connection.answer_to_offer(mail)
                if refusal:
                    codes.append(refusal.code)
                    offered = False
                    continue
                connection.deliver(mail, following)
                offered = following is not None
                codes.append((await connection.outcome()).code)
            await connection.close()
            return codes

        assert asyncio.run(use()) == [250, 550, 451, 250]
        assert [mail.recipient for mail in sink.mails] == ["a@example.com", "b@example.com"]


@pytest.mark.parametrize(
    ("answers", "pipelining", "outcome"),
    [
        ([b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"250 taken\r\n"], True, Reply(250, "taken")),
        ([b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"250-as\r\n250-no\r\n250 7\r\n"], True, Reply(250, "as no 7")),
        ([b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"554 spam\r\n"], True, Reply(554, "spam")),
        ([b"553 not you\r\n", b"503 no\r\n", b"503 no\r\n", b"250 reset\r\n"], True, Reply(553, "not you")),
        ([b"250 a\r\n", b"550 no\r\n", b"354 go\r\n", b"554 nobody\r\n", b"250 reset\r\n"], True, Reply(550, "no")),
        ([b"250 a\r\n", b"450 later\r\n", b"503 no\r\n", b"250 reset\r\n"], True, Reply(450, "later")),
        ([b"250 a\r\n", b"550 no\r\n", b"250 reset\r\n"], False, Reply(550, "no")),
        ([b"250 a\r\n", b"250 b\r\n", b"452 full\r\n", b"250 reset\r\n"], False, Reply(452, "full")),
        ([b"250 a\r\n", b"250 b\r\n", b"250 odd\r\n"], True, "it answered DATA with: 250 odd"),
        ([b"250 a\r\n", b"250 b\r\n", b"250 odd\r\n"], False, "it answered DATA with: 250 odd"),
        ([b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"354 odd\r\n"], True, "it answered a mail with: 354 odd"),
        ([b"250 a\r\n", b"550 no\r\n421 bye\r\n"], True, Reply(550, "no")),
        ([b"250 a\r\n", b"550 no\r\n", b"354 go\r\n", b"421 bye\r\n"], True, Reply(550, "no")),
        ([b"250 a\r\n", b"550 no\r\n", b"421 bye\r\n"], False, Reply(550, "no")),
        ([b"421 busy\r\n"], True, "421 busy"),
        ([b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"421 bye\r\n"], True, "421 bye"),
        ([b"hello\r\n"], True, "it does not speak SMTP: 'hello'"),
        ([b"250x\r\n"], True, "it does not speak SMTP: '250x'"),
        ([b"250-" + b"x" * 40_000], True, "its reply does not end"),
        ([b"250-x\r\n" * 2000], True, "its reply does not end"),
    ],
)  # fmt: skip
def test_every_answer_has_its_outcome(answers: list[bytes], pipelining: bool, outcome: object) -> None:  # noqa: FBT001 - a parameter
    """What the server says of a mail is the mail's; what makes no sense breaks the connection, never another mail."""
    assert _replies(*answers, pipelining=pipelining) == outcome


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_sender_that_is_put_off_is_no_matter_of_the_mail(pipelining: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A new connection shows that the server takes nothing for now; one in use may only have had its share."""
    taken = [b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"250 taken\r\n"]
    put_off = [b"450 too much\r\n", b"503 no\r\n", b"503 no\r\n"]

    async def alone(port: int) -> None:
        with pytest.raises(MailServerUnavailable, match=rf"mail server 127\.0\.0\.1:{port}: 450 too much"):
            await _send(await _open(port), _envelope(1))

    async def after_another(port: int) -> None:
        connection = await _open(port)
        assert (await _send(connection, _envelope(1))).accepted
        with pytest.raises(ConnectionLostError, match="450 too much"):
            await _send(connection, _envelope(2))
        assert not connection.alive

    asyncio.run(_against(_script(*put_off, pipelining=pipelining), alone))
    asyncio.run(_against(_script(*taken, *put_off, pipelining=pipelining), after_another))


@pytest.mark.parametrize("said", [0, 1, 2, 3])
def test_a_silent_server_is_given_up(said: int) -> None:
    """Wherever it stops talking, the connection ends; the last word about a mail may take longer."""
    answers = [b"250 a\r\n", b"250 b\r\n", b"354 go\r\n"][:said]
    assert _replies(*answers, timeout=0.05) == ("no answer within 0.5 s" if said == 3 else "no answer within 0.05 s")


def test_something_unasked_is_not_taken_for_an_answer() -> None:
    """A stray 250 would make the next refusal a success."""
    answers = [b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"250 taken\r\n250 stray\r\n"]

    async def use(port: int) -> None:
        connection = await _open(port)
        assert (await _send(connection, _envelope(1))).accepted
        with pytest.raises(ConnectionLostError, match="it said something unasked: 250 stray"):
            await _send(connection, _envelope(2))

    asyncio.run(_against(_script(*answers), use))


def test_a_connection_that_the_server_closes_is_not_alive() -> None:
    """So that the next mail takes another."""

    async def use() -> None:
        with mail_sink() as sink:
            connection = await _open(sink.port)
            assert connection.alive
            await asyncio.get_running_loop().run_in_executor(None, sink.stop)
            async with asyncio.timeout(5):
                while connection.alive:  # noqa: ASYNC110 - nobody announces it
                    await asyncio.sleep(0.01)

    asyncio.run(use())


def test_nothing_listening_is_said_with_its_address() -> None:
    """The reason names host and port."""
    with mail_sink() as sink:
        port = sink.port
    with pytest.raises(MailServerUnavailable, match=rf"mail server 127\.0\.0\.1:{port}: "):
        asyncio.run(_open(port))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that nobody has signed, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl program is not installed")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def _server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_mails_travel_in_tls_after_a_login(security: Security, certificate: tuple[Path, Path]) -> None:
    """Both kinds of TLS, with a verified certificate, a password, and replies matched as ever."""
    context = ssl.create_default_context(cafile=certificate[0])
    with mail_sink() as sink:
        sink.smtp_options = {
            "authenticator": lambda *arguments: AuthResult(success=arguments[4].password == b"right", handled=False),
        }
        if security is Security.STARTTLS:
            sink.smtp_options |= {
                "tls_context": _server_context(certificate),
                "require_starttls": True,
                "auth_required": True,
            }
        else:
            sink.smtp_options |= {"auth_require_tls": False}
            sink.stop()
            sink.tls = _server_context(certificate)
            sink.start()

        async def use() -> None:
            connection = await _open(
                sink.port, host="localhost", security=security, context=context, username="u", password="right"
            )
            for number in range(3):
                assert (await _send(connection, _envelope(number))).accepted
            await connection.close()
            with pytest.raises(MailServerUnavailable) as refused:
                await _open(
                    sink.port, host="localhost", security=security, context=context, username="u", password="wrong-pw"
                )
            assert "535" in str(refused.value)
            assert "wrong-pw" not in str(refused.value)

        asyncio.run(use())
        assert len(sink.mails) == 3


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
def test_a_certificate_nobody_vouches_for_is_refused(security: Security, certificate: tuple[Path, Path]) -> None:
    """Nothing is said to a server that cannot prove who it is."""
    with mail_sink() as sink:
        if security is Security.STARTTLS:
            sink.smtp_options = {"tls_context": _server_context(certificate)}
        else:
            sink.stop()
            sink.tls = _server_context(certificate)
            sink.start()
        with pytest.raises(MailServerUnavailable, match=r"its certificate is refused \(self-signed"):
            asyncio.run(_open(sink.port, host="localhost", security=security, context=ssl.create_default_context()))
        assert not sink.mails


def test_a_certificate_of_another_name_is_refused(certificate: tuple[Path, Path]) -> None:
    """Whoever set the server's address reads that the name is what is wrong."""
    context = ssl.create_default_context(cafile=certificate[0])
    with mail_sink() as sink:
        sink.smtp_options = {"tls_context": _server_context(certificate)}
        with pytest.raises(MailServerUnavailable, match="set FORWARDER_SMTP_HOST to a name that stands in it"):
            asyncio.run(_open(sink.port, security=Security.STARTTLS, context=context))
        assert not sink.mails


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([b""], "no answer within 0.1 s; check FORWARDER_SMTP_HOST, FORWARDER_SMTP_PORT (usually 587"),
        ([b"421 4.7.0 too many connections\r\n"], "421 4.7.0 too many connections; the mail server's log"),
        ([b"220 hello\r\n", b"250 hello\r\n"], "it offers no log-in with a password there; check FORWARDER_SMTP_PORT"),
    ],
)
def test_why_a_server_cannot_be_used_is_said_with_what_to_do(answers: list[bytes], said: str) -> None:
    """A silent port, one that is busy, and one that is not for log-ins each have their own advice."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            writer.write(answer)
            await reader.readline()

    async def use(port: int) -> None:
        with pytest.raises(MailServerUnavailable, match=re.escape(said)):
            await _open(port, timeout=0.1 if answers == [b""] else 5.0, username="u", password="p")

    asyncio.run(_against(talk, use))


def test_a_servers_name_is_not_taken_for_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried at several addresses comes in one text with the name, which may be that of a log-in."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    with pytest.raises(MailServerUnavailable) as raised:
        asyncio.run(_open(port, host="auth.smtp.example.com"))
    assert f"auth.smtp.example.com:{port}: connection refused; check FORWARDER_SMTP_HOST and" in str(raised.value)


def test_a_server_without_starttls_gets_no_mail() -> None:
    """A connection that was to be protected is not used in the clear."""
    with (
        mail_sink() as sink,
        pytest.raises(MailServerUnavailable, match="does not offer STARTTLS, so nothing was"),
    ):
        asyncio.run(_open(sink.port, security=Security.STARTTLS, context=ssl.create_default_context()))


def test_a_password_is_not_in_the_representation() -> None:
    """Logs and tracebacks may show where mail goes, never the password."""
    assert "geheim" not in repr(MailServer("h", 25, Security.TLS, "u", "geheim"))
