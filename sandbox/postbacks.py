"""Sends postbacks to subscriptions' endpoints and keeps a log of what was posted and answered.

CallFire's connection to the outside world. Each subscription has a lane of its own: its postbacks go out one after
the other, and an endpoint that hangs holds up no other.
"""

import asyncio
import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import count
from urllib.parse import quote

import httpcore

from sandbox.accounts import Account, email_address
from sandbox.errors import BusyError, NotFoundError
from sandbox.events import Event, Notification, compose_notification, malformed
from sandbox.journal import BoundedLog, Feed, Topic
from sandbox.subscriptions import Subscription
from sandbox.trouble import Trouble, Troubles

_LOG = logging.getLogger("sandbox")

MAX_ANSWER = 16 * 1024
"""Bytes of an endpoint's answer that are read and kept."""
MAX_WAITING = 50_000
"""Postbacks that may wait to be sent."""

MAX_SENDING = 200
"""Postbacks that are sent at the same time. Others wait their turn, which does not count against the timeout."""
MAX_KEPT = 50
"""Connections that are kept open for the next postback."""

_IN_URLS = ":/?#[]@!$&'()*+,;=%~"
"""Besides letters and digits, what an endpoint's URL keeps; all else is sent percent-encoded (RFC 3987)."""

Deliver = Callable[[str, Event, int], None]
"""Puts a notification by mail into a mailbox: address, event, subscription id."""


class PostbackState(StrEnum):
    """Where a postback is."""

    WAITING = "waiting"
    SENDING = "sending"
    ANSWERED = "answered"
    """The endpoint answered, with whatever status."""
    FAILED = "failed"
    """No answer: refused, timed out, cut off. CallFire is not known to try again, so the sandbox does not."""
    LOST = "lost"
    """Never sent, as the trouble on demand wants it."""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self not in {PostbackState.WAITING, PostbackState.SENDING}


@dataclass(slots=True, kw_only=True)
class Postback:
    """One entry of the delivery log. Times are UTC; `duration` is in seconds."""

    id: int
    account: str
    subscription: Subscription
    event: Event
    resend_of: int | None = None
    trouble: Trouble | None = None
    state: PostbackState = PostbackState.WAITING
    queued: datetime = field(default_factory=lambda: datetime.now(UTC))
    sent: datetime | None = None
    duration: float | None = None
    request_headers: dict[str, str] = field(default_factory=dict)
    request_body: str = ""
    status: int | None = None
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer_body: str = ""
    error: str | None = None

    def size(self) -> int:
        """Roughly its bytes in memory."""
        headers = sum(len(k) + len(v) for k, v in (*self.request_headers.items(), *self.answer_headers.items()))
        return 2000 + headers + len(self.request_body) + len(self.answer_body)

    def as_json(self) -> dict[str, object]:
        """The postback as the control API shows it."""
        return {
            "id": self.id,
            "account": self.account,
            "subscription_id": str(self.subscription.id),
            "endpoint": self.subscription.endpoint,
            "format": self.subscription.notification_format,
            "event": {"kind": self.event.kind, "id": str(self.event.id), "trigger": self.event.facts().trigger},
            "resend_of": self.resend_of,
            "trouble": self.trouble,
            "state": self.state,
            "queued": self.queued.isoformat(),
            "sent": self.sent.isoformat() if self.sent else None,
            "duration": self.duration,
            "request": {"headers": self.request_headers, "body": self.request_body},
            "answer": {"status": self.status, "headers": self.answer_headers, "body": self.answer_body},
            "error": self.error,
        }


