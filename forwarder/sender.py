"""Takes claimed deliveries to the mail server: several connections, one delivery of a conversation at a time.

A refusal concerns one delivery: 5xx is final, 4xx is tried again later and later. A mail server that cannot be reached,
or takes nothing for now, concerns all of them: nothing is used up, everything waits until it is back.
"""

import asyncio
import logging
import random
import ssl
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from forwarder.errors import MailServerUnavailable
from forwarder.numbers import mask
from forwarder.outbox import LONGEST_WAIT, Delivery, Key, Result
from forwarder.schema import State
from forwarder.smtp import ConnectionLostError, Envelope, MailServer, Reply, SmtpConnection

IN_HAND: Final = 400
"""Most conversations in memory; the rest waits on disk."""
MOST_IN_HAND: Final = 4000
"""Most deliveries in memory, so that a conversation of very many neither fills it nor keeps out the others."""
IDLE_SECONDS: Final = 10.0
"""How long an unused connection is kept open."""

_Conversation = tuple[str, str, str]
"""From, to and recipient: what must arrive in its order."""

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """When to try again: later and later, never all at once, and one day no more. All in seconds."""

    first: float = 10.0
    longest: float = LONGEST_WAIT
    give_up_after: float = 5 * 86400.0
    least: int = 10
    """So many attempts come first, however old a delivery has become while the mail server was away."""

    def delay(self, attempts: int, jitter: Callable[[], float] = random.random) -> float:
        """Seconds to wait after `attempts` failures: doubling, between half and all of it."""
        full = min(self.longest, self.first * 2.0 ** min(attempts - 1, 30))
        return full * (0.5 + jitter() / 2)

    def is_over(self, attempts: int, waited: float) -> bool:
        """Whether a delivery that failed so often, and has waited so many seconds, is given up."""
        return waited >= self.give_up_after and attempts >= self.least


class Queue:
    """What is in hand: conversations in turn, each in the order of creation and one delivery at a time."""

    def __init__(self) -> None:
        self._waiting: dict[_Conversation, list[Delivery]] = {}
        self._under_way: dict[_Conversation, Delivery] = {}
        self._ready: deque[_Conversation] = deque()
        self.size = 0

    @property
    def active(self) -> int:
        """How many conversations have something that could be sent, or is being sent."""
        return len(self._ready) + len(self._under_way)

    def put(self, deliveries: list[Delivery]) -> None:
        """Add deliveries, each where it belongs in its conversation."""
        self.size += len(deliveries)
        for delivery in deliveries:
            conversation = _conversation(delivery)
            waiting = self._waiting.get(conversation)
            if waiting is None:
                self._waiting[conversation] = [delivery]
                if conversation not in self._under_way:
                    self._ready.append(conversation)
            else:
                insort(waiting, delivery, key=_place)

    def next(self) -> Delivery | None:
        """The next delivery whose conversation is not under way, or None if there is none."""
        if not self._ready:
            return None
        conversation = self._ready.popleft()
        waiting = self._waiting[conversation]
        delivery = waiting.pop(0)
        if not waiting:
            del self._waiting[conversation]
        self._under_way[conversation] = delivery
        return delivery

    def put_back(self, delivery: Delivery) -> None:
        """Put a delivery that was not tried in front of all."""
        conversation = _conversation(delivery)
        del self._under_way[conversation]
        if conversation in self._waiting:
            insort(self._waiting[conversation], delivery, key=_place)
        else:
            self._waiting[conversation] = [delivery]
        self._ready.appendleft(conversation)

    def done(self, delivery: Delivery) -> None:
        """Forget a delivery; the next of its conversation may go."""
        self.size -= 1
        conversation = _conversation(delivery)
        del self._under_way[conversation]
        if conversation in self._waiting:
            self._ready.append(conversation)

    def keys(self) -> set[Key]:
        """What is here, waiting or under way."""
        waiting = (delivery for several in self._waiting.values() for delivery in several)
        return {delivery.key for delivery in (*waiting, *self._under_way.values())}

    def drain(self) -> list[Delivery]:
        """Take out all that wait."""
        drained = [delivery for waiting in self._waiting.values() for delivery in waiting]
        self.size -= len(drained)
        self._waiting.clear()
        self._ready.clear()
        return drained

    def remove(self, keys: Collection[Key]) -> None:
        """Forget those of `keys` that wait."""
        for conversation, waiting in list(self._waiting.items()):
            kept = [delivery for delivery in waiting if delivery.key not in keys]
            self.size -= len(waiting) - len(kept)
            if kept:
                self._waiting[conversation] = kept
            else:
                del self._waiting[conversation]
        self._ready = deque(conversation for conversation in self._ready if conversation in self._waiting)


