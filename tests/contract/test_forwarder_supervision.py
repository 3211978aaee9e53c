"""Under a supervisor, as systemd is one: sockets handed over, readiness told, stopped without refusing anybody."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.forwarder_kit import TOKEN, MailSink, RunningForwarder, environment, mail_sink, text_postback

_EXEC = (
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.environ['LISTEN_PID'] = str(os.getpid())\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'forwarder'])\n"
)
"""What systemd does with a socket unit (sd_listen_fds): the socket is number 3, and LISTEN_PID is whose it is."""


@pytest.fixture
def sink() -> Iterator[MailSink]:
    """A mail server that takes everything."""
    with mail_sink() as server:
        yield server


class Supervisor:
    """Holds a listening socket and starts forwarders on it, one after the other."""

    def __init__(self, listener: socket.socket, folder: Path, sink: MailSink) -> None:
        self.listener = listener
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(folder / "notify"))
        self.notified.settimeout(30)
        self.settings = environment(folder / "state", sink.port) | {
            "NOTIFY_SOCKET": str(folder / "notify"),
            "LISTEN_FDS": "1",
        }
        self.log = (folder / "log").open("w+")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start one, and wait until it says that it is ready."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(self.listener.fileno())],
            env=os.environ | self.settings,
            pass_fds=[self.listener.fileno(), 3],
            stderr=self.log,
        )
        assert self.notified.recv(100) == b"READY=1"

    def stop(self) -> None:
        """SIGTERM, as systemd does."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        assert self.notified.recv(100) == b"STOPPING=1"
        assert self.process.wait(20) == 0
        self.process = None

    def close(self) -> None:
        """End everything."""
        if self.process:
            self.process.kill()
            self.process.wait()
        for each in (self.listener, self.notified, self.log):
            each.close()


@pytest.fixture(params=["tcp", "unix"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path, sink: MailSink) -> Iterator[Supervisor]:
    """A supervisor with a TCP or a Unix-domain socket."""
    if request.param == "tcp":
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen(4096)
    with contextlib.ExitStack() as stack:
        spare = os.open(os.devnull, os.O_RDONLY)  # so that the number 3 is never the test's own
        stack.callback(os.close, spare)
        one = Supervisor(listener, tmp_path, sink)
        stack.callback(one.close)
        yield one


def _connect(listener: socket.socket) -> HTTPConnection:
    connection = HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(listener.family)
    connection.sock.settimeout(20)
    connection.sock.connect(listener.getsockname())
    return connection


def _post(connection: HTTPConnection, text_id: int) -> tuple[int, bool]:
    """The status, and whether the server keeps the connection."""
    connection.request("POST", f"/postback/{TOKEN}", text_postback(text_id), {"Content-Type": "text/xml"})
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.getheader("connection") != "close"


def test_restarts_under_load_refuse_and_reset_nothing(supervisor: Supervisor, sink: MailSink) -> None:
    """Posts over new and kept connections while the forwarder stops and starts: each is answered 200, none is lost."""
    supervisor.start()
    statuses: list[int] = []
    errors: list[Exception] = []
    end = threading.Event()

    def posting(first: int, *, keep: bool) -> None:
        connection: HTTPConnection | None = None
        number = first
        while not end.is_set():
            try:
                connection = connection or _connect(supervisor.listener)
                status, kept = _post(connection, number)
            except Exception as error:  # noqa: BLE001 - any error is what the test looks for
                errors.append(error)
                return
            statuses.append(status)
            number += 1
            if not (keep and kept):
                connection.close()
                connection = None
        if connection:
            connection.close()

    threads = [
        threading.Thread(target=posting, args=(1_000_000 * n,), kwargs={"keep": n % 2 == 0}) for n in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for _ in range(2):
        before = len(statuses)
        while len(statuses) < before + 30 and not errors:
            time.sleep(0.01)  # nobody announces a post
        supervisor.stop()
        supervisor.start()
    end.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(statuses) == {200}
    sink.wait_for(len(statuses))
    supervisor.stop()
    assert set(sink.times().values()) == {1}


def test_a_connection_that_says_nothing_delays_a_stop_only_a_moment(supervisor: Supervisor) -> None:
    """An idle connection, and one in the middle of a request head, are no reason to be killed by the supervisor."""
    supervisor.start()
    idle, half = _connect(supervisor.listener), _connect(supervisor.listener)
    assert half.sock
    half.sock.sendall(b"POST /postback/")
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 15
    idle.close()
    half.close()


def test_a_request_under_way_is_answered_before_the_end(supervisor: Supervisor, sink: MailSink) -> None:
    """The head is there, the body comes while the forwarder stops: 200, and the text is mailed by the next."""
    supervisor.start()
    connection = _connect(supervisor.listener)
    body = text_postback(7)
    connection.putrequest("POST", f"/postback/{TOKEN}")
    connection.putheader("Content-Type", "text/xml")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:10])
    assert supervisor.process
    supervisor.process.send_signal(signal.SIGTERM)
    assert supervisor.notified.recv(100) == b"STOPPING=1"
    connection.send(body[10:])
    assert connection.getresponse().status == 200
    connection.close()
    assert supervisor.process.wait(20) == 0
    supervisor.start()
    sink.wait_for(1)
    assert sink.times() == {(7, "office@example.com"): 1}
    supervisor.stop()


def test_sockets_that_are_none_are_refused(tmp_path: Path, sink: MailSink) -> None:
    """LISTEN_FDS without sockets is a mistake of the unit, said in one sentence."""
    done = subprocess.run(
        [sys.executable, "-c", _EXEC, "0"],
        env=os.environ | environment(tmp_path, sink.port) | {"LISTEN_FDS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "LISTEN_FDS does not name sockets" in done.stderr
    assert "Traceback" not in done.stderr


class _Impatient(RunningForwarder):
    """One whose test has no patience at all."""

    def wait_for_log(self, event: str, seconds: float = 30.0) -> str:
        _begun.append(self.process)
        return super().wait_for_log(event, min(seconds, 0.0))


_begun: list[subprocess.Popen[str]] = []


def test_a_forwarder_that_is_not_ready_in_time_is_not_left_behind(tmp_path: Path, sink: MailSink) -> None:
    """The test that started it fails, and its process is gone."""
    with pytest.raises(AssertionError, match=r"no forwarder\.ready"):
        _Impatient(environment(tmp_path, sink.port))
    assert _begun[0].poll() == -signal.SIGKILL