class PostbackSender:
    """Posts events to the subscriptions that want them.

    Args:
        feed: is told about every change of a postback.
        mail: delivers what goes out by mail.
        troubles: say which postbacks go wrong.
        timeout: seconds that an endpoint has to answer; CallFire's own patience is not known.
    """

    def __init__(self, feed: Feed, mail: Deliver, troubles: Troubles, timeout: float) -> None:
        self.log: BoundedLog[Postback] = BoundedLog(max_entries=5000, max_bytes=64 * 1024 * 1024)
        self._feed = feed
        self._mail = mail
        self._troubles = troubles
        self._timeout = timeout
        self._ids = count(1)
        self._lanes: dict[int, deque[Postback]] = {}
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._held: dict[int, Postback] = {}
        self._delayed: set[asyncio.TimerHandle] = set()
        self._waiting = 0
        self._sending = asyncio.Semaphore(MAX_SENDING)
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}

    def announce(self, account: Account, event: Event) -> list[Postback]:
        """Queue a postback to every subscription of the account that wants the event.

        Raises:
            BusyError: too many postbacks wait already; none was queued.
        """
        wanting = list(account.wanting(event.facts()))
        self._check_room(len(wanting))
        return [self._queue(account.login, subscription, event) for subscription in wanting]

    def resend(self, ident: int) -> Postback:
        """Post once more what a postback of the log said, to the same endpoint.

        Raises:
            NotFoundError: the log has no such postback, or has forgotten it.
            BusyError: too many postbacks wait already.
        """
        before = self.log.get(ident)
        if before is None:
            raise NotFoundError(f"no postback {ident} in the log")
        self._check_room(1)
        return self._queue(before.account, before.subscription, before.event, resend_of=ident)

    async def stop(self) -> None:
        """Drop what waits and close the connections."""
        await self.abandon()
        for pool in self._pools.values():
            await pool.aclose()
        self._pools.clear()

    async def abandon(self) -> None:
        """Drop what waits or is being sent."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for handle in self._delayed:
            handle.cancel()
        self._delayed.clear()
        self._held.clear()
        self._lanes.clear()
        self._workers.clear()
        self._waiting = 0

    def reset(self) -> None:
        """Forget the log and count from one again. Call `abandon` first."""
        self.log.clear()
        self._ids = count(1)

    def _check_room(self, wanted: int) -> None:
        if self._waiting + wanted > MAX_WAITING:
            raise BusyError(f"{self._waiting} postbacks wait to be sent; try again when the endpoints have caught up")

    def _queue(self, login: str, subscription: Subscription, event: Event, resend_of: int | None = None) -> Postback:
        """Put a postback on its subscription's lane, or where the trouble that is due wants it."""
        postback = Postback(
            id=next(self._ids), account=login, subscription=subscription, event=event, resend_of=resend_of
        )
        rule = self._troubles.strike("postback")
        postback.trouble = rule.kind if rule else None
        self._record(postback)
        match postback.trouble:
            case Trouble.POSTBACK_LOST:
                postback.state = PostbackState.LOST
            case Trouble.POSTBACK_LATE if rule:
                self._delay(postback, rule.seconds or 0)
            case Trouble.POSTBACK_SWAPPED if subscription.id not in self._held:
                self._waiting += 1
                self._held[subscription.id] = postback
            case Trouble.POSTBACK_TWICE:
                self._append(postback)
                again = replace(postback, id=next(self._ids))
                self._record(again)
                self._append(again)
            case _:
                self._append(postback)
        return postback

    def _record(self, postback: Postback) -> None:
        self.log.add(postback)
        self._feed.publish(Topic.POSTBACKS)

    def _append(self, postback: Postback) -> None:
        """To the end of its lane, with the one that was held back for it behind it."""
        lane = postback.subscription.id
        waiting = self._lanes.setdefault(lane, deque())
        waiting.append(postback)
        self._waiting += 1
        if lane in self._held:
            waiting.append(self._held.pop(lane))
        if lane not in self._workers:
            self._workers[lane] = asyncio.get_running_loop().create_task(self._work(lane))

    def _delay(self, postback: Postback, seconds: float) -> None:
        def arrive() -> None:
            self._delayed.discard(handle)
            self._waiting -= 1
            self._append(postback)

        self._waiting += 1
        handle = asyncio.get_running_loop().call_later(seconds, arrive)
        self._delayed.add(handle)

    async def _work(self, lane: int) -> None:
        waiting = self._lanes[lane]
        try:
            while waiting:
                async with self._sending:
                    postback = waiting.popleft()
                    self._waiting -= 1
                    await self._send(postback)
                self.log.update(postback)
                self._feed.publish(Topic.POSTBACKS)
        finally:
            self._lanes.pop(lane, None)
            self._workers.pop(lane, None)

    async def _send(self, postback: Postback) -> None:
        address = email_address(postback.subscription.endpoint)
        postback.sent = datetime.now(UTC)
        started = time.perf_counter()
        try:
            if address:
                self._mail(address, postback.event, postback.subscription.id)
                postback.state = PostbackState.ANSWERED
            else:
                await self._post(postback, _notification(postback))
        except Exception as error:  # noqa: BLE001 - a lane goes on whatever one postback meets with
            _LOG.exception("postback.failed id=%d", postback.id)
            _fail(postback, f"{type(error).__name__}: {error}")
        postback.duration = round(time.perf_counter() - started, 6)

    async def _post(self, postback: Postback, notification: Notification) -> None:
        postback.state = PostbackState.SENDING
        postback.request_body = notification.body.decode()
        try:
            url = httpcore.URL(quote(postback.subscription.endpoint, safe=_IN_URLS))
            headers = _headers(url, notification)
            postback.request_headers = {k.decode(): v.decode("latin-1") for k, v in headers}
            pool = self._pool(url, strict=not postback.subscription.non_strict_ssl)
            async with (
                asyncio.timeout(self._timeout),
                pool.stream("POST", url, headers=headers, content=_content(postback, notification)) as answer,
            ):
                postback.status = answer.status
                postback.answer_headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in answer.headers}
                postback.answer_body = await _read(answer)
            postback.state = PostbackState.ANSWERED
        except _CutError as error:
            _fail(postback, str(error))
        except TimeoutError:
            _fail(postback, f"no answer within {self._timeout:g} s")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError) as error:
            _fail(postback, f"{type(error).__name__}: {error}")
        except AttributeError as error:  # anyio's, where the endpoint hangs up before anyio looks at the new connection
            _LOG.info("postback.failed id=%d", postback.id, exc_info=error)
            _fail(postback, "the endpoint hung up at once")

    def _pool(self, url: httpcore.URL, *, strict: bool) -> httpcore.AsyncConnectionPool:
        kind = "plain" if url.scheme == b"http" else "strict" if strict else "lenient"
        if kind not in self._pools:
            context = None
            if kind != "plain":
                context = ssl.create_default_context()
            if context and kind == "lenient":
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            # A kept connection is dropped before the usual server (5 s) drops it under a postback.
            self._pools[kind] = httpcore.AsyncConnectionPool(
                context, max_connections=MAX_SENDING, max_keepalive_connections=MAX_KEPT, keepalive_expiry=2.0
            )
        return self._pools[kind]


