"""What the forwarder's tests share: a real mail server with whatever manners a test needs, and a real forwarder."""

import asyncio
import grp
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, AnyStr

import psycopg
import pytest
import sqlalchemy as sa
from aiosmtpd.smtp import SMTP, Envelope, Session

from forwarder import smtp
from forwarder.commits import Commits
from forwarder.mail import Letterhead, compose_email, default_body, default_subject
from forwarder.outbox import Delivery, Outbox, Posting, Routed, connect
from forwarder.postback import InboundText
from forwarder.schema import deliveries
from forwarder.sender import Backoff, Sender
from tests.ports import free_ports

TOKEN = "0123456789abcdef0123456789abcdef"
_SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "callfire" / "samples"


def sample(name: str) -> bytes:
    """One of CallFire's documented postbacks."""
    if not _SAMPLES.is_dir():
        pytest.skip("CallFire's samples are not beside the checkout (../shared/callfire/samples)")
    return (_SAMPLES / name).read_bytes()


def text_postback(text_id: int, message: str = "Hello, World!", **fields: str) -> bytes:
    """An inbound text as CallFire posts it; the fields are already XML."""
    values = {"FromNumber": "18185551212", "ToNumber": "18186469991", "Created": "2012-09-24T05:02:35Z"} | fields
    children = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
        '<n:TextNotification xmlns="http://api.callfire.com/data" xmlns:n="http://api.callfire.com/notification/xsd">'
        f'<n:SubscriptionId>19001</n:SubscriptionId><Text id="{text_id}">{children}<State>FINISHED</State>'
        f"<Inbound>true</Inbound><FinalResult>RECEIVED</FinalResult><Message>{message}</Message></Text>"
        "</n:TextNotification>"
    ).encode()


@dataclass
class Mail:
    """One mail that the server took."""

    recipient: str
    content: bytes
    parsed: EmailMessage = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.parsed = message_from_bytes(self.content, policy=policy.default)

    @property
    def text_id(self) -> int:
        return int(self.parsed["X-CallFire-Text-Id"])

    @property
    def body(self) -> str:
        content: str = self.parsed.get_content()
        return content


