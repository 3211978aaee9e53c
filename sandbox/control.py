"""The control API and the mailbox API: JSON over HTTP for tests, programs and the page. CallFire has none of this."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox import inputs
from sandbox.errors import BusyError, InvalidInputError, NotFoundError, SandboxError, StoppedError, WaitTimeoutError
from sandbox.http_server import read_body, while_connected
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
    StoppedError: 503,
}


class Json(Response):
    """A JSON answer in ASCII: mails and requests can hold characters that no UTF-8 can."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The document on one line."""
        return json.dumps(content, separators=(",", ":")).encode()


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
        table: list[tuple[str, str, Endpoint]] = [
            ("GET", "/healthz", self.healthz),
            ("POST", "/control/texts", _creating(do.send_text)),
            ("POST", "/control/calls", _creating(do.make_call)),
            ("POST", "/control/campaigns", _creating(do.run_campaign)),
            ("GET", "/control/events", self.events),
            ("POST", "/control/accounts", _creating(do.add_account)),
            ("GET", "/control/accounts", self.accounts),
            ("POST", "/control/subscriptions", _creating(do.create_subscription)),
            ("GET", "/control/subscriptions", self.subscriptions),
            ("PATCH", "/control/subscriptions/{id}", self.change_subscription),
            ("DELETE", "/control/subscriptions/{id}", self.delete_subscription),
            ("GET", "/control/postbacks", self.postbacks),
            ("GET", "/control/postbacks/wait", self.wait_for_postback),
            ("GET", "/control/postbacks/{id}", self.postback),
            ("POST", "/control/postbacks/{id}/resend", self.resend),
            ("GET", "/control/requests", self.requests),
            ("POST", "/control/trouble", _creating(do.add_trouble)),
            ("GET", "/control/trouble", self.trouble),
            ("DELETE", "/control/trouble", self.clear_trouble),
            ("DELETE", "/control/trouble/{id}", self.remove_trouble),
            ("GET", "/control/quirks", self.quirks),
            ("PATCH", "/control/quirks", self.set_quirks),
            ("POST", "/control/seed", _creating(do.plant)),
            ("GET", "/control/state", self.state),
            ("POST", "/control/reset", self.reset),
            ("GET", "/mailbox/messages", self.mails),
            ("DELETE", "/mailbox/messages", self.clear_mails),
            ("GET", "/mailbox/messages/latest", self.latest_mail),
            ("GET", "/mailbox/messages/wait", self.wait_for_mail),
            ("GET", "/mailbox/messages/{id}", self.mail),
            ("GET", "/mailbox/messages/{id}/raw", self.raw_mail),
            ("GET", "/mailbox/threads", self.threads),
        ]
        return [Route(path, _answering(endpoint), methods=[method]) for method, path, endpoint in table]

    async def healthz(self, _request: Request) -> Response:
        """Who is here, and where."""
        return Json(self._about)

    async def events(self, request: Request) -> Response:
        """Texts, calls and campaigns, oldest first."""
        return Json({"events": [event.as_json() for event in self._simulation.events.newest(_limit(request))]})

    async def accounts(self, _request: Request) -> Response:
        """All accounts with their passwords, which protect nothing."""
        return Json({"accounts": self._simulation.state()["accounts"]})

    async def subscriptions(self, request: Request) -> Response:
        """All fields of all subscriptions, or of one `account`'s, oldest first, and how many there are in `total`."""
        found, limit = self._simulation.subscriptions(request.query_params.get("account")), _limit(request)
        return Json({"total": len(found), "subscriptions": found if limit is None else found[-limit:] if limit else []})

    async def change_subscription(self, request: Request) -> Response:
        """Change fields of one, unseen by the account's clients."""
        return Json(self._simulation.change_subscription(_id(request), await _document(request)))

    async def delete_subscription(self, request: Request) -> Response:
        """Remove one, unseen by the account's clients; answers with what it was."""
        return Json(self._simulation.delete_subscription(_id(request)))

    async def postbacks(self, request: Request) -> Response:
        """The delivery log, oldest first."""
        log = self._simulation.sender.log
        return Json({"postbacks": [postback.as_json() for postback in log.newest(_limit(request))]})

    async def wait_for_postback(self, request: Request) -> Response:
        """The oldest postback with an id above `after` (0 is any) that is over, within `timeout` seconds (10)."""
        return Json(await while_connected(request, self._simulation.wait_for_postback(*_wait(request))))

    async def postback(self, request: Request) -> Response:
        """One postback, as soon as it is over; as it stands where it is not within `timeout` seconds (0)."""
        timeout = min(_query_number(request, "timeout", 0), MAX_WAIT)
        return Json(await while_connected(request, self._simulation.postback(_id(request), timeout)))

    async def resend(self, request: Request) -> Response:
        """Post once more what a postback said; answers with the new one."""
        return Json(self._simulation.resend(_id(request)), 201)

    async def requests(self, request: Request) -> Response:
        """How many SOAP calls there were of each operation, and the last of them in full."""
        log = self._simulation.calls
        return Json({"counts": log.counts, "requests": [call.as_json() for call in log.calls.newest(_limit(request))]})

    async def trouble(self, _request: Request) -> Response:
        """The rules for what is to go wrong, and how often they struck."""
        return Json({"trouble": [rule.as_json() for rule in self._simulation.troubles]})

    async def clear_trouble(self, _request: Request) -> Response:
        """Take all rules back."""
        self._simulation.remove_trouble()
        return Json({"trouble": []})

    async def remove_trouble(self, request: Request) -> Response:
        """Take one rule back."""
        self._simulation.remove_trouble(_id(request))
        return await self.trouble(request)

    async def quirks(self, _request: Request) -> Response:
        """How the sandbox takes what is not known about CallFire."""
        return Json(self._simulation.set_quirks({}))

    async def set_quirks(self, request: Request) -> Response:
        """Switch some of them; answers with all."""
        return Json(self._simulation.set_quirks(await _document(request)))

    async def state(self, _request: Request) -> Response:
        """Accounts, subscriptions, quirks and ids, as a state file holds them; a seed for another sandbox."""
        return Json(self._simulation.state())

    async def reset(self, _request: Request) -> Response:
        """Back to the beginning."""
        await self._simulation.reset()
        return Json({"reset": True})

    async def mails(self, request: Request) -> Response:
        """All mails, oldest first."""
        mails = self._simulation.mailbox.mails.newest(_limit(request))
        return Json({"messages": [mail.as_json() for mail in mails]})

    async def clear_mails(self, _request: Request) -> Response:
        """Throw all mails away."""
        self._simulation.mailbox.clear()
        return Json({"messages": []})

    async def latest_mail(self, _request: Request) -> Response:
        """The newest mail."""
        mail = self._simulation.mailbox.mails.latest()
        if mail is None:
            raise NotFoundError("the mailbox is empty")
        return Json(mail.as_json())

    async def wait_for_mail(self, request: Request) -> Response:
        """The oldest mail with an id above `after` (0 is any), waiting for it up to `timeout` seconds (10)."""
        return Json(await while_connected(request, self._simulation.wait_for_mail(*_wait(request))))

    async def mail(self, request: Request) -> Response:
        """One mail."""
        return Json(self._simulation.mail(_id(request)).as_json())

    async def raw_mail(self, request: Request) -> Response:
        """One mail as it was sent."""
        return Response(self._simulation.mail(_id(request)).raw, media_type="message/rfc822")

    async def threads(self, request: Request) -> Response:
        """The mails by conversation, the newest conversation first."""
        return Json({"threads": self._simulation.thread_list(_limit(request))})


def _creating(work: Callable[[Mapping[str, object]], Mapping[str, Any]]) -> Endpoint:
    """A path that takes a document and answers 201 with what came of it."""

    async def create(request: Request) -> Response:
        return Json(work(await _document(request)), 201)

    return create


def _answering(endpoint: Endpoint) -> Endpoint:
    """Turn the sandbox's errors into JSON answers."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except SandboxError as error:
            return Json({"error": str(error)}, _STATUS[type(error)])

    return answer


async def _document(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidInputError("send JSON, with Content-Type: application/json")
    body = await read_body(request, MAX_DOCUMENT)
    if body is None:
        raise InvalidInputError(f"the body has more than {MAX_DOCUMENT} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError("the body must be a JSON object")
    return document


def _id(request: Request) -> int:
    try:
        return inputs.ident(request.path_params["id"])
    except ValueError as error:
        raise NotFoundError(f"an id {error}, not {inputs.shown(request.path_params['id'])}") from error


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
        raise InvalidInputError(f"{name} must be a number, 0 or more, not {inputs.shown(given)}")
    return value