def _notification(postback: Postback) -> Notification:
    subscription = postback.subscription
    notification = compose_notification(postback.event, subscription.id, subscription.notification_format)
    return malformed(notification) if postback.trouble is Trouble.POSTBACK_MALFORMED else notification


def _headers(url: httpcore.URL, notification: Notification) -> list[tuple[bytes, bytes]]:
    """CallFire's headers, as captured (CONTRACT.md section 5)."""
    default_port = {b"http": 80, b"https": 443}.get(url.scheme)
    host = url.host if url.port in {None, default_port} else b"%b:%d" % (url.host, url.port)
    return [
        (b"Content-Type", notification.content_type.encode()),
        (b"Content-Length", b"%d" % len(notification.body)),
        (b"Host", host),
        (b"Connection", b"Keep-Alive"),
        (b"User-Agent", b"CallFire-HTTP/1.0"),
    ]


class _CutError(Exception):
    """Stops a request in the middle of its body."""


def _content(postback: Postback, notification: Notification) -> bytes | AsyncIterator[bytes]:
    return _half(notification.body) if postback.trouble is Trouble.POSTBACK_CUT else notification.body


async def _half(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    raise _CutError("cut off in the middle of the body")


async def _read(answer: httpcore.Response) -> str:
    """The beginning of an answer's body; the rest of a longer one is never read."""
    body = bytearray()
    async for chunk in answer.aiter_stream():
        body += chunk
        if len(body) >= MAX_ANSWER:
            break
    return bytes(body[:MAX_ANSWER]).decode("utf-8", "replace")


def _fail(postback: Postback, error: str) -> None:
    postback.state = PostbackState.FAILED
    postback.error = error
