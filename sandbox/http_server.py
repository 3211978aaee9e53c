"""Uvicorn as a part of a process: no signals, a bound on what a client can make it hold, and a way to hang up."""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar, cast

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

T = TypeVar("T")

DROP = "sandbox.drop"
"""The ASGI extension that drops the connection at once, without another byte."""

MAX_HEAD = 64 * 1024
"""Bytes that a request's line and headers may have."""
MAX_CONNECTIONS = 500
"""Connections at a time; one more is dropped. Together with the sandbox's own they stay below the usual 1024 files."""
REQUEST_TIME = 30.0
"""Seconds from a connection, or from the first byte of a further request, until the whole request must be here."""


async def read_body(request: Request, most: int) -> bytes | None:
    """A request's body, or None if it has more bytes than that."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


async def while_connected(request: Request, waiting: Coroutine[Any, Any, T]) -> T:
    """What is waited for, once the request's body has been read.

    Raises:
        ClientDisconnect: the client went away first; the waiting has been cancelled.
    """
    doing, gone = asyncio.ensure_future(waiting), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def answer_nobody(_request: Request, _error: Exception) -> Response:
    """Starlette's handler for a client that has gone away: there is nothing to say and nobody to say it to."""
    return Response(status_code=400)


class _PipelinedError(Exception):
    """A request came before the last one was answered; each would take memory, and no client here does that."""


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 with the drop extension and bounds on what a client can make it hold, and for how long."""

    _head_bytes = 0
    _in_head = True
    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self._deadline = self.loop.call_later(REQUEST_TIME, self._drop)
        if len(self.connections) > MAX_CONNECTIONS:
            self._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD + len(data):
                self._drop()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            raise _PipelinedError
        self._deadline.cancel()
        self._deadline = self.loop.call_later(REQUEST_TIME, self._drop)
        super().on_message_begin()
        self.scope["extensions"] = {DROP: {"drop": self._drop}}

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._deadline.cancel()
        super().on_message_complete()

    def _drop(self) -> None:
        cast("asyncio.WriteTransport", self.transport).abort()


class HttpServer(uvicorn.Server):
    """A server on sockets that are listening already. `ready` is set once it answers."""

    def __init__(self, application: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's own, then tell that it is done."""
        await super().startup(sockets)
        self.ready.set()
