"""Pytest fixtures: a running sandbox, empty at the start of each test, and an endpoint for its postbacks.

Name the module in `pytest_plugins` of a root conftest.py.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sandbox.server import Sandbox


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[Sandbox]:
    """One sandbox for all tests that can share one."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox: Sandbox) -> Sandbox:
    """A sandbox with its default account and nothing in it."""
    shared_sandbox.reset()
    return shared_sandbox


@dataclass(frozen=True, slots=True)
class Received:
    """One postback as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class PostbackEndpoint:
    """Where postbacks can be sent. Set `status` to answer otherwise than with 200."""

    url: str
    status: int = 200
    received: "queue.Queue[Received]" = field(default_factory=queue.Queue)

    def take(self, timeout: float = 10.0) -> Received:
        """The next postback, waiting for it; queue.Empty after `timeout` seconds."""
        return self.received.get(timeout=timeout)


@pytest.fixture
def postback_endpoint() -> Iterator[PostbackEndpoint]:
    """An HTTP server on loopback that keeps what is posted to it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet per answer

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if len(body) == int(self.headers["Content-Length"]):
                endpoint.received.put(Received(self.path, dict(self.headers), body))
            self.send_response(endpoint.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: tests print enough."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = PostbackEndpoint(f"http://127.0.0.1:{server.server_port}/postback/token")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield endpoint
    server.shutdown()
    server.server_close()
    thread.join()
