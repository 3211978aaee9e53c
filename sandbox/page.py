"""The page: static files, and a stream that tells it when to look again. It uses the control API like any program."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from sandbox.simulation import Simulation

FILES = Path(__file__).parent / "static"
_QUIET = 0.1
"""Seconds between two signs of change: a page need not be told more often."""
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'"


class Page:
    """What a person looks at.

    Args:
        simulation: tells what changes.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def routes(self) -> list[Route]:
        """The page at /, its files, and the stream."""
        return [
            Route("/", self.file, methods=["GET"]),
            Route("/static/{name}", self.file, methods=["GET"]),
            Route("/control/changes", self.changes, methods=["GET"]),
        ]

    async def file(self, request: Request) -> Response:
        """One of the page's files."""
        path = FILES / request.path_params.get("name", "index.html")
        if path.name not in {file.name for file in FILES.iterdir()}:
            return Response(status_code=404)
        headers = {
            "Content-Security-Policy": _POLICY,
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return FileResponse(path, headers=headers)

    async def changes(self, _request: Request) -> Response:
        """Server-sent events: `change`, with the names of the lists that changed."""
        return StreamingResponse(self._stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _stream(self) -> AsyncIterator[str]:
        with self._simulation.feed.listening() as listener:
            yield "retry: 500\nevent: hello\ndata: {}\n\n"
            async for topics in listener.changes():
                yield f"event: change\ndata: {json.dumps(sorted(topics))}\n\n"
                await asyncio.sleep(_QUIET)
