"""Group commit: whatever is waiting when the disk is free goes to it in one transaction.

One task gathers, one thread commits. While a transaction is on its way to the disk the next one fills up, so many
postbacks share one flush, and a single one never waits for company. Nobody is told of anything that is not committed.

While the outbox cannot be written, or the lease on what is in hand has ended, nothing is handed to the mail server: a
mail whose fate cannot be written down would be sent again.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

from forwarder.errors import Unavailable, Unstorable
from forwarder.outbox import LEASE_SECONDS, Delivery, Key, Outbox, Outcome, Posting, Quarantined, Result, Turn
from forwarder.schema import State

MAX_BATCH: Final = 500
"""Most postings or results in one transaction."""
POLL_SECONDS: Final = 1.0
"""How often an idle forwarder looks for what others queued: a replay, or a lost forwarder's deliveries."""
RIDE_SECONDS: Final = 0.01
"""How long results wait for a postback whose flush they can share."""
BUSY: Final = 16
"""So many postbacks in one transaction are a rush."""
RETRY_SECONDS: Final = 0.5
"""How long to wait for a database that is gone before trying it again."""
LAST_SECONDS: Final = 5.0
"""How long a stopping forwarder tries to write down what it knows."""

log: Final = logging.getLogger(__name__)

_Returned = TypeVar("_Returned")


class Hands(Protocol):
    """Where claimed deliveries go."""

    def room(self) -> int:
        """How many more deliveries can be taken."""

    def take(self, deliveries: list[Delivery]) -> None:
        """Take claimed deliveries, in the order in which they should be sent."""

    def in_hand(self) -> Collection[Key]:
        """What was taken and not reported yet."""

    def let_go(self, keys: Collection[Key]) -> None:
        """Forget those of `keys` whose content is not on its way: they are others' now."""

    def make_way(self, *, busy: bool) -> None:
        """Whether many postbacks are coming in: they may come only once, and a mail can wait."""

    def hold(self) -> None:
        """Send no mail's content until `go_on`, unless it is on its way."""

    def go_on(self) -> None:
        """The end of `hold`."""


