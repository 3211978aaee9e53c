"""The control API and the mailbox API: JSON over HTTP for tests, programs and the page. CallFire has none of this."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.errors import BusyError, InvalidInputError, NotFoundError, SandboxError, WaitTimeoutError
from sandbox.simulation import Simulation

MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes of a JSON document; a seed of 10,000 subscriptions fits."""
MAX_WAIT = 300.0
"""Seconds that a request may wait for something."""

Endpoint = Callable[[Request], Awaitable[Response]]

_STATUS: dict[type[SandboxError], int] = {
    InvalidInputError: 400,
    NotFoundError: 404,
    WaitTimeoutError: 404,
    BusyError: 503,
}


class ControlApi:
    """What can be asked of a sandbox and made to happen in it, one method per path.

    Args:
        simulation: the sandbox itself.
        about: what /healthz tells: the service and its addresses.
    """

    def __init__(self, simulation: Simulation, about: Mapping[str, Any]) -> None:
        self._simulation = simulation
        self._about = about

    def routes(self) -> list[Route]:
        """All paths; docs/sandbox.md lists them."""
        do = self._simulation
        return [
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/control/texts", _creating(do.send_text), methods=["POST"]),
            Route("/control/calls", _creating(do.make_call), methods=["POST"]),
            Route("/control/campaigns", _creating(do.run_campaign), methods=["POST"]),
            Route("/control/events", self.events, methods=["GET"]),
            Route("/control/accounts", _creating(do.add_account), methods=["POST"]),
            Route("/control/accounts", self.accounts, methods=["GET"]),
            Route("/control/subscriptions", _creating(do.create_subscription), methods=["POST"]),
            Route("/control/subscriptions", _answering(self.subscriptions), methods=["GET"]),
            Route("/control/subscriptions/{id:int}", _answering(self.change_subscription), methods=["PATCH"]),
            Route("/control/subscriptions/{id:int}", _answering(self.delete_subscription), methods=["DELETE"]),
            Route("/control/postbacks", _answering(self.postbacks), methods=["GET"]),
            Route("/control/postbacks/wait", _answering(self.wait_for_postback), methods=["GET"]),
            Route("/control/postbacks/{id:int}/resend", _answering(self.resend), methods=["POST"]),
            Route("/control/requests", _answering(self.requests), methods=["GET"]),
            Route("/control/trouble", _creating(do.add_trouble), methods=["POST"]),
            Route("/control/trouble", self.trouble, methods=["GET"]),
            Route("/control/trouble", self.clear_trouble, methods=["DELETE"]),
            Route("/control/trouble/{id:int}", _answering(self.remove_trouble), methods=["DELETE"]),
            Route("/control/quirks", _answering(self.quirks), methods=["GET", "PATCH"]),
            Route("/control/seed", _creating(do.plant), methods=["POST"]),
            Route("/control/state", self.state, methods=["GET"]),
            Route("/control/reset", self.reset, methods=["POST"]),
            Route("/mailbox/messages", _answering(self.mails), methods=["GET"]),
            Route("/mailbox/messages", self.clear_mails, methods=["DELETE"]),
            Route("/mailbox/messages/latest", _answering(self.latest_mail), methods=["GET"]),
            Route("/mailbox/messages/wait", _answering(self.wait_for_mail), methods=["GET"]),
            Route("/mailbox/messages/{id:int}", _answering(self.mail), methods=["GET"]),
            Route("/mailbox/messages/{id:int}/raw", _answering(self.raw_mail), methods=["GET"]),
            Route("/mailbox/threads", _answering(self.threads), methods=["GET"]),
        ]

    async def healthz(self, _request: Request) -> Response:
        """Who is here, and where."""
        return JSONResponse(self._about)

    async def events(self, request: Request) -> Response:
        """Texts, calls and campaigns, oldest first."""
        return JSONResponse({"events": [event.as_json() for event in self._simulation.events.newest(_limit(request))]})

    async def accounts(self, _request: Request) -> Response:
        """All accounts with their passwords, which protect nothing."""
        return JSONResponse({"accounts": self._simulation.state()["accounts"]})

    async def subscriptions(self, request: Request) -> Response:
        """All fields of all subscriptions, or of one `account`'s."""
        return JSONResponse({"subscriptions": self._simulation.subscriptions(request.query_params.get("account"))})

    async def change_subscription(self, request: Request) -> Response:
        """Change fields of one, unseen by the account's clients."""
        return JSONResponse(self._simulation.change_subscription(_id(request), await _document(request)))

    async def delete_subscription(self, request: Request) -> Response:
        """Remove one, unseen by the account's clients; answers with what it was."""
        return JSONResponse(self._simulation.delete_subscription(_id(request)))

    async def postbacks(self, request: Request) -> Response:
        """The delivery log, oldest first."""
        log = self._simulation.sender.log
        return JSONResponse({"postbacks": [postback.as_json() for postback in log.newest(_limit(request))]})

    async def wait_for_postback(self, request: Request) -> Response:
        """The oldest postback with an id above `after` (0 is any) that is over, within `timeout` seconds (10)."""
        return JSONResponse(await self._simulation.wait_for_postback(*_wait(request)))

    async def resend(self, request: Request) -> Response:
        """Post once more what a postback said; answers with the new one."""
        return JSONResponse(self._simulation.resend(_id(request)), 201)

    async def requests(self, request: Request) -> Response:
        """How many SOAP calls there were of each operation, and the last of them in full."""
        log = self._simulation.calls
        return JSONResponse(
            {"counts": log.counts, "requests": [call.as_json() for call in log.calls.newest(_limit(request))]}
        )

    async def trouble(self, _request: Request) -> Response:
        """The rules for what is to go wrong, and how often they struck."""
        return JSONResponse({"trouble": [rule.as_json() for rule in self._simulation.troubles]})

    async def clear_trouble(self, _request: Request) -> Response:
        """Take all rules back."""
        self._simulation.remove_trouble()
        return JSONResponse({"trouble": []})

    async def remove_trouble(self, request: Request) -> Response:
        """Take one rule back."""
        self._simulation.remove_trouble(_id(request))
        return await self.trouble(request)

    async def quirks(self, request: Request) -> Response:
        """How the sandbox takes what is not known about CallFire; PATCH switches it."""
        document = await _document(request) if request.method == "PATCH" else {}
        return JSONResponse(self._simulation.set_quirks(document))

    async def state(self, _request: Request) -> Response:
        """Accounts, subscriptions, quirks and ids, as a state file holds them; a seed for another sandbox."""
        return JSONResponse(self._simulation.state())

    async def reset(self, _request: Request) -> Response:
        """Back to the beginning."""
        await self._simulation.reset()
        return JSONResponse({"reset": True})

    async def mails(self, request: Request) -> Response:
        """All mails, oldest first."""
        mails = self._simulation.mailbox.mails.newest(_limit(request))
        return JSONResponse({"messages": [mail.as_json() for mail in mails]})

    async def clear_mails(self, _request: Request) -> Response:
        """Throw all mails away."""
        self._simulation.mailbox.clear()
        return JSONResponse({"messages": []})

    async def latest_mail(self, _request: Request) -> Response:
        """The newest mail."""
        mail = self._simulation.mailbox.mails.latest()
        if mail is None:
            raise NotFoundError("the mailbox is empty")
        return JSONResponse(mail.as_json())

    async def wait_for_mail(self, request: Request) -> Response:
        """The oldest mail with an id above `after` (0 is any), waiting for it up to `timeout` seconds (10)."""
        return JSONResponse(await self._simulation.wait_for_mail(*_wait(request)))

    async def mail(self, request: Request) -> Response:
        """One mail."""
        return JSONResponse(self._simulation.mail(_id(request)).as_json())

    async def raw_mail(self, request: Request) -> Response:
        """One mail as it was sent."""
        return Response(self._simulation.mail(_id(request)).raw, media_type="message/rfc822")

    async def threads(self, request: Request) -> Response:
        """The mails by conversation, the newest conversation first."""
        return JSONResponse({"threads": self._simulation.thread_list(_limit(request))})


