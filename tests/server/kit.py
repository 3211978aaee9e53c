"""What the tests of hosting on servers share: declarations, a load of posts, releases that are broken on purpose."""

import contextlib
import shutil
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Protocol, Self

import pytest

from hosting import release as releases
from hosting import ssh
from hosting.server import ServerForwarderProvider, declare
from tests.forwarder_kit import TOKEN, MailSink, http, text_postback
from tests.server.machine import Machine

Properties = dict[str, Any]


class Mailboxes(Protocol):
    """A mail server of a test."""

    @property
    def port(self) -> int:
        """Where it takes mail."""

    def times(self) -> Counter[tuple[int, str]]:
        """How often each text arrived at each recipient."""


def declared(*machines: Machine, sink: Mailboxes, **changes: Any) -> Properties:
    """What a program declares: a forwarder on these machines that mails to `sink`; with `changes`."""
    settings = {
        "FORWARDER_ADMIN_PORT": "8711",
        "FORWARDER_SMTP_HOST": machines[0].gateway,
        "FORWARDER_SMTP_PORT": str(sink.port),
        "FORWARDER_SMTP_SECURITY": "none",
        "FORWARDER_MAIL_FROM": "texts@example.com",
        "FORWARDER_MAIL_TO": "office@example.com",
    }
    props: Properties = {
        "name": "production",
        "hosts": [machine.ip for machine in machines],
        "access": {
            "user": "deploy",
            "port": 22,
            "known_hosts": [line for machine in machines for line in machine.known_hosts],
            "key_file": machines[0].key,
            "jump": "",
            "python": "python3",
        },
        "key": "",
        "domain": "",
        "tls": "none",
        "certificate": [],
        "acme_directory": "",
        "listen": "0.0.0.0:8710",
        "secrets": {},
        "tokens": [TOKEN],
        "retire_after": 86400.0,
        "offline": True,
        "purge": False,
        "release": releases.name(),
        **changes,
        "settings": settings | changes.get("settings", {}),
    }
    return props | {"servers": {host: declare(props) for host in props["hosts"]}}


def read(provider: ServerForwarderProvider, outputs: Properties) -> Properties:
    """Refresh: the outputs as they are now."""
    found = provider.read("id", dict(outputs)).outs
    assert found is not None
    return dict(found)


def differing(seen: Properties, declaration: Properties) -> dict[str, Any]:
    """What a refresh shows to differ on the first server."""
    host = declaration["hosts"][0]
    there, wanted = seen["servers"][host], declaration["servers"][host]
    return {name: there[name] for name in wanted if there[name] != wanted[name]}


def ip6_of(machine: Machine) -> str:
    """Return the IPv6 address of a machine, without which a test can't be."""
    if machine.ip6 not in machine.run("ip -6 address show dev eth0"):
        pytest.skip("this machine has no IPv6")
    return machine.ip6


def post(machine: Machine, text_id: int, token: str = TOKEN) -> int:
    """Post one text; returns the status of the answer."""
    url = f"http://{machine.ip}:8710/postback/{token}"
    return http(url, text_postback(text_id), {"Content-Type": "text/xml"}).status


