"""Takes claimed deliveries to the mail server: several connections, one delivery of a conversation at a time.

A refusal concerns one delivery: 5xx is final, 4xx is tried again later and later. A mail server that cannot be reached
concerns all of them: nothing is used up, everything waits until it is back.
"""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from forwarder.errors import MailServerUnavailable
from forwarder.numbers import mask
from forwarder.outbox import Delivery, Result
from forwarder.schema import State
from forwarder.smtp import ConnectionLostError, Envelope, MailServer, Reply, SmtpConnection

IN_HAND: Final = 400
"""Most deliveries in memory; the rest waits on disk."""
IDLE_SECONDS: Final = 10.0
"""How long an unused connection is kept open."""

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """When to try again: later and later, never all at once, and one day no more. All in seconds."""

    first: float = 10.0
    longest: float = 4 * 3600.0
    give_up_after: float = 5 * 86400.0

    def delay(self, attempts: int, jitter: Callable[[], float] = random.random) -> float:
        """Seconds to wait after `attempts` failures: doubling, between half and all of it."""
        full = min(self.longest, self.first * 2.0 ** min(attempts - 1, 30))
        return full * (0.5 + jitter() / 2)


class Queue:
    """What is in hand, in order: no two deliveries of one conversation are ever under way at once."""

    def __init__(self) -> None:
        self._ready: deque[Delivery] = deque()
        self._busy: dict[tuple[str, str, str], deque[Delivery]] = {}
        self._arrived = asyncio.Event()
        self.size = 0

    def put(self, deliveries: list[Delivery]) -> None:
        """Add deliveries behind those that wait."""
        self._ready.extend(deliveries)
        self.size += len(deliveries)
        self._arrived.set()

    def put_back(self, delivery: Delivery) -> None:
        """Put a delivery that was not tried in front of all."""
        self._free(delivery, first=delivery)

    def done(self, delivery: Delivery) -> None:
        """Forget a delivery; the next of its conversation may go."""
        self.size -= 1
        self._free(delivery)

    def next(self) -> Delivery | None:
        """The next delivery whose conversation is not under way, or None if there is none."""
        while self._ready:
            delivery = self._ready.popleft()
            waiting = self._busy.get(_conversation(delivery))
            if waiting is None:
                self._busy[_conversation(delivery)] = deque()
                return delivery
            waiting.append(delivery)
        self._arrived.clear()
        return None

    async def wait(self) -> None:
        """Wait until there may be something."""
        await self._arrived.wait()

    def _free(self, delivery: Delivery, first: Delivery | None = None) -> None:
        waiting = self._busy.pop(_conversation(delivery))
        if first:
            waiting.appendleft(first)
        self._ready.extendleft(reversed(waiting))
        if waiting:
            self._arrived.set()


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
        self._gate = asyncio.Event()
        self._gate.set()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def room(self) -> int:
        """How many more deliveries can be taken."""
        return 0 if self.trouble else max(0, IN_HAND - self.queue.size)

    def take(self, deliveries: list[Delivery]) -> None:
        """Take claimed deliveries, in the order in which they should be sent."""
        self.queue.put(deliveries)

    def start(self) -> None:
        """Open for business; connections are made when there is something to send."""
        self._tasks = [asyncio.create_task(self._work(), name=f"smtp-{n}") for n in range(self.connections)]

    async def stop(self, seconds: float) -> None:
        """Let what is under way end, for at most `seconds`; what has not begun stays in the outbox."""
        self._stopping.set()
        self.queue.put([])
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self) -> None:
        connection: SmtpConnection | None = None
        try:
            while not self._stopping.is_set():
                try:
                    connection = await self._serve(connection)
                except Exception:
                    log.exception("sender.failed")
                    await asyncio.sleep(1)
        finally:
            if connection:
                await connection.close()

    async def _serve(self, connection: SmtpConnection | None) -> SmtpConnection | None:
        """Wait for a delivery and send it and those behind it; returns the connection if it can be used again."""
        delivery = await self._next_delivery(connection)
        if delivery is None:
            if connection:
                await connection.close()
            return None
        if connection is None or not connection.alive:
            connection = await self._connect(delivery)
            if connection is None:
                return None
        await self._send_all(connection, delivery)
        return connection if connection.alive else None

    async def _next_delivery(self, connection: SmtpConnection | None) -> Delivery | None:
        """The next delivery, or None when there is none for so long that the connection is not worth keeping."""
        await self._gate.wait()
        while not self._stopping.is_set():
            delivery = self.queue.next()
            if delivery:
                return delivery
            try:
                async with asyncio.timeout(IDLE_SECONDS if connection else None):
                    await self.queue.wait()
            except TimeoutError:
                return None
        return None

    async def _connect(self, delivery: Delivery) -> SmtpConnection | None:
        """A new connection; if there is none to be had, everything waits."""
        try:
            connection = await SmtpConnection.open(self._server, self._context)
        except MailServerUnavailable as error:
            self.queue.put_back(delivery)
            await self._wait_for_server(str(error))
            return None
        if self.trouble:
            log.info("mail.available host=%s", self._server.host)
        self._failures, self.trouble = 0, None
        self._wake()
        return connection

    async def _wait_for_server(self, reason: str) -> None:
        if not self._gate.is_set():
            return
        self._gate.clear()
        try:
            self._failures += 1
            if reason != self.trouble:
                log.error("mail.unavailable %s", reason)
            self.trouble = reason
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(Backoff(1.0, 60.0).delay(self._failures)):
                    await self._stopping.wait()
        finally:
            self._gate.set()

    async def _send_all(self, connection: SmtpConnection, delivery: Delivery) -> None:  # noqa: C901 - one exchange, told in its order
        """Send `delivery`, and with PIPELINING whatever is ready behind it in the same breath."""
        current: Delivery | None = delivery
        envelope = self._envelope(delivery)
        offered = False
        while current and connection.alive:
            if envelope is None:
                current = self._next()
                envelope = self._envelope(current) if current else None
                continue
            following: Delivery | None = None
            in_doubt = False
            try:
                reused = connection.used
                if not offered:
                    connection.offer(envelope)
                reply = await connection.answer_to_offer(envelope)
                offered = False
                next_envelope = None
                if reply is None:
                    if connection.pipelining and not self._stopping.is_set():
                        following = self._next()
                        next_envelope = self._envelope(following) if following else None
                        if next_envelope is None:
                            following = None
                    in_doubt = True
                    connection.deliver(envelope, next_envelope)
                    offered = next_envelope is not None
                    reply = await connection.outcome()
            except ConnectionLostError as error:
                if following:
                    self.queue.put_back(following)
                if reused and not in_doubt:
                    self.queue.put_back(current)
                else:
                    self._settle(current, Reply(0, str(error)))
                return
            self._settle(current, reply)
            if following is None:
                following = self._next()
                next_envelope = self._envelope(following) if following else None
            current, envelope = following, next_envelope

    def _next(self) -> Delivery | None:
        return None if self._stopping.is_set() else self.queue.next()

    def _envelope(self, delivery: Delivery) -> Envelope | None:
        """The mail; one that cannot be made is dead, and the next is tried."""
        try:
            return self._compose(delivery)
        except Exception as error:
            log.exception("delivery.uncomposable text_id=%s", delivery.text.id)
            self._settle(delivery, Reply(554, f"the mail could not be made: {error}"))
            return None

    def _settle(self, delivery: Delivery, reply: Reply) -> None:
        """Write down how an attempt ended, and let the next delivery of the conversation go."""
        now = self._clock()
        attempts = delivery.attempts + 1
        next_at = now
        if reply.accepted:
            state, self.last_contact = State.SENT, now
        elif reply.permanent or now >= delivery.queued_at + self._backoff.give_up_after:
            state = State.DEAD
        else:
            state, next_at = State.QUEUED, now + self._backoff.delay(attempts)
        answer = str(reply) if reply.code else reply.text
        self._report(Result(delivery, state, attempts, next_at, answer))
        self.queue.done(delivery)
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


def _conversation(delivery: Delivery) -> tuple[str, str, str]:
    return delivery.text.from_number, delivery.text.to_number, delivery.recipient