class Commits:
    """The one writer of an outbox."""

    def __init__(self, outbox: Outbox, hands: Hands, on_counts: Callable[[Counter[str]], None]) -> None:
        self.doubtful = False
        """Something could not be written down, and no postback has been since."""
        self._outbox = outbox
        self._hands = hands
        self._on_counts = on_counts
        self._thread = ThreadPoolExecutor(1, "outbox")
        self._wake = asyncio.Event()
        self._postings: list[tuple[Posting, asyncio.Future[None]]] = []
        self._results: list[Result] = []
        self._write_results_at = 0.0
        self._behind = True
        self._wanted = False
        self._next_look = 0.0
        self._renew_at = 0.0
        self._lease: asyncio.TimerHandle | None = None
        self._in_doubt = False
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
        if not self._results:
            self._write_results_at = asyncio.get_running_loop().time() + RIDE_SECONDS
            self._wake.set()
        self._results.append(result)

    def wake(self) -> None:
        """There is much room in the sender's hands."""
        if self._behind:
            self._wanted = True
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
        give_up_at = None
        self._leased()
        try:
            while self._running or self._postings or self._results:
                await self._something_to_do()
                try:
                    await self._work()
                except (Unavailable, Unstorable) as error:
                    log.error("outbox.unavailable %s", error)
                    self.doubtful = True
                    self._in_doubt = True
                    self._hands.hold()
                    give_up_at = give_up_at or loop.time() + LAST_SECONDS
                    if not self._running and loop.time() >= give_up_at:
                        break
                    await self._pause()
                else:
                    give_up_at = None
            with contextlib.suppress(Unavailable):
                await self._in_thread(self._outbox.unregister)
        finally:
            self._running = False
            self._refuse(self._postings, "the forwarder is stopping")
            if self._lease:
                self._lease.cancel()
            self._thread.shutdown()

    async def _pause(self) -> None:
        """Wait before the database is tried again, unless the forwarder is stopping and wants to know."""
        self._refuse(self._postings, "the database cannot be written")
        self._postings = []
        await asyncio.sleep(RETRY_SECONDS if self._running else RETRY_SECONDS / 5)

    @staticmethod
    def _refuse(postings: list[tuple[Posting, asyncio.Future[None]]], reason: str) -> None:
        for _, stored in postings:
            if not stored.done():
                stored.set_exception(Unavailable(reason))

    async def _something_to_do(self) -> None:
        loop = asyncio.get_running_loop()
        while self._running and not self._postings and not self._wanted:
            self._wake.clear()
            until = min(self._renew_at, self._next_look)
            if self._results:
                until = min(until, self._write_results_at)
            if until <= loop.time() or self._in_doubt:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wake.wait()

    async def _work(self) -> None:
        """One turn, and before it whatever must be sure first."""
        if self._in_doubt or asyncio.get_running_loop().time() >= self._renew_at:
            await self._renew()
        await self._turn()

    async def _renew(self) -> None:
        began = asyncio.get_running_loop().time()
        if not await self._in_thread(self._outbox.renew):
            log.error("outbox.lease_ended others may have taken over what was in hand")
            self._in_doubt = True
        if self._in_doubt:
            in_hand = {*self._hands.in_hand(), *(result.delivery.key for result in self._results)}
            lost = await self._in_thread(lambda: self._outbox.reconcile(in_hand))
            self._hands.let_go(lost)
            self._in_doubt = False
            self._behind = True
            log.info("outbox.available")
        self._leased(began)
        self._hands.go_on()

    def _leased(self, began: float | None = None) -> None:
        """Hold what is in hand when the lease that began then is nearly over; renewals come first if all is well."""
        loop = asyncio.get_running_loop()
        began = loop.time() if began is None else began
        self._renew_at = began + LEASE_SECONDS / 3
        if self._lease:
            self._lease.cancel()
        self._lease = loop.call_at(began + LEASE_SECONDS * 0.9, self._hands.hold)

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        postings, self._postings = self._postings[:MAX_BATCH], self._postings[MAX_BATCH:]
        results, self._results = self._results[:MAX_BATCH], self._results[MAX_BATCH:]
        self._hands.make_way(busy=len(postings) >= BUSY)
        room = self._hands.room() if self._claiming else 0
        look = room > 0 and (self._behind or loop.time() >= self._next_look)
        self._wanted = False
        if not (postings or results or look):
            self._next_look = loop.time() + POLL_SECONDS
            return
        work = Turn([posting for posting, _ in postings], results, room, look)
        try:
            outcome = await self._commit(work)
        except Unavailable as error:
            self._results = results + self._results
            self._refuse(postings, str(error))
            raise
        if postings:
            self.doubtful = False
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
        self._behind = self._behind or any(_given_back(result) for result in results)

    async def _commit(self, work: Turn) -> Outcome:
        """Do `work`; what can never be stored is found and set aside, so that it holds up nothing else."""
        try:
            return await self._in_thread(lambda: self._outbox.turn(work))
        except Unstorable as error:
            log.error("outbox.unstorable %s", error)
        parts = [Turn(postings=[posting]) for posting in work.postings]
        parts += [Turn(results=[result]) for result in work.results]
        total = Outcome(Counter(), [], behind=True, next_due=None)
        for part in parts:
            outcome = await self._commit_alone(part)
            total.counts.update(outcome.counts)
        return total

    async def _commit_alone(self, part: Turn) -> Outcome:
        try:
            return await self._in_thread(lambda: self._outbox.turn(part))
        except Unstorable as error:
            aside = _set_aside(part, str(error))
        try:
            return await self._in_thread(lambda: self._outbox.turn(aside))
        except Unstorable as error:
            raise Unavailable(str(error)) from error

    async def _in_thread(self, work: Callable[[], _Returned]) -> _Returned:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _given_back(result: Result) -> bool:
    """Not tried, and due as before."""
    return result.state is State.QUEUED and result.attempts == result.delivery.attempts


def _set_aside(part: Turn, reason: str) -> Turn:
    """What stands for `part`, which cannot be stored: the raw text in quarantine, the result without its words."""
    return Turn(
        postings=[
            Posting(
                posting.received_at,
                quarantined=(
                    *(Quarantined(f"could not be stored: {reason}", "", routed.text.raw) for routed in posting.texts),
                    *(Quarantined("could not be stored", "", each.body) for each in posting.quarantined),
                ),
            )
            for posting in part.postings
        ],
        results=[Result(result.delivery, result.state, result.attempts, result.next_at, "") for result in part.results],
    )
