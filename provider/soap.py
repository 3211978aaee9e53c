"""CallFire's five subscription operations over SOAP 1.2: the one module that knows zeep, and no zeep type leaves it.

One call is one request: repeating is the caller's affair (`retrying.py`). Every failure leaves as one of `errors.py`.
The HTTP status is judged before zeep sees the answer, because zeep loses it for bodies that are XML of another kind.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import zeep
import zeep.exceptions
from lxml import etree
from requests.auth import HTTPBasicAuth

from provider.errors import (
    BadRequest,
    CallFireError,
    Forbidden,
    LimitReached,
    NotFound,
    PasswordRefused,
    TimedOut,
    TlsRefused,
    Unavailable,
    UnexpectedAnswer,
    UnknownHost,
    Unreachable,
)
from provider.remote import Page, RemoteSubscription, from_wire, new_request_id, to_wire
from provider.settings import Settings

PAGE: Final = 1000
"""What CallFire caps MaxResults at."""

ACCOUNT_LIMIT: Final = 10_000
LONGEST_ATTEMPT: Final = 20.0
"""Seconds that one request may wait for an answer, so that a hanging one leaves time for another."""

_WSDL: Final = Path(__file__).with_name("wsdl") / "subscription.wsdl"
_SVC: Final = "{http://api.callfire.com/service/xsd}"
_SOAP_ENVELOPE: Final = b"http://www.w3.org/2003/05/soap-envelope"
_LONGEST_QUOTE: Final = 300

_BY_CODE: Final[Mapping[str, type[CallFireError]]] = {
    "NOT_FOUND": NotFound,
    "FORBIDDEN": Forbidden,
    "BAD_REQUEST": BadRequest,
    "UNAVAILABLE": Unavailable,
    "TIMEOUT": Unavailable,
}
_BY_STATUS: Final[Mapping[int, type[CallFireError]]] = {
    403: Forbidden,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


class CallFire:
    """The subscription service of one account. Threads share it; each has its own connection and zeep client."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = threading.local()

    def create(self, properties: Mapping[str, Any], request_id: str) -> str:
        """Create a subscription and return its id. The same `request_id` on every repetition lets CallFire de-dup."""
        created = self._call("CreateSubscription", RequestId=request_id, Subscription=to_wire(properties))
        if not isinstance(created, int):
            raise UnexpectedAnswer("CallFire answered without the id of the new subscription.")
        return str(created)

    def query(self, first: int) -> Page:
        """Return the page of subscriptions that begins with number `first` (from 0).

        Raises:
            UnexpectedAnswer: an envelope with anything else in it. It must not be taken for an empty account.
        """
        result = self._call("QuerySubscriptions", MaxResults=PAGE, FirstResult=first)
        if result is None or result.TotalResults is None:
            raise UnexpectedAnswer("CallFire answered without its list of subscriptions.")
        return Page(int(result.TotalResults), [_read(item) for item in result.Subscription])

    def get(self, id_: str) -> RemoteSubscription:
        """Return one subscription.

        Raises:
            NotFound: when CallFire says that there is none.
        """
        item = self._call("GetSubscription", Id=int(id_))
        if item is None or item.id is None:
            raise UnexpectedAnswer(f"CallFire answered without subscription {id_}.")
        return _read(item)

    def update(self, id_: str, changes: Mapping[str, Any]) -> None:
        """Change the given properties; CallFire keeps the others."""
        self._call("UpdateSubscription", RequestId=new_request_id(), Subscription={"id": int(id_), **to_wire(changes)})

    def delete(self, id_: str) -> None:
        """Delete one subscription.

        Raises:
            NotFound: when CallFire says that there is none.
        """
        self._call("DeleteSubscription", Id=int(id_))

    def _call(self, operation: str, **arguments: Any) -> Any:
        service, transport = self._service()
        with _errors_of_this_project(transport):
            return getattr(service, operation)(**arguments)

    def _service(self) -> "tuple[Any, _Transport]":
        if not hasattr(self._local, "service"):
            transport = _Transport(self._settings)
            client = zeep.Client(
                str(_WSDL), transport=transport, settings=zeep.Settings(strict=False, xsd_ignore_sequence_order=True)
            )
            binding = _binding_with(client, "CreateSubscription")
            self._local.transport = transport
            self._local.service = client.create_service(binding, self._settings.address)
        return self._local.service, self._local.transport


def _binding_with(client: zeep.Client, operation: str) -> str:
    for name, binding in client.wsdl.bindings.items():
        if operation in binding._operations:  # noqa: SLF001 - zeep has no public way to ask
            return str(name)
    raise UnexpectedAnswer(f"No binding of {_WSDL.name} has the operation {operation}.")


def _read(item: Any) -> RemoteSubscription:
    wire = {name: item[name] for name in item if name not in ("SubscriptionFilter", "id")}
    filter_ = item["SubscriptionFilter"]
    if filter_ is not None:
        wire["SubscriptionFilter"] = {name: filter_[name] for name in filter_}
    return from_wire(item["id"], wire)