def _creating(work: Callable[[Mapping[str, object]], Mapping[str, Any]]) -> Endpoint:
    """A path that takes a document and answers 201 with what came of it."""

    async def create(request: Request) -> Response:
        return JSONResponse(work(await _document(request)), 201)

    return _answering(create)


def _answering(endpoint: Endpoint) -> Endpoint:
    """Turn the sandbox's errors into JSON answers."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except SandboxError as error:
            return JSONResponse({"error": str(error)}, _STATUS[type(error)])

    return answer


async def _document(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidInputError("send JSON, with Content-Type: application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_DOCUMENT:
            raise InvalidInputError(f"the body has more than {MAX_DOCUMENT} bytes")
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError("the body must be a JSON object")
    return document


def _id(request: Request) -> int:
    return int(request.path_params["id"])


def _limit(request: Request) -> int | None:
    return None if "limit" not in request.query_params else int(_query_number(request, "limit", 0))


def _wait(request: Request) -> tuple[int, float]:
    return int(_query_number(request, "after", 0)), min(_query_number(request, "timeout", 10), MAX_WAIT)


def _query_number(request: Request, name: str, default: float) -> float:
    given = request.query_params.get(name)
    try:
        value = default if given is None else float(given)
    except ValueError:
        value = -1
    if not 0 <= value < 2**53:
        raise InvalidInputError(f"{name} must be a number, 0 or more, not {given!r}")
    return value