class Load:
    """Posts texts without a pause, every second thread on new connections, the others on one that is kept alive."""

    def __init__(  # noqa: PLR0913 - what a test may want otherwise
        self,
        address: Callable[[], tuple[str, int]],
        *,
        threads: int = 4,
        first: int = 1_000_000,
        tls: ssl.SSLContext | None = None,
        domain: str = "localhost",
        text: Callable[[int], bytes] = text_postback,
    ) -> None:
        self.answers: Counter[str] = Counter()
        self.accepted: list[int] = []
        self._address = address
        self._stop = threading.Event()
        self._next = iter(range(first, first + 10_000_000))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._post, args=(bool(n % 2),), daemon=True) for n in range(threads)]
        self._tls = tls
        self._text = text
        self._headers = {"Content-Type": "text/xml", "Host": domain}
        self.pause = 0.005  # seconds, between a thread's posts

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.wait_for(20)
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for(self, more: int) -> None:
        """Wait until so many more were answered."""
        goal = len(self.accepted) + more
        deadline = time.monotonic() + 60
        while len(self.accepted) < goal:
            assert time.monotonic() < deadline, f"only {self.answers}"
            time.sleep(0.01)

    def _connect(self) -> HTTPConnection:
        connection = HTTPConnection(*self._address(), timeout=30)
        connection.connect()
        if self._tls:
            connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=self._headers["Host"])
        return connection

    def _post(self, keep: bool) -> None:  # noqa: FBT001 - each thread has one way
        connection: HTTPConnection | None = None
        while not self._stop.is_set():
            with self._lock:
                ident = next(self._next)
            try:
                if connection is None:
                    connection = self._connect()
                connection.request("POST", f"/postback/{TOKEN}", self._text(ident), self._headers)
                answer = connection.getresponse()
                answer.read()
                said = str(answer.status)
                if answer.status == 200:
                    self.accepted.append(ident)
                closing = answer.will_close
            except (OSError, HTTPException) as error:
                said, closing = type(error).__name__, True
            self.answers[said] += 1
            if (closing or not keep) and connection:
                connection.close()
                connection = None
            time.sleep(self.pause)
        if connection:
            connection.close()

    def check(self, sink: Mailboxes) -> None:
        """Every post was answered 200, and every text was mailed once."""
        assert self.repeated(sink) == {}

    def repeated(self, sink: Mailboxes) -> dict[tuple[int, str], int]:
        """Every post was answered 200, and every text was mailed; returns those that were mailed more than once."""
        assert set(self.answers) == {"200"}, self.answers
        wanted = {(ident, "office@example.com") for ident in self.accepted}
        deadline = time.monotonic() + 60
        while not wanted <= set(sink.times()):
            assert time.monotonic() < deadline, f"{len(wanted - set(sink.times()))} of {len(wanted)} not mailed"
            time.sleep(0.05)
        return {key: count for key, count in sink.times().items() if key in wanted and count != 1}


@contextmanager
def broken_release(monkeypatch: pytest.MonkeyPatch, folder: Path, change: Callable[[Path], None]) -> Iterator[str]:
    """Another release for the time of a block: the forwarder's sources as `change` leaves them."""
    for name in ("forwarder", "pyproject.toml", "requirements-forwarder.txt", "requirements-installer.txt"):
        source, target = releases.PROJECT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    change(folder / "forwarder")
    with monkeypatch.context() as patched:
        patched.setattr(releases, "PROJECT", folder)
        yield releases.name()


def change_on_server(monkeypatch: pytest.MonkeyPatch, folder: Path, file: str, old: str, new: str) -> None:
    """Change a source of what is sent along to a server, such as how long it waits, for the rest of a test."""
    shutil.copytree(ssh.ON_SERVER, folder / "on_server", ignore=shutil.ignore_patterns("__pycache__"))
    edit(folder / "on_server" / file, old, new)
    monkeypatch.setattr(ssh, "ON_SERVER", folder / "on_server")


VERSION = """\
\"\"\"What a later release changes.\"\"\"

from alembic import op

revision = "{version}"
down_revision = "{before}"


def upgrade() -> None:
    \"\"\"Change it.\"\"\"
    for statement in {statements}:
        op.execute(statement)
"""
ADDITIONS = (
    "ALTER TABLE delivery ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE text ADD COLUMN language VARCHAR(8)",
    "UPDATE text SET language = 'en'",
    "CREATE TABLE later (id INTEGER PRIMARY KEY)",
)


def add_version(sources: Path, version: str, *statements: str, before: str = "2") -> None:
    """Give a release tables of a version of its own, such as `3_from_2`, made by these statements from `before`."""
    file = sources / "migrations" / "versions" / f"v{version}.py"
    file.write_text(VERSION.format(version=version, before=before, statements=list(statements)))


def edit(file: Path, old: str, new: str) -> None:
    """Change a release's source; what is to be changed must be there."""
    text = file.read_text()
    assert old in text, f"{file} has no {old}"
    file.write_text(text.replace(old, new))


@contextmanager
def sink_at(machine: Machine, port: int = 0) -> Iterator[MailSink]:
    """A mail server on this side, as the machine sees it."""
    sink = MailSink(port, host=machine.gateway)
    try:
        yield sink
    finally:
        with contextlib.suppress(RuntimeError):
            sink.close()
