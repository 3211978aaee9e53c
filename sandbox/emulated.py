"""The emulated CallFire API over HTTP: SOAP 1.1 and 1.0 and their WSDLs at the real paths.

Everything under /api/ is what CallFire shows the outside; nothing here exists for tests or for the page.
"""

import base64
import binascii
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sandbox import soap
from sandbox.accounts import MAX_REQUEST_ID, Account
from sandbox.events import SOAP_12
from sandbox.http_server import DROP, read_body, while_connected
from sandbox.journal import Topic
from sandbox.simulation import Simulation
from sandbox.soap import CONTRACT, SOAP_11, FaultCode, Operation, SoapFault, SoapRequest
from sandbox.trouble import Rule, Trouble

MAX_REQUEST = 64 * 1024
"""Bytes of a SOAP request; the longest sensible one has about 3,000."""
MAX_LOGGED = 16 * 1024
"""Bytes of a request or answer that the log keeps."""

_CONTENT_TYPES = {SOAP_11: "text/xml; charset=utf-8", SOAP_12: "application/soap+xml; charset=utf-8"}
_UNAVAILABLE = "<html><head><title>503</title></head><body><h1>Service Unavailable</h1></body></html>"

UNKNOWN = "unknown"
"""The operation of a request that is none of the five."""
_VENDOR = "https://www.callfire.com"


class EmulatedApi:
    """CallFire's API as its clients see it.

    Args:
        simulation: the accounts and what they are told to do.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._schemas = {version: soap.load_schema(version) for version in soap.VERSIONS}
        self._operations: dict[Operation, Callable[[Account, SoapRequest, str], bytes]] = {
            Operation.CREATE: self._create,
            Operation.QUERY: self._query,
            Operation.GET: self._get,
            Operation.UPDATE: self._update,
            Operation.DELETE: self._delete,
        }

    def routes(self) -> list[Route]:
        """The paths, as CallFire has them."""
        return [
            Route("/api/{version}/soap12/{service}", self.soap, methods=["POST"]),
            Route("/api/{version}/wsdl/{file}", self.wsdl),
        ]

    async def wsdl(self, request: Request) -> Response:
        """The WSDL or one of the schemas that it imports, its addresses turned to this server."""
        version, name = request.path_params["version"], request.path_params["file"]
        text = contract_file(version, name)
        if text is None:
            return Response(status_code=404)
        here = f"{request.url.scheme}://{request.url.netloc}"
        text = text.replace(_VENDOR, escape(here)).replace("{version}", version)
        return Response(text, media_type="text/xml; charset=utf-8")

    async def soap(self, request: Request) -> Response:
        """One SOAP call: read, meet with the trouble that is due, carry out, log."""
        started = time.perf_counter()
        if request.path_params["version"] not in soap.VERSIONS:
            return Response(status_code=404)
        body = await read_body(request, MAX_REQUEST)
        if body is None:
            return Response(status_code=413)
        call = _parse(body, request)
        trouble = self._simulation.troubles.strike("soap", call.operation)
        if trouble:
            self._simulation.feed.publish(Topic.TROUBLE)
        outcome = await self._outcome(request, call, trouble)
        self._simulation.calls.add(
            operation=call.operation or UNKNOWN,
            version=call.version,
            account=outcome.account,
            status=None if isinstance(outcome.answer, DroppedResponse) else outcome.answer.status_code,
            fault=outcome.fault,
            trouble=trouble.kind if trouble else None,
            request=body[:MAX_LOGGED].decode("utf-8", "replace"),
            answer=bytes(outcome.answer.body)[:MAX_LOGGED].decode("utf-8", "replace"),
            duration=round(time.perf_counter() - started, 6),
        )
        return outcome.answer

    async def _outcome(self, request: Request, call: "_Call", trouble: Rule | None) -> "_Outcome":
        match trouble.kind if trouble else None:
            case Trouble.SOAP_UNAUTHORIZED:
                return _Outcome(_unauthorized(), "wrong credentials")
            case Trouble.SOAP_UNAVAILABLE:
                return _Outcome(HTMLResponse(_UNAVAILABLE, 503), "503")
            case Trouble.SOAP_FAULT if trouble:
                return _fault(SoapFault(trouble.fault if trouble.detail else None, trouble.message), call.envelope)
            case Trouble.SOAP_HANG if trouble:
                with contextlib.suppress(ClientDisconnect):
                    await while_connected(request, self._simulation.pause(trouble.seconds))
                return _Outcome(DroppedResponse(), "hung, then dropped")
            case Trouble.SOAP_SLOW if trouble:
                await self._simulation.pause(trouble.seconds)
        outcome = self._answer(call)
        if trouble and trouble.kind is Trouble.SOAP_DROP:
            outcome.answer = DroppedResponse()
        return outcome

    def _answer(self, call: "_Call") -> "_Outcome":
        account = self._authenticate(call.authorization)
        if account is None:
            return _Outcome(_unauthorized(), "wrong credentials")
        try:
            request = self._read_request(call)
            content = self._operations[request.operation](account, request, call.version)
        except SoapFault as fault:
            return _fault(fault, call.envelope, account)
        return _Outcome(Response(content, media_type=_CONTENT_TYPES[call.envelope]), None, account.login)

    def _read_request(self, call: "_Call") -> SoapRequest:
        if isinstance(call.content, SoapFault):
            raise call.content
        if call.service != "subscription":
            raise SoapFault(FaultCode.NOT_IMPLEMENTED, f"the sandbox has no {call.service} service, only subscription")
        return soap.parse_operation(call.envelope, call.content, self._schemas[call.version])

    def _authenticate(self, authorization: str) -> Account | None:
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            login, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return self._simulation.accounts.authenticate(login, password)

    def _create(self, account: Account, request: SoapRequest, version: str) -> bytes:
        request_id = soap.read_request_id(request)
        if request_id and len(request_id) > MAX_REQUEST_ID:
            raise SoapFault(FaultCode.BAD_REQUEST, f"RequestId has more than {MAX_REQUEST_ID} characters")
        ident = account.created_by(request_id) if request_id and self._simulation.quirks.dedupe_request_ids else None
        if ident is None:
            subscription = account.create(
                soap.read_subscription(request), self._simulation.new_subscription_id, version
            )
            ident = subscription.id
            if request_id:
                account.remember_request(request_id, ident)
            self._simulation.feed.publish(Topic.SUBSCRIPTIONS)
        return soap.compose_answer(soap.created_id(ident), request.envelope)

    def _query(self, account: Account, request: SoapRequest, version: str) -> bytes:
        first, limit = soap.read_long(request, "FirstResult"), soap.read_long(request, "MaxResults", 1000)
        total, page = account.query(first, limit)
        return soap.compose_answer(soap.query_result(total, page, version), request.envelope)

    def _get(self, account: Account, request: SoapRequest, version: str) -> bytes:
        subscription = account.get(soap.read_long(request, "Id"))
        return soap.compose_answer(soap.subscription_element(subscription, version), request.envelope)

    def _update(self, account: Account, request: SoapRequest, _version: str) -> bytes:
        asked = soap.read_subscription(request)
        account.update(asked, replace_filter=self._simulation.quirks.update_replaces_filter)
        self._simulation.feed.publish(Topic.SUBSCRIPTIONS)
        return soap.compose_answer(None, request.envelope)

    def _delete(self, account: Account, request: SoapRequest, _version: str) -> bytes:
        account.delete(soap.read_long(request, "Id"))
        self._simulation.feed.publish(Topic.SUBSCRIPTIONS)
        return soap.compose_answer(None, request.envelope)


@dataclass(frozen=True, slots=True)
class _Call:
    """A request as far as it could be read; `content` is the operation's element or what is wrong with the envelope."""

    version: str
    service: str
    authorization: str
    envelope: str
    content: Any
    operation: Operation | None