class MailSink:
    """A real SMTP server in a thread; `on_mail`, `on_rcpt` and `on_data` return its answer, or None for yes."""

    def __init__(self, port: int = 0, *, pipelining: bool = True, host: str = "127.0.0.1") -> None:
        self.host = host
        self.mails: list[Mail] = []
        self.connections = 0
        self.connections_lost = 0
        self.on_mail: Callable[[], str | None] = lambda: None
        self.on_rcpt: Callable[[str], str | None] = lambda _: None
        self.on_data: Callable[[Mail, SMTP], str | None] = lambda _mail, _server: None
        self.pipelining = pipelining
        self.hangs_up = False
        """Close the connection behind every 5xx, as some servers do."""
        self.smtp_options: dict[str, Any] = {}
        self.tls: Any = None
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._transports: set[asyncio.Transport] = set()
        self.port = port or free_ports(1)[0]
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""

        async def listen() -> asyncio.Server:
            return await self._loop.create_server(self._session, self.host, self.port, ssl=self.tls)

        self._server = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(5)

    def stop(self) -> None:
        """Refuse connections, and cut those there are."""

        async def close() -> None:
            assert self._server
            self._server.close()
            for transport in list(self._transports):
                transport.abort()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(5)

    def close(self) -> None:
        """Stop for good."""

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.stop()
        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _session(self) -> SMTP:
        self.connections += 1
        sink = self

        class _Smtp(SMTP):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                sink._transports.add(transport)
                super().connection_made(transport)

            def connection_lost(self, error: Exception | None) -> None:
                sink._transports.discard(self.transport)
                sink.connections_lost += 1
                super().connection_lost(error)

            async def push(self, status: AnyStr) -> None:
                await super().push(status)
                if sink.hangs_up and self.transport and status[:1] in {"5", b"5"}:
                    self.transport.close()

        return _Smtp(self, hostname="sink.test", loop=self._loop, **self.smtp_options)

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], *(["250-PIPELINING"] if self.pipelining else []), responses[-1]]

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        answer = self.on_mail()
        if answer:
            return answer
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        answer = self.on_rcpt(address)
        if answer:
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        assert isinstance(envelope.content, bytes)
        mail = Mail(envelope.rcpt_tos[0], envelope.content)
        answer = await self._loop.run_in_executor(None, self.on_data, mail, server)
        if answer:
            return answer
        with self._changed:
            self.mails.append(mail)
            self._changed.notify_all()
        return "250 OK"

    def wait_for(self, count: int, seconds: float = 20.0) -> list[Mail]:
        """The mails, once there are `count` of them."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.mails) >= count, seconds)
        assert arrived, f"{len(self.mails)} of {count} mails within {seconds} s"
        return self.mails

    def times(self) -> Counter[tuple[int, str]]:
        """How often each text arrived at each recipient."""
        return Counter((mail.text_id, mail.recipient) for mail in self.mails)


def cut(server: SMTP) -> None:
    """Cut a connection of a mail server, from any thread."""
    if isinstance(server.transport, asyncio.Transport):  # and not gone already
        server.loop.call_soon_threadsafe(server.transport.abort)


@contextmanager
def mail_sink(**options: Any) -> Iterator[MailSink]:
    """A mail server for the time of a test."""
    sink = MailSink(**options)
    try:
        yield sink
    finally:
        sink.close()


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http(
    url: str, data: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
) -> Answer:
    """One request; statuses are answers, not errors."""
    request = urllib.request.Request(url, data, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.headers.items()})
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read(), {k.lower(): v for k, v in error.headers.items()})


class RunningForwarder:
    """`python -m forwarder` as a process of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forwarder"],
            env={name: value for name, value in os.environ.items() if not name.startswith("FORWARDER_")} | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            ready = self.wait_for_log("forwarder.ready")
            found = re.search(r"public\W+(http[^\s\",]+)\W+admin\W+(http[^\s\",]+)", ready)
            assert found, ready
        except BaseException:
            self.kill()
            raise
        self.url, self.admin_url = found.groups()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self.lines.append("<end>")
            self._changed.notify_all()

    def wait_for_log(self, event: str, seconds: float = 30.0) -> str:
        """The first log line with `event` in it."""

        def found() -> list[str]:
            return [line for line in self.lines if event in line or line == "<end>"]

        with self._changed:
            assert self._changed.wait_for(found, seconds), f"no {event} within {seconds} s:\n{self.log}"
            line = found()[0]
        assert line != "<end>", f"the forwarder ended before {event}:\n{self.log}"
        return line

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def post(self, body: bytes, content_type: str = "text/xml; charset=UTF-8", token: str = TOKEN) -> Answer:
        return http(f"{self.url}/postback/{token}", body, {"Content-Type": content_type})

    def get(self, path: str) -> Answer:
        """Ask the admin port."""
        return http(self.admin_url + path)

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        self.process.kill()
        self._end()

    def stop(self) -> int:
        """SIGTERM, and wait until it has drained."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        code = self.process.wait(30)
        self._reader.join(10)
        if self.process.stderr:
            self.process.stderr.close()
        return code


def environment(state_dir: Path, smtp_port: int, **settings: str) -> dict[str, str]:
    """Settings of a forwarder for a test; further ones by their name without the prefix."""
    values = {
        "TOKENS": TOKEN,
        "PORT": "0",
        "ADMIN_PORT": "0",
        "STATE_DIR": str(state_dir),
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(smtp_port),
        "SMTP_SECURITY": "none",
        "MAIL_FROM": "texts@example.com",
        "MAIL_TO": "office@example.com",
    } | {name.upper(): value for name, value in settings.items()}
    return {f"FORWARDER_{name}": value for name, value in values.items()}


@contextmanager
def running(settings: dict[str, str]) -> Iterator[RunningForwarder]:
    """A forwarder for the time of a block, whatever becomes of it."""
    forwarder = RunningForwarder(settings)
    try:
        yield forwarder
    finally:
        if forwarder.process.poll() is None:
            forwarder.stop()
        else:
            forwarder._end()


def inbound(text_id: int, message: str = "Hello, World!", **fields: Any) -> InboundText:
    """A text as the parser gives it."""
    values = {
        "subscription_id": "19001",
        "from_number": "18185551212",
        "to_number": "18186469991",
        "created": "2012-09-24T05:02:35Z",
        "raw": b"<raw/>",
    } | fields
    return InboundText(id=text_id, message=message, **values)


def posting(
    *texts: InboundText, recipients: tuple[str, ...] = ("office@example.com",), received_at: float | None = None
) -> Posting:
    """A postback with these texts, for these recipients."""
    routed = tuple(Routed(text, "default", recipients) for text in texts)
    return Posting(time.time() if received_at is None else received_at, routed)


def open_outbox(url: str, **options: Any) -> Outbox:
    """An outbox that is ready for use."""
    outbox = Outbox(connect(url), **options)
    outbox.migrate()
    outbox.register()
    return outbox


def states(outbox: Outbox) -> dict[tuple[int, str], str]:
    """The state of every delivery."""
    with outbox.reading() as connection:
        rows = connection.execute(sa.select(deliveries.c.text_id, deliveries.c.recipient, deliveries.c.state))
        return {(row.text_id, row.recipient): row.state for row in rows}


@dataclass
class Engine:
    """Outbox, commits and sender, without HTTP."""

    outbox: Outbox
    commits: Commits
    sender: Sender
    counts: Counter[str]

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        """Wait for a condition that nobody announces."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.005)


