"""The private port, on loopback: is it ready, how is it going, what needs a person.

A browser on the same machine reaches it too, and with it every page that browser shows. So it answers only to the
names of this machine (a name of another site that points here is refused), and what changes something must come from
this page itself: from this origin, with a token that only this page knows.
"""

import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forwarder.errors import ForwarderError, Unavailable
from forwarder.health import Health
from forwarder.ledger import Ledger, NotFoundError
from forwarder.metrics import exposition
from forwarder.outbox import Routed
from forwarder.postback import InboundText
from forwarder.status_page import FOLDER, SHOWN, SHOWN_FAILED, StatusPage, span_named

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_FORM: Final = 10_000
"""Longest form that is read, in bytes."""

_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}
_SAFE: Final = frozenset({"GET", "HEAD"})


class SameOrigin:
    """Refuses what reaches this port by a foreign name, or comes from a page of another site; locks the pages down."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_locked(message: Message) -> None:
            if message["type"] == "http.response.start":
                raw = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *raw]
            await send(message)

        problem = _foreign(Headers(scope=scope), scope["method"])
        app = PlainTextResponse(f"{problem}\n", 403) if problem else self._app
        await app(scope, receive, send_locked)


def _foreign(headers: Headers, method: str) -> str | None:
    """Why a request may not come in; None if it may."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if name not in LOOPBACK_NAMES:
        return "This port answers to localhost and 127.0.0.1 only."
    if method in _SAFE:
        return None
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "Pages of another site may not change anything here."
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return "Pages of another site may not change anything here."
    return None


class AdminPages:
    """What the private port answers."""

    def __init__(
        self,
        health: Health,
        ledger: Ledger,
        route: Callable[[InboundText], Routed],
        counts: Mapping[str, int],
        answers: Mapping[int, int],
    ) -> None:
        self._health = health
        self._ledger = ledger
        self._route = route
        self._counts = counts
        self._answers = answers
        self._page = StatusPage()
        self._token = secrets.token_urlsafe(32)

    def app(self) -> Starlette:
        """The ASGI application of the admin port."""
        return Starlette(
            routes=[
                Route("/", self.status),
                Route("/style.css", _file("style.css")),
                Route("/icon.svg", _file("icon.svg")),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics),
                Route("/dead/replay", self.replay_dead, methods=["POST"]),
                Route("/quarantine/replay", self.replay_quarantined, methods=["POST"]),
            ],
            middleware=[Middleware(SameOrigin)],
            exception_handlers={ForwarderError: _plain_error},
        )

    async def status(self, request: Request) -> Response:
        """The page."""
        span = span_named(request.query_params.get("span", ""))
        notice = _NOTICES.get(request.query_params.get("done", ""))
        return HTMLResponse(await run_in_threadpool(self._draw, span.name, notice))

    def _draw(self, span_name: str, notice: str | None) -> str:
        span = span_named(span_name)
        vitals = self._health.check()
        since = (vitals.at // span.step + 1) * span.step - span.seconds
        found: dict[str, Any] = {"dead": [], "quarantined": [], "recent": []}
        slots: list[dict[str, int]] = []
        if vitals.totals:
            slots = self._ledger.flow(since, span.step)[: span.seconds // span.step]
            found = {
                "dead": self._ledger.dead(SHOWN_FAILED) if vitals.totals.dead else [],
                "quarantined": self._ledger.quarantined(SHOWN_FAILED) if vitals.totals.quarantined else [],
                "recent": self._ledger.recent(SHOWN),
            }
        return self._page.draw(vitals, span, slots, since, token=self._token, notice=notice, **found)

    async def readyz(self, _: Request) -> Response:
        """200 if postbacks can be stored, else 503; what else is the matter stands in the answer."""
        vitals = await run_in_threadpool(self._health.check)
        return JSONResponse(vitals.as_json(), 200 if vitals.database is None else 503)

    async def metrics(self, _: Request) -> Response:
        """Prometheus' figures."""
        vitals = await run_in_threadpool(self._health.check)
        figures = await run_in_threadpool(exposition, vitals, self._counts, self._answers)
        return Response(figures, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def replay_dead(self, request: Request) -> Response:
        """Queue one dead delivery again, or all if none is named, and show the page."""
        form = await self._form(request)
        if form is None:
            return _stale()
        which = [_number(form["text_id"])] if "text_id" in form else None
        try:
            await run_in_threadpool(self._ledger.replay_dead, which, form.get("recipient"))
        except NotFoundError:
            return RedirectResponse("/?done=gone", 303)
        return RedirectResponse("/?done=replayed", 303)

    async def replay_quarantined(self, request: Request) -> Response:
        """Read one postback again, and show the page."""
        form = await self._form(request)
        if form is None:
            return _stale()
        reread = await run_in_threadpool(self._reread, _number(form.get("id")))
        return RedirectResponse(f"/?done={reread}", 303)

    def _reread(self, ident: int) -> str:
        try:
            reread = self._ledger.replay_quarantined([ident], self._route)
        except NotFoundError:
            return "gone"
        if reread.left:
            return "unreadable"
        return "replayed" if reread.texts else "nothing"

    async def _form(self, request: Request) -> dict[str, str] | None:
        """The form, if it comes from a page of this process; None if not."""
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_FORM:
                return None
        form = {name: values[-1] for name, values in parse_qs(content.decode("utf-8", "replace")).items()}
        return form if hmac.compare_digest(form.get("token", "").encode(), self._token.encode()) else None


_NOTICES: Final = {
    "replayed": "Queued again. It goes out within a second or two, if the reason is gone.",
    "nothing": "It can be read now and holds no text for anybody; it has left the quarantine.",
    "unreadable": "It still cannot be read; it stays in quarantine.",
    "gone": "It is no longer there: somebody was faster.",
}


def _number(value: str | None) -> int:
    return int(value) if value and value.isascii() and value.isdigit() and len(value) < 20 else 0  # noqa: PLR2004 - 64 bits


def _stale() -> Response:
    return PlainTextResponse("This page is older than the forwarder. Go back, reload it, and try again.\n", 403)


def _file(name: str) -> Callable[[Request], Any]:
    async def answer(_: Request) -> Response:
        return FileResponse(FOLDER / name)

    return answer


async def _plain_error(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 503 if isinstance(error, Unavailable) else 500)