class _Transport(zeep.Transport):
    """HTTP for zeep: judges the status, follows no redirect (it would turn the POST into a GET), and keeps time."""

    def __init__(self, settings: Settings) -> None:
        session = requests.Session()
        session.auth = HTTPBasicAuth(settings.login.encode(), settings.password.value.encode())
        super().__init__(session=session)  # type: ignore[no-untyped-call]
        self.status = 0
        self._timeout = min(LONGEST_ATTEMPT, max(1.0, settings.timeout / 3))
        self._credentials_from = settings.credentials_from

    def post(self, address: str, message: bytes, headers: Mapping[str, str]) -> requests.Response:
        """Send one request and return an answer that holds an envelope.

        Raises:
            CallFireError: for every other answer, and for none.
        """
        self.status = 0
        with _network_errors(urlsplit(address).hostname):
            response = self.session.post(
                address, data=message, headers=headers, timeout=self._timeout, allow_redirects=False
            )
        self.status = response.status_code
        _judge(response, self._credentials_from)
        return response


@contextmanager
def _network_errors(host: str | None) -> Iterator[None]:
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise TlsRefused(f"There is no trusted TLS connection to CallFire ({_root_cause(error)}).") from None
    except requests.exceptions.Timeout:
        raise TimedOut("CallFire did not answer in time.") from None
    except requests.exceptions.RequestException as error:
        of_a_proxy = isinstance(error, requests.exceptions.ProxyError)
        if "NameResolutionError" in repr(error) and "Temporary failure" not in repr(error) and not of_a_proxy:
            raise UnknownHost(f"CallFire's host name {host} does not resolve.") from None
        raise Unreachable(f"The connection to CallFire failed ({_root_cause(error)}).") from None
    except OSError as error:  # a REQUESTS_CA_BUNDLE that does not exist
        raise TlsRefused(f"There is no trusted TLS connection to CallFire ({error}).") from None


def _password_refused(credentials_from: tuple[str, ...]) -> PasswordRefused:
    said = "CallFire refused the login or the password (HTTP 401)."
    if not credentials_from:
        return PasswordRefused(said)
    return PasswordRefused(
        said,
        f"{' and '.join(credentials_from)} in the environment won over the stack's configuration: correct what is "
        "wrong there, or unset it (those of the API are meant, not of the web site).",
    )


def _judge(response: requests.Response, credentials_from: tuple[str, ...]) -> None:
    status = response.status_code
    if status == requests.codes.unauthorized:
        raise _password_refused(credentials_from)
    if _SOAP_ENVELOPE in response.content:
        return
    kind = _BY_STATUS.get(status)
    if kind is Forbidden:
        raise Forbidden("CallFire does not allow this (HTTP 403).")
    if kind is Unavailable:
        raise Unavailable(f"CallFire is not available (HTTP {status}).")
    if response.is_redirect:
        raise UnexpectedAnswer(f"The answer was a redirect (HTTP {status}), which a SOAP call does not follow.")
    raise UnexpectedAnswer(f"The answer (HTTP {status}) is not one of CallFire's SOAP service.")


@contextmanager
def _errors_of_this_project(transport: "_Transport") -> Iterator[None]:
    try:
        yield
    except zeep.exceptions.Fault as fault:
        raise _from_fault(fault, transport.status) from None
    except (zeep.exceptions.Error, etree.LxmlError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UnexpectedAnswer(f"CallFire's answer could not be read ({type(error).__name__}).") from None


def _from_fault(fault: zeep.exceptions.Fault, status: int) -> CallFireError:
    code, message = _fault_info(fault)
    said = f"CallFire said {code}: {message}" if code else f"CallFire refused: {message}"
    said = said[:_LONGEST_QUOTE].rstrip(".") + "."
    kind = _BY_CODE.get(code) if code else _BY_STATUS.get(status)
    settled = kind in (NotFound, Unavailable)  # which code the account's limit has is not known
    if not settled and "limit" in message.lower() and "subscription" in message.lower():
        return LimitReached(said)
    if kind is not None:
        return kind(said)
    return BadRequest(said) if str(fault.code).endswith(("Sender", "Client")) else CallFireError(said)


def _fault_info(fault: zeep.exceptions.Fault) -> tuple[str, str]:
    code = message = ""
    detail = fault.detail
    if etree.iselement(detail):
        code = detail.findtext(f".//{_SVC}FaultCode") or ""
        message = detail.findtext(f".//{_SVC}Message") or detail.findtext(f".//{_SVC}Detail") or ""
    return code.strip(), " ".join((message or fault.message or "no reason given").split())


def _root_cause(error: BaseException) -> str:
    """Name what a library's nested errors are about, without the addresses that they print."""
    cause: BaseException = error
    while True:
        inner = (
            cause.__cause__
            or cause.__context__
            or next((a for a in (getattr(cause, "reason", None), *cause.args) if isinstance(a, BaseException)), None)
        )
        if inner is None or inner is cause:
            break
        cause = inner
    text = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or ""
    return str(text) or type(cause).__name__
