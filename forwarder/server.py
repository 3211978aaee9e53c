"""HTTP listeners: sockets that say clearly why they cannot be had, and servers that stop without dropping anybody.

Three things stock uvicorn does not do. It bounds neither the size of a request's head nor the time it takes. It does
not tell whom it has no room for when to come again. And when it shuts down it closes every connection that has no
parsed request yet, so a post that is just arriving is lost; here the listeners close first, and connections get a
moment to say what they came for.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from asyncio import TimerHandle, Transport
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from forwarder.errors import StartError
from forwarder.receiver import RETRY_AFTER

HEAD_BYTES: Final = 64 * 1024
"""Most bytes of a request before its body."""
HEAD_SECONDS: Final = 10.0
"""How long they may take."""
LINGER_SECONDS: Final = 0.2
"""How long a stopping server waits for connections that have said nothing yet."""
MAX_CONNECTIONS: Final = 900
"""More are told to come again; a process may have 1,024 files open where nobody says otherwise."""
SYSTEMD_FIRST_SOCKET: Final = 3

log: Final = logging.getLogger(__name__)


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket; raises StartError naming `setting` when it cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; set FORWARDER_HOST") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(4096)
    except OSError as error:
        listener.close()
        reason = (error.strerror or "no reason given").lower()
        cure = {
            errno.EADDRNOTAVAIL: "set FORWARDER_HOST to an address of this machine",
            errno.EACCES: f"set {setting} to a port above 1023, or let systemd open it",
        }.get(error.errno or 0, f"free the port or set {setting}")
        raise StartError(f"cannot listen on {host}:{port}: {reason}; {cure}") from error
    return listener


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS for a listener, version 1.2 or newer; raises ValueError saying which of the two PEM files is not usable."""
    for file in (certificate, key):
        try:
            file.read_bytes()
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        reason = (error.reason or "no PEM in one of them").lower().replace("_", " ")
        raise ValueError(
            f"{certificate} and {key} are not a PEM certificate and its private key ({reason}); "
            "the certificate comes first in its file, its chain behind it"
        ) from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the private key has a passphrase; nobody could type it when the forwarder starts")


def inherited_sockets() -> list[socket.socket]:
    """The listening sockets systemd hands over (sd_listen_fds), TCP or Unix-domain, or none."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    numbers = range(SYSTEMD_FIRST_SOCKET, SYSTEMD_FIRST_SOCKET + int(os.environ.get("LISTEN_FDS", "0")))
    try:
        inherited = [socket.socket(fileno=number) for number in numbers]
    except OSError as error:
        raise StartError(f"LISTEN_FDS does not name sockets: {error.strerror}; let systemd set it") from error
    for listener in inherited:
        listener.set_inheritable(False)
    return inherited


def notify_systemd(state: str) -> None:
    """Tell a supervisor that asked for it (sd_notify), for instance READY=1."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            channel.sendall(state.encode())
    except OSError as error:
        log.error("supervisor.unreachable NOTIFY_SOCKET=%s %s", address, error.strerror)


async def _come_again(_: Scope, __: Receive, send: Send) -> None:
    """Answer 503, as the receiver does when nothing can be stored, and hang up."""
    headers = [(b"content-length", b"0"), (b"connection", b"close"), (b"retry-after", b"%d" % RETRY_AFTER)]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body"})


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on the head of a request."""

    _head_bytes = 0
    _head_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop it."""
        self._head_is_complete()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes while a head is unfinished."""
        super().data_received(data)
        if self.parser is None or not self._between_requests():
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self.send_400_response("Request head too large.")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head is complete: its bounds no longer count. Beyond MAX_CONNECTIONS it is told to come again."""
        self._head_is_complete()
        if len(self.connections) > MAX_CONNECTIONS:
            log.warning("connections.refused most=%s", MAX_CONNECTIONS)
            self.app = _come_again
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Forget the last request, whose body came after its head."""
        self._head_bytes = 0
        super().on_response_complete()

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _head_is_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._head_bytes = 0


class Server(uvicorn.Server):
    """uvicorn on sockets of ours, without its signal handlers, with a shutdown that drops nobody."""

    def __init__(self, app: Any, *sockets: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        super().__init__(config)
        self.sockets = list(sockets)

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        scheme = "https" if self.config.is_ssl else "http"
        if self.sockets[0].family == socket.AF_UNIX:
            return f"{scheme}+unix:{self.sockets[0].getsockname()}"
        host, port = self.sockets[0].getsockname()[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to app.py."""
        yield

    async def run_until_stopped(self) -> None:
        """Serve until `should_exit` is set."""
        await self.serve(sockets=self.sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, let connections finish what they are saying, then shut down as usual."""
        for server in self.servers:
            server.close()
        close = (b"connection", b"close")
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        deadline = asyncio.get_running_loop().time() + LINGER_SECONDS
        # uvicorn tells nobody when a connection ends
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
