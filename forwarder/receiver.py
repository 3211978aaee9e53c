"""The public port: postbacks in, and a sign of life; everything else is a 404 that tells nothing.

Authenticate, bound, parse, write down, then answer. This is plain ASGI because it is two paths and every post pays for
it. An authenticated postback is never refused for what it contains; 503 means that nothing of it was stored.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from forwarder.errors import Unavailable
from forwarder.numbers import mask
from forwarder.outbox import Posting, Quarantined, Routed
from forwarder.postback import Ignored, InboundText, Unreadable, parse_postback

MAX_BODY: Final = 1024 * 1024
"""Largest body that is read, in bytes."""
READ_SECONDS: Final = 10.0
"""How long a body may take to arrive."""
MAX_DISCARDED: Final = 8 * MAX_BODY
"""So much of a body that is too large is read and forgotten, because who is still sending does not read an answer."""
RETRY_AFTER: Final = 30
"""Seconds after which a postback that could not be stored may come again."""

_POSTBACK: Final = "/postback/"
_XML_OR_JSON: Final = frozenset({
    "", "text/xml", "application/xml", "application/soap+xml", "application/json", "text/json", "text/plain",
    "application/octet-stream", "application/x-www-form-urlencoded",
})  # fmt: skip
"""What a postback may call itself; what it is shows in its first byte."""

_NO_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = ()

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log: Final = logging.getLogger(__name__)


class _RefusedError(Exception):
    """The request is answered without being read to its end."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class Receiver:
    """The ASGI application of the public port."""

    def __init__(
        self,
        tokens: Sequence[str],
        route: Callable[[InboundText], Routed],
        store: Callable[[Posting], Awaitable[None]],
        clock: Callable[[], float],
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._route = route
        self._store = store
        self._clock = clock
        self._read_seconds = read_seconds
        self.token_used_at: list[float | None] = [None] * len(tokens)
        """When each token was last used, by its place in the settings."""
        self.answers: Counter[int] = Counter()
        """How many requests were answered with each status."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path: str = scope["path"]
        status, headers = 200, _NO_HEADERS
        try:
            if path.startswith(_POSTBACK):
                body = await self._postback(scope, receive)
            elif path == "/healthz":
                body = _healthz(scope["method"])
            else:
                raise _RefusedError(404, "not found")  # noqa: TRY301 - one place answers
        except _RefusedError as refusal:
            status, body, headers = refusal.status, {"status": str(refusal)}, refusal.headers
        self.answers[status] += 1
        await _answer(send, status, body, headers)

    async def _postback(self, scope: Scope, receive: Receive) -> dict[str, object]:
        self._authenticate(scope["path"][len(_POSTBACK) :])
        if scope["method"] != "POST":
            raise _RefusedError(405, "only POST", (b"allow", b"POST"))
        content_type = _check_headers(scope["headers"])
        posting = self._read(await self._body(receive), content_type)
        try:
            await self._store(posting)
        except Unavailable as error:
            log.error("postback.not_stored %s", error)
            raise _RefusedError(503, "not stored, send it again", (b"retry-after", b"%d" % RETRY_AFTER)) from error
        _log(posting)
        return {
            "status": "ok",
            "texts": len(posting.texts),
            "ignored": posting.ignored,
            "quarantined": len(posting.quarantined),
        }

    def _authenticate(self, token: str) -> None:
        """Compare with every token, each in constant time, whichever fits."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        fits = [hmac.compare_digest(digest, each) for each in self._digests]
        if True not in fits:
            raise _RefusedError(404, "not found")
        self.token_used_at[fits.index(True)] = self._clock()

    async def _body(self, receive: Receive) -> bytes:
        """The whole body, if it is small enough and arrives in time."""
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _RefusedError(400, "the body is incomplete")
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size <= MAX_BODY:
                        chunks.append(chunk)
                    elif size > MAX_DISCARDED or not message.get("more_body"):
                        raise _too_large()
                    if not message.get("more_body"):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError as error:
            raise _RefusedError(408, "the body took too long", (b"connection", b"close")) from error

    def _read(self, body: bytes, content_type: str) -> Posting:
        """What `body` leaves in the outbox: whatever it is, something does."""
        now = self._clock()
        try:
            events = parse_postback(body)
            texts = tuple(self._route(event) for event in events if isinstance(event, InboundText))
        except Exception as error:
            log.exception("postback.failed bytes=%s", len(body))
            return Posting(now, quarantined=(Quarantined(f"could not be read: {error!r}"[:2000], content_type, body),))
        reasons = [event.reason for event in events if isinstance(event, Unreadable)]
        quarantined = (Quarantined("; ".join(reasons)[:2000], content_type, body),) if reasons else ()
        return Posting(now, texts, quarantined, sum(isinstance(event, Ignored) for event in events))


def _log(posting: Posting) -> None:
    for routed in posting.texts:
        text = routed.text
        log.info(
            "postback.text text_id=%s from=%s to=%s recovered=%s",
            text.id,
            mask(text.from_number),
            mask(text.to_number),
            str(text.recovered).lower(),
        )
    for unread in posting.quarantined:
        log.warning("postback.quarantined bytes=%s reason=%r", len(unread.body), unread.reason)


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The content type, if the headers announce something that can be a postback."""
    content_type = ""
    for name, value in headers:
        if name == b"content-type":
            content_type = value.decode("latin-1")
        elif name == b"content-length" and int(value) > MAX_DISCARDED:
            raise _too_large()
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise _RefusedError(415, "compressed bodies are not read", (b"accept-encoding", b"identity"))
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in _XML_OR_JSON and not kind.endswith(("+xml", "+json")):
        raise _RefusedError(415, "neither XML nor JSON", (b"accept-post", b"text/xml, application/json"))
    return content_type


def _too_large() -> _RefusedError:
    return _RefusedError(413, f"more than {MAX_BODY} bytes", (b"connection", b"close"))


def _healthz(method: str) -> dict[str, object]:
    if method not in {"GET", "HEAD"}:
        raise _RefusedError(405, "only GET", (b"allow", b"GET, HEAD"))
    return {"service": "callfire-forwarder", "status": "ok", "pid": os.getpid()}


async def _answer(send: Send, status: int, body: dict[str, object], headers: Sequence[tuple[bytes, bytes]]) -> None:
    content = json.dumps(body).encode()
    await send({
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), *headers],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": content})
