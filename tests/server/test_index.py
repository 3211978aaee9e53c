"""`offline: false`: the server fetches the libraries from a package index, which may be away or have others."""

import functools
import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from hosting import release as releases
from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, MailSink, text_postback
from tests.forwarder_kit import http as ask
from tests.server.kit import Properties, broken_release, declared, differing, read
from tests.server.machine import Machine

provider = ServerForwarderProvider()
UNIT = "callfire-mail-production"


class Index:
    """A package index (PEP 503) of the libraries that fit a Debian 12, on this side as the machine sees it."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.folder = folder
        self.machine = machine
        self.asked: list[str] = []
        for wheel in releases.libraries(releases.Platform("3.11", "x86_64", 36)):
            shutil.copy(wheel, folder)
            page = folder / "simple" / wheel.name.split("-")[0].replace("_", "-") / "index.html"
            page.parent.mkdir(parents=True)
            page.write_text(f'<a href="../../{wheel.name}">{wheel.name}</a>')
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(self.path)

        handler = functools.partial(Handler, directory=folder)
        self.server = http.server.ThreadingHTTPServer((machine.gateway, 0), handler)
        self.scheme = "http"

    def speak_tls(self, certificate: Path, key: Path) -> None:
        """Be one that the server does not trust."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.scheme = "https"

    def __enter__(self) -> Self:
        host, port = self.server.server_address[:2]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"{self.scheme}://{host!s}:{port}/simple"
        self.configure(self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def configure(self, url: str) -> None:
        """Name an index to the server's pip, as its owner does."""
        configuration = f"[global]\nindex-url = {url}\n"
        if url.startswith("http:"):
            configuration += f"trusted-host = {self.machine.gateway}\n"
        (self.machine.root / "etc/pip.conf").write_text(configuration)

    def wheel(self, name: str) -> Path:
        """Return the file of a library."""
        [found] = self.folder.glob(f"{name}-*.whl")
        return found


@pytest.fixture
def index(machine: Machine, tmp_path: Path) -> Iterator[Index]:
    """Its package index."""
    with Index(machine, tmp_path) as index:
        yield index


@pytest.fixture
def props(machine: Machine, sink: MailSink) -> Properties:
    """What the program declares."""
    return declared(machine, sink=sink, offline=False)


def refused(change: Callable[[], object]) -> str:
    """Return why something is refused: one line, that says what to do."""
    with pytest.raises(ServerError) as raised:
        change()
    said = str(raised.value)
    assert "set `offline` to true" in said
    assert "/etc/pip.conf" in said
    assert "\n" not in said
    return said


def tamper(wheel: Path) -> None:
    """Change a file, but little."""
    wheel.write_bytes(wheel.read_bytes() + b"\0")


def other_pins(sources: Path) -> None:
    """A release whose pins are written differently, so that every library is fetched again."""
    pins = sources.parent / "requirements-forwarder.txt"
    pins.write_text(f"# other pins\n{pins.read_text()}")


def test_a_first_installation_that_is_refused_leaves_nothing(machine: Machine, index: Index, props: Properties) -> None:
    """An index that does not answer, one that lacks a library, and one that has another."""
    index.configure(f"http://{machine.gateway}:9/simple")
    assert "the package index can't be asked (Connection refused)" in refused(lambda: provider.create(props))
    index.configure(index.url)
    tamper(index.wheel("idna"))
    said = refused(lambda: provider.create(props))
    assert "the package index has another idna==" in said
    index.wheel("idna").unlink()
    shutil.rmtree(index.folder / "simple" / "idna")
    assert "the package index has no idna==" in refused(lambda: provider.create(props))
    places = "/opt/callfire-mail /etc/callfire-mail /var/lib/callfire-mail* /etc/systemd/system/callfire* /root/.cache"
    assert machine.run(f"ls -d {places}", check=False) == ""


def test_an_index_that_is_not_trusted(
    machine: Machine, props: Properties, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One whose certificate the server does not know."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=index"]
    openssl += ["-addext", f"subjectAltName=IP:{machine.gateway}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(openssl, check=True, capture_output=True)
    index = Index(machine, tmp_path_factory.mktemp("index"))
    index.speak_tls(certificate, key)
    with index:
        said = refused(lambda: provider.create(props))
    assert "the package index can't be asked (certificate verify failed: self-signed certificate)" in said


def test_installed_and_upgraded_from_the_index(  # noqa: PLR0913, PLR0917 - fixtures
    machine: Machine,
    index: Index,
    props: Properties,
    sink: MailSink,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every library comes from there, and is checked; an upgrade that is refused changes nothing."""
    url = f"http://{machine.ip}:8710/postback/{TOKEN}"
    outputs = dict(provider.create(props).outs or {})
    assert {path for path in index.asked if path.endswith(".whl")} == {f"/{file.name}" for file in wheels(index)}
    assert ask(url, text_postback(1), {"Content-Type": "text/xml"}).status == 200
    assert sink.wait_for(1)[0].text_id == 1
    assert differing(read(provider, outputs), props) == {}
    index.asked.clear()
    with broken_release(monkeypatch, tmp_path_factory.mktemp("newer"), other_pins):
        monkeypatch.setattr(releases, "REQUIREMENTS", releases.PROJECT / "requirements-forwarder.txt")
        newer = declared(machine, sink=sink, offline=False)
        pid = machine.run(f"systemctl show -P MainPID {UNIT}")
        good = index.wheel("uvicorn").read_bytes()
        tamper(index.wheel("uvicorn"))
        said = refused(lambda: provider.update("id", outputs, newer))
        assert "the package index has another uvicorn==" in said
        assert machine.run(f"systemctl show -P MainPID {UNIT}") == pid
        assert machine.run("ls /opt/callfire-mail/production/releases") == props["release"]
        assert differing(read(provider, outputs), props) == {}
        index.wheel("uvicorn").write_bytes(good)
        index.asked.clear()
        outputs = dict(provider.update("id", outputs, newer).outs or {})
        assert newer["release"] in machine.run(f"systemctl show -P ExecStart {UNIT}.service")
    assert len([path for path in index.asked if path.endswith(".whl")]) == len(wheels(index))
    assert ask(url, text_postback(2), {"Content-Type": "text/xml"}).status == 200
    sink.wait_for(2)
    provider.delete("id", outputs)


def wheels(index: Index) -> list[Path]:
    """Return the files of all libraries."""
    return list(index.folder.glob("*.whl"))


def test_no_index_on_this_side(
    machine: Machine, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is sent along is fetched here first: an index that is away is told from one that lacks something."""
    kept = tmp_path_factory.mktemp("kept")
    monkeypatch.setattr(releases, "wheelhouse", lambda: kept)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(
        releases.NoIndexError, match=r"can't be fetched for 3\.11-x86_64-36: the package index does not"
    ):
        releases.libraries(releases.Platform("3.11", "x86_64", 36))
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_TRUSTED_HOST", machine.gateway)
    with pytest.raises(releases.NoWheelsError, match="No matching distribution") as raised:
        releases.libraries(releases.Platform("3.8", "x86_64", 36))
    assert not isinstance(raised.value, releases.NoIndexError)
