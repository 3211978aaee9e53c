"""A CallFire in trouble: stands in front of a sandbox and breaks what it is told to break, at the moment it is told."""

import contextlib
import http.client
import re
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from sandbox import Sandbox

PATIENCE = 120.0
"""Seconds that something may take to happen on a busy machine."""

_OPERATION = re.compile(rb"<(?:\w+:)?(\w+(?:Subscriptions?))[ >/]")


_ENVELOPE = b'<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"><e:Body>%s</e:Body></e:Envelope>'
_OTHER_ANSWER = _ENVELOPE % b"<Hello/>"
_TOO_MANY = _ENVELOPE % (
    b"<e:Fault><e:Code><e:Value>e:Sender</e:Value></e:Code>"
    b'<e:Reason><e:Text xml:lang="en">over the limit for subscription calls</e:Text></e:Reason></e:Fault>'
)


class When(Enum):
    """Where a request is struck."""

    BEFORE = "before CallFire has it"
    AFTER = "after CallFire has committed it, before the answer"


class Trouble(Enum):
    """What happens to it there."""

    DROP = "the connection is cut"
    UNAVAILABLE = "503"
    WEB_PAGE = "503 with a page of HTML"
    TOO_MANY = "429 with a fault that has no code of CallFire's"
    OTHER_ANSWER = "200 with an envelope that holds something else"
    LATE = "nothing for some seconds, then all goes on"
    HOLD = "nothing until the test says how it goes on"


@dataclass
class Strike:
    """One piece of trouble for the next request of an operation."""

    operation: str
    when: When
    trouble: Trouble
    seconds: float = 0.0
    drop: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float = PATIENCE) -> None:
        """Wait until a request is held."""
        assert self.reached.wait(seconds), f"no {self.operation} came"

    def release(self, *, drop: bool = False) -> None:
        """Let the held request go on, or cut its connection."""
        self.drop = drop
        self.released.set()

    def wait_for_answer(self, seconds: float = PATIENCE) -> None:
        """Wait until the answer to the request that was let go on has been sent."""
        assert self.answered.wait(seconds), f"no answer to {self.operation} was sent"


class TroubledCallFire:
    """A server on loopback that passes requests on to the sandbox.

    Attributes:
        url: its base address.
        latency: seconds that every answer takes at least.
        counts: requests that reached the sandbox, by operation.
        log: of each answered request its operation, and when it came and was answered (monotonic seconds).
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._target = urlsplit(sandbox.url)
        self._strikes: deque[Strike] = deque()
        self._lock = threading.Lock()
        self.latency = 0.0
        self.counts: Counter[str] = Counter()
        self.log: list[tuple[str, float, float]] = []

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's delayed acknowledgement

            def do_POST(self) -> None:
                outer._handle(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for strike in self._strikes:
            strike.release(drop=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def strike(self, operation: str, when: When, trouble: Trouble, *, times: int = 1, seconds: float = 0.0) -> Strike:
        """Trouble the next request (or the next several) of an operation; the last strike is returned."""
        for _ in range(times):
            strike = Strike(operation, when, trouble, seconds)
            self._strikes.append(strike)
        return strike

    def forget(self) -> None:
        """Trouble nobody any more."""
        with self._lock:
            self._strikes.clear()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        found = _OPERATION.search(body)
        operation = found.group(1).decode() if found else ""
        came = time.monotonic()
        strike = self._due(operation)
        if strike and strike.when is When.BEFORE and self._ended(handler, strike):
            return
        with self._lock:
            self.counts[operation] += 1
        status, headers, answer = self._pass_on(handler, body)
        if self.latency:
            time.sleep(max(0.0, came + self.latency - time.monotonic()))
        if strike and strike.when is When.AFTER and self._ended(handler, strike):
            return
        self.log.append((operation, came, time.monotonic()))
        with contextlib.suppress(OSError):
            handler.send_response(status)
            handler.send_header("Content-Type", headers.get("Content-Type", "text/plain"))
            handler.send_header("Content-Length", str(len(answer)))
            handler.end_headers()
            handler.wfile.write(answer)
        if strike:
            strike.answered.set()

    def _due(self, operation: str) -> Strike | None:
        with self._lock:
            for strike in self._strikes:
                if strike.operation == operation:
                    self._strikes.remove(strike)
                    return strike
        return None

    def _ended(self, handler: BaseHTTPRequestHandler, strike: Strike) -> bool:
        strike.reached.set()
        match strike.trouble:
            case Trouble.DROP:
                _cut(handler)
            case Trouble.UNAVAILABLE:
                _answer(handler, 503, b"")
            case Trouble.WEB_PAGE:
                _answer(handler, 503, b'<html xmlns="http://www.w3.org/1999/xhtml"><body>Back soon</body></html>')
            case Trouble.TOO_MANY:
                _answer(handler, 429, _TOO_MANY)
            case Trouble.OTHER_ANSWER:
                _answer(handler, 200, _OTHER_ANSWER)
            case Trouble.LATE:
                strike.released.wait(strike.seconds)
                return False
            case Trouble.HOLD:
                strike.released.wait(PATIENCE)
                if strike.drop:
                    _cut(handler)
                return strike.drop
        return True

    def _pass_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port)
        headers = {name: handler.headers[name] for name in ("Authorization", "Content-Type") if name in handler.headers}
        try:
            connection.request("POST", handler.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is what this server is for."""


def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def _cut(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
