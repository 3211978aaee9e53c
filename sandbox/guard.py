"""Keeps pages of other sites away from the control API, the mailbox and the page: a browser here reaches them too.

CallFire's API itself is not guarded: it asks for a password, and browsers have no business with it.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class SameOrigin:
    """Refuses what a page of another site sends (the Origin header) or reaches by a name of its own (the Host header).

    Args:
        application: what is guarded.
        names: the host names that this server answers to; None is any.
    """

    def __init__(self, application: ASGIApp, names: Collection[str] | None) -> None:
        self._application = application
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] == "http" and not scope["path"].startswith("/api/"):
            headers = Headers(scope=scope)
            problem = self._problem(headers.get("host", ""), headers.get("origin"))
            if problem:
                await JSONResponse({"error": problem}, 403)(scope, receive, send)
                return
        await self._application(scope, receive, send)

    def _problem(self, host: str, origin: str | None) -> str | None:
        if self._names is not None and urlsplit(f"//{host}").hostname not in self._names:
            return f"this sandbox does not answer to the name {host}; use localhost or 127.0.0.1"
        if origin is not None and urlsplit(origin).netloc != host:
            return "pages of another site may not use the sandbox"
        return None
