"""Group commit: whatever is waiting when the disk is free goes to it in one transaction.

One task gathers, one thread commits. While a transaction is on its way to the disk the next one fills up, so many
postbacks share one flush, and a single one never waits for company. Nobody is told of anything that is not committed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from forwarder.errors import Unavailable
from forwarder.outbox import LEASE_SECONDS, Delivery, Outbox, Posting, Result, Turn

MAX_BATCH: Final = 500
"""Most postings or results in one transaction."""
POLL_SECONDS: Final = 1.0
"""How often an idle forwarder looks for what others queued: a replay, or a lost forwarder's deliveries."""

log: Final = logging.getLogger(__name__)


class Hands(Protocol):
    """Where claimed deliveries go."""

    def room(self) -> int:
        """How many more deliveries can be taken."""

    def take(self, deliveries: list[Delivery]) -> None:
        """Take claimed deliveries, in the order in which they should be sent."""


class Commits:
    """The one writer of an outbox."""

    def __init__(self, outbox: Outbox, hands: Hands, on_counts: Callable[[Counter[str]], None]) -> None:
        self._outbox = outbox
        self._hands = hands
        self._on_counts = on_counts
        self._thread = ThreadPoolExecutor(1, "outbox")
        self._wake = asyncio.Event()
        self._postings: list[tuple[Posting, asyncio.Future[None]]] = []
        self._results: list[Result] = []
        self._behind = True
        self._next_look = 0.0
        self._claiming = True
        self._running = True

    async def store(self, posting: Posting) -> None:
        """Store `posting`; it is on disk when this returns. Raises Unavailable if nothing of it was stored."""
        if not self._running:
            raise Unavailable("the forwarder is stopping")
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._postings.append((posting, stored))
        self._wake.set()
        await stored

    def report(self, result: Result) -> None:
        """Write down how an attempt ended, as soon as the disk is free."""
        self._results.append(result)
        self._wake.set()

    def wake(self) -> None:
        """There is room again in the sender's hands."""
        if self._behind:
            self._wake.set()

    def stop_claiming(self) -> None:
        """Take nothing new into hand."""
        self._claiming = False

    async def stop(self) -> None:
        """Finish what is waiting, give back what is in hand, and end."""
        self._running = False
        self._wake.set()

    async def run(self) -> None:
        """Commit until stopped; a database that is gone is tried again until it is back."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + LEASE_SECONDS / 3
        while self._running or self._postings or self._results:
            await self._something_to_do(renew_at)
            try:
                if loop.time() >= renew_at:
                    renew_at = loop.time() + LEASE_SECONDS / 3
                    await loop.run_in_executor(self._thread, self._outbox.register)
                await self._turn()
            except Unavailable as error:
                log.error("outbox.unavailable %s", error)
                if not self._running:
                    break
                await asyncio.sleep(0.5)
        try:
            await loop.run_in_executor(self._thread, self._outbox.unregister)
        except Unavailable as error:
            log.error("outbox.unavailable %s", error)
        self._thread.shutdown()

    async def _something_to_do(self, renew_at: float) -> None:
        loop = asyncio.get_running_loop()
        if self._postings or self._results or not self._running:
            return
        until = min(renew_at, self._next_look)
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            self._next_look = min(self._next_look, loop.time())
        self._wake.clear()

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        postings, self._postings = self._postings[:MAX_BATCH], self._postings[MAX_BATCH:]
        results, self._results = self._results[:MAX_BATCH], self._results[MAX_BATCH:]
        room = self._hands.room() if self._claiming else 0
        look = room > 0 and (self._behind or loop.time() >= self._next_look)
        if not (postings or results or look):
            self._next_look = loop.time() + POLL_SECONDS
            return
        work = Turn([posting for posting, _ in postings], results, room, look)
        try:
            outcome = await loop.run_in_executor(self._thread, self._outbox.turn, work)
        except Unavailable as error:
            self._results = results + self._results
            for _, stored in postings:
                if not stored.done():
                    stored.set_exception(Unavailable(str(error)))
            raise
        for _, stored in postings:
            if not stored.done():
                stored.set_result(None)
        if outcome.claimed:
            self._hands.take(outcome.claimed)
        self._on_counts(outcome.counts)
        if look:
            self._behind = outcome.behind
            delay = POLL_SECONDS if outcome.next_due is None else outcome.next_due - self._outbox.clock()
            self._next_look = loop.time() + max(0.01, min(delay, POLL_SECONDS))
        else:
            self._behind = self._behind or outcome.behind
