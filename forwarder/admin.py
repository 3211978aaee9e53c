"""The private port, on loopback: is it ready, how is it going, what needs a person."""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def admin_app(readiness: Callable[[], dict[str, object]]) -> Starlette:
    """The ASGI application of the admin port."""

    async def readyz(_: Request) -> JSONResponse:
        state = await run_in_threadpool(readiness)
        return JSONResponse(state, 200 if state["ready"] else 503)

    return Starlette(routes=[Route("/readyz", readyz)])