@dataclass(slots=True)
class _Outcome:
    """What a call is answered, and what the log says about it."""

    answer: Response
    fault: str | None
    account: str | None = None


class DroppedResponse(Response):
    """No answer at all: the connection is dropped."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Hang up, and return when uvicorn has noticed."""
        scope["extensions"][DROP]["drop"]()
        while (await receive())["type"] != "http.disconnect":
            pass


def _parse(body: bytes, request: Request) -> _Call:
    envelope, content, operation = SOAP_12, None, None
    try:
        envelope, content = soap.parse_envelope(body)
        operation = soap.known_operation(content)
    except SoapFault as fault:
        content = fault
    path = request.path_params
    authorization = request.headers.get("authorization", "")
    return _Call(path["version"], path["service"], authorization, envelope, content, operation)


def _fault(fault: SoapFault, envelope: str, account: Account | None = None) -> _Outcome:
    answer = Response(soap.compose_fault(fault, envelope), 500, media_type=_CONTENT_TYPES[envelope])
    return _Outcome(answer, fault.message, account.login if account else None)


def contract_file(version: str, name: str) -> str | None:
    """The text of a WSDL or schema file as the sandbox carries it; None if there is no such file."""
    if version not in soap.VERSIONS:
        return None
    paths = {path.name: path for path in (*CONTRACT.glob("*.*"), *(CONTRACT / version).iterdir()) if path.is_file()}
    return paths[name].read_text() if name in paths else None


def _unauthorized() -> Response:
    return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="CallFire API"'})