@asynccontextmanager
async def engine(  # noqa: PLR0913 - what a test may want otherwise
    outbox: Outbox,
    port: int,
    *,
    patience: float = 5.0,
    backoff: Backoff | None = None,
    security: smtp.Security = smtp.Security.NONE,
    context: Any = None,
    login: tuple[str, str] | None = None,
    connections: int = 4,
    compose: Callable[[Delivery], smtp.Envelope] | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[Engine]:
    """An engine with little patience, for the time of a block."""
    letterhead = Letterhead("texts@example.com", b"k" * 32)

    def mail(delivery: Delivery) -> smtp.Envelope:
        text = delivery.text
        subject, body = default_subject(text), default_body(text)
        content = compose_email(
            letterhead, text, delivery.received_at, to=delivery.recipient, subject=subject, body=body
        )
        return smtp.Envelope("texts@example.com", delivery.recipient, content)

    username, password = login or (None, None)
    server = smtp.MailServer(host, port, security, username, password, timeout=patience)
    counts: Counter[str] = Counter()
    sender = Sender(
        server,
        context,
        compose or mail,
        lambda result: commits.report(result),  # noqa: PLW0108 - there is none yet
        lambda: commits.wake(),  # noqa: PLW0108 - as above
        connections=connections,
        backoff=backoff or Backoff(0.02, 0.1),
    )
    commits = Commits(outbox, sender, counts.update)
    sender.start()
    running = asyncio.create_task(commits.run())
    try:
        yield Engine(outbox, commits, sender, counts)
    finally:
        commits.stop_claiming()
        await sender.stop(2.0)
        await commits.stop()
        await running


_POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))


class PostgreSQL:
    """A real PostgreSQL server on a Unix-domain socket in a folder of its own, run by nobody in particular."""

    def __init__(self) -> None:
        if not _POSTGRESQL:
            pytest.skip("PostgreSQL is not installed (Debian: postgresql, see tests/debian-packages.txt)")
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            user = pwd.getpwnam("nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._user = {"user": user.pw_uid, "group": grp.getgrgid(user.pw_gid).gr_name, "extra_groups": []}
        self._run("initdb", "-D", self.folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self.start()

    def _run(self, program: str, *arguments: object) -> None:
        command: list[str | Path] = [_POSTGRESQL[-1] / program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **self._user)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_POSTGRESQL[-1] / "postgres", "-D", "data", "-k", str(self.folder), "-c", "listen_addresses="],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._user,
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self._url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.05)  # nobody tells when it is ready
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT cuts connections, SIGQUIT is a crash."""
        if self._process:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """Stop it for good."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def database(self, *options: str) -> str:
        """The URL of a new database."""
        self._databases += 1
        name = f"outbox{self._databases}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {' '.join(options)}".encode())
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.folder}"


class Watcher:
    """A real HTTP server that counts what is fetched, and answers with `status`."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.heard = threading.Event()
        self.status = 200
        watcher = self

        class _Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                watcher.paths.append(self.path)
                watcher.heard.set()
                self.send_response(watcher.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/ping/secret-uuid"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