class Sender:
    """Several connections that empty one queue."""

    def __init__(  # noqa: PLR0913 - the wiring of app.py
        self,
        server: MailServer,
        context: ssl.SSLContext | None,
        compose: Callable[[Delivery], Envelope],
        report: Callable[[Result], None],
        wake: Callable[[], None],
        *,
        connections: int = 4,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.queue = Queue()
        self.connections = connections
        self.trouble: str | None = None
        """Why no mail can be handed over at present."""
        self.last_contact: float | None = None
        """When the mail server last took something."""
        self._server = server
        self._context = context
        self._compose = compose
        self._report = report
        self._wake = wake
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._failures = 0
        self._closed_until: asyncio.TimerHandle | None = None
        self._trying = 0
        self._making_way = False
        self._held = False
        self._lost_keys: set[Key] = set()
        """What was under way when others took it over."""
        self._stopping = False
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def room(self) -> int:
        """How many more deliveries can be taken."""
        if self.trouble:  # one is enough to see whether the mail server is back
            return int(not (self._closed_until or self.queue.size))
        return max(0, min(IN_HAND - self.queue.active, MOST_IN_HAND - self.queue.size))

    def take(self, deliveries: list[Delivery]) -> None:
        """Take claimed deliveries, in the order in which they should be sent."""
        self._lost_keys -= {delivery.key for delivery in deliveries}
        self.queue.put(deliveries)
        if self._closed_until:
            self._give_back()
        self._news.set()

    def in_hand(self) -> set[Key]:
        """What was taken and not reported yet."""
        return self.queue.keys()

    def let_go(self, keys: Collection[Key]) -> None:
        """Forget those of `keys` whose content is not on its way: they are others' now."""
        self.queue.remove(keys)
        self._lost_keys |= self.queue.keys() & {*keys}

    def make_way(self, *, busy: bool) -> None:
        """While postbacks rush in, one connection goes on and the others wait."""
        if self._making_way and not busy:
            self._news.set()
        self._making_way = busy

    def hold(self) -> None:
        """Send no mail's content until `go_on`, unless it is on its way."""
        self._held = True

    def go_on(self) -> None:
        """The end of `hold`."""
        self._held = False
        self._news.set()

    def start(self) -> None:
        """Open for business; connections are made when there is something to send."""
        self._tasks = [asyncio.create_task(self._work(), name=f"smtp-{n}") for n in range(self.connections)]

    async def stop(self, seconds: float) -> None:
        """Let what is under way end, for at most `seconds`; what has not begun stays in the outbox."""
        self._stopping = True
        self._news.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._closed_until:
            self._closed_until.cancel()

    async def _work(self) -> None:
        """Send until stopped, over one connection as long as it lasts."""
        connection: SmtpConnection | None = None
        while not self._stopping:
            mail = await self._wait_for_mail(IDLE_SECONDS if connection else None)
            if mail:
                connection = await self._send(connection, mail)
            elif connection:
                await connection.close()
                connection = None
        if connection:
            await connection.close()

    async def _wait_for_mail(self, patience: float | None) -> "_Mail | None":
        """The next mail, or None when the forwarder stops or there is none for `patience` seconds."""
        while not self._stopping:
            mail = self._next()
            if mail:
                return mail
            self._news.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                return None
        return None

    def _next(self, *, going_on: bool = False) -> "_Mail | None":
        """The next mail, if one may be sent at present; one that cannot be made is dead, and the next is tried."""
        while self._may_begin(going_on=going_on):
            delivery = self.queue.next()
            if delivery is None:
                return None
            try:
                return _Mail(delivery, self._compose(delivery))
            except Exception as error:
                log.exception("delivery.uncomposable text_id=%s", delivery.text.id)
                self._settle(delivery, Reply(554, f"the mail could not be made: {error}"))
        return None

    def _may_begin(self, *, going_on: bool) -> bool:
        """Whether another mail may be begun, by a connection that is at work already (`going_on`) or by one more."""
        if self._stopping or self._held or self._closed_until or (self.trouble and self._trying):
            return False
        return not self._making_way or self._trying <= going_on

    def _may_go_on(self, mail: "_Mail") -> bool:
        """Whether the content of `mail` may be sent, asked at the last moment: it may have begun long ago."""
        return not self._held and mail.delivery.key not in self._lost_keys

    async def _send(self, connection: SmtpConnection | None, mail: "_Mail") -> SmtpConnection | None:
        """Send `mail` and what comes after it; returns the connection if it can be used again."""
        self._trying += 1
        exchange = _Exchange(mail)
        try:
            if connection is None or not connection.alive:
                connection = await SmtpConnection.open(self._server, self._context)
            await self._exchange(connection, exchange)
        except MailServerUnavailable as error:
            self._put_back(exchange)
            self._server_is_away(str(error))
        except ConnectionLostError as error:
            self._lost(exchange, str(error))
        except Exception as error:
            log.exception("sender.failed")
            exchange.in_doubt = True
            self._lost(exchange, f"sending failed: {error!r}")
        else:
            return connection if connection.alive else None
        finally:
            self._trying -= 1
            if exchange.current and connection:  # cancelled: the outbox gives it back
                connection.abort()
        if connection:
            connection.abort()
        return None

    async def _exchange(self, connection: SmtpConnection, exchange: "_Exchange") -> None:
        """Send mail after mail; with PIPELINING each together with the announcement of the next."""
        offered = False
        while exchange.current:
            mail = exchange.current
            exchange.reused, exchange.in_doubt = connection.used, False
            if not offered:
                connection.offer(mail.envelope)
            reply = await connection.answer_to_offer(mail.envelope)
            offered = False
            if reply is None and not self._may_go_on(mail):
                connection.abort()  # it waits for the content, which nobody else may be sending
                self._put_back(exchange)
                return
            if reply is None:
                exchange.following = self._next(going_on=True) if connection.pipelining else None
                exchange.in_doubt, offered = True, exchange.following is not None
                connection.deliver(mail.envelope, exchange.following.envelope if exchange.following else None)
                reply = await connection.outcome()
            exchange.current = None
            self._server_is_there()
            self._settle(mail.delivery, reply)
            exchange.current, exchange.following = exchange.following, None
            if exchange.current is None and connection.alive:
                exchange.current = self._next(going_on=True)

    def _put_back(self, exchange: "_Exchange") -> None:
        """What was not tried is as it was."""
        for mail in (exchange.following, exchange.current):
            if mail and mail.delivery.key in self._lost_keys:
                self._done(mail.delivery)
            elif mail:
                self.queue.put_back(mail.delivery)
        exchange.current = exchange.following = None
        self._news.set()

    def _lost(self, exchange: "_Exchange", reason: str) -> None:
        """A connection broke: what may have arrived is tried again later, what was only announced at once.

        One that was kept open may have been closed meanwhile, which concerns nothing. If a new one broke before it
        took anything, that may be the mail's fault or the server's: the mail waits its time, and the server as well.
        """
        tried = exchange.current if exchange.in_doubt or not exchange.reused else None
        if tried:
            exchange.current = None
        self._put_back(exchange)
        if tried:
            self._settle(tried.delivery, Reply(0, reason))
            if not exchange.in_doubt:
                self._server_is_away(f"mail server {self._server.host}:{self._server.port}: {reason}")

    def _done(self, delivery: Delivery) -> None:
        self._lost_keys.discard(delivery.key)
        self.queue.done(delivery)

    def _server_is_there(self) -> None:
        if self.trouble:
            log.info("mail.available host=%s", self._server.host)
            self.trouble = None
            self._news.set()
            self._wake()
        if self._closed_until:
            self._closed_until.cancel()
            self._closed_until = None
        self._failures = 0

    def _server_is_away(self, reason: str) -> None:
        """Everything waits, longer each time; then one connection tries whether the mail server is back.

        What waits does so in the outbox: there it keeps its order among what still comes in, and another forwarder that
        does reach the mail server can take it.
        """
        if not self._closed_until:
            self._failures += 1
            if reason != self.trouble:
                log.error("mail.unavailable %s", reason)
            self.trouble = reason
            delay = Backoff(1.0, 60.0).delay(self._failures)
            self._closed_until = asyncio.get_running_loop().call_later(delay, self._try_again)
        self._give_back()

    def _give_back(self) -> None:
        for delivery in self.queue.drain():
            answer = self.trouble or ""
            self._report(Result(delivery, State.QUEUED, delivery.attempts, delivery.order, answer))

    def _try_again(self) -> None:
        self._closed_until = None
        self._news.set()
        self._wake()

    def _settle(self, delivery: Delivery, reply: Reply) -> None:
        """Write down how an attempt ended, and let the next delivery of the conversation go."""
        now = self._clock()
        attempts = delivery.attempts + 1
        next_at = now
        if reply.accepted:
            state, self.last_contact = State.SENT, now
        elif reply.permanent or self._backoff.is_over(attempts, now - delivery.queued_at):
            state = State.DEAD
        else:
            state, next_at = State.QUEUED, now + self._backoff.delay(attempts)
        answer = str(reply) if reply.code else reply.text
        self._report(Result(delivery, state, attempts, next_at, answer))
        self._done(delivery)
        self._news.set()
        if self.room() >= IN_HAND // 2:
            self._wake()
        event = {State.SENT: "sent", State.QUEUED: "retry", State.DEAD: "dead"}[state]
        log.log(
            logging.INFO if state is State.SENT else logging.WARNING,
            "delivery.%s text_id=%s from=%s attempts=%s answer=%r",
            event,
            delivery.text.id,
            mask(delivery.text.from_number),
            attempts,
            answer,
        )


@dataclass(frozen=True, slots=True)
class _Mail:
    """A delivery and the mail it is."""

    delivery: Delivery
    envelope: Envelope


@dataclass(slots=True)
class _Exchange:
    """What is under way on one connection."""

    current: _Mail | None
    following: _Mail | None = None
    """Announced behind the content of `current`."""
    reused: bool = False
    """The connection took, or refused, a mail before `current`."""
    in_doubt: bool = False
    """The content of `current` is on its way: if the connection breaks, it may have arrived."""


def _conversation(delivery: Delivery) -> _Conversation:
    return delivery.text.from_number, delivery.text.to_number, delivery.recipient


def _place(delivery: Delivery) -> tuple[float, int]:
    return delivery.order, delivery.text.id
