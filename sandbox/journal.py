"""Bounded memory and the news of what happens: logs that forget their oldest entries, and a feed to wait on.

Everything here belongs to one event loop and must be called from it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from typing import Generic, Protocol, TypeVar

from sandbox.errors import StoppedError, WaitTimeoutError

T = TypeVar("T")


class Entry(Protocol):
    """What a log can hold."""

    @property
    def id(self) -> int:
        """Increasing within the log."""

    def size(self) -> int:
        """Roughly how many bytes of memory the entry holds on to."""


EntryT = TypeVar("EntryT", bound=Entry)


class BoundedLog(Generic[EntryT]):
    """Entries by id, oldest first; the oldest go when there are too many or they are too large together.

    Args:
        max_entries: how many entries are kept at most.
        max_bytes: how large they may be together, by their own `size()`.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._entries: OrderedDict[int, tuple[EntryT, int]] = OrderedDict()
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0

    def add(self, entry: EntryT) -> None:
        """Append an entry with an id above all others, and forget what no longer fits."""
        self._account(entry, 0)

    def update(self, entry: EntryT) -> None:
        """Account anew for an entry that has changed, unless it is forgotten already."""
        if entry.id in self._entries:
            self._account(entry, self._entries[entry.id][1])

    def _account(self, entry: EntryT, before: int) -> None:
        size = entry.size()
        self._entries[entry.id] = (entry, size)
        self._bytes += size - before
        while len(self._entries) > self._max_entries or (self._bytes > self._max_bytes and len(self._entries) > 1):
            self.remove(next(iter(self._entries)))

    def remove(self, ident: int) -> None:
        """Forget one entry, if it is still there."""
        _, size = self._entries.pop(ident, (None, 0))
        self._bytes -= size

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def get(self, ident: int) -> EntryT | None:
        """The entry with that id, or None if there is none or it is forgotten."""
        found = self._entries.get(ident)
        return found[0] if found else None

    def latest(self) -> EntryT | None:
        """The newest entry."""
        return next(reversed(self._entries.values()))[0] if self._entries else None

    def newest(self, limit: int | None = None) -> list[EntryT]:
        """The last entries, oldest of them first."""
        return [entry for entry, _ in islice(reversed(self._entries.values()), limit)][::-1]

    def after(self, ident: int, accept: Callable[[EntryT], bool] = lambda _: True) -> EntryT | None:
        """The oldest acceptable entry with a greater id."""
        found = None
        for entry, _ in reversed(self._entries.values()):
            if entry.id <= ident:
                break
            if accept(entry):
                found = entry
        return found

    def __iter__(self) -> Iterator[EntryT]:
        """Oldest first."""
        return (entry for entry, _ in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


class Topic(StrEnum):
    """A list that can change."""

    ACCOUNTS = "accounts"
    SUBSCRIPTIONS = "subscriptions"
    EVENTS = "events"
    POSTBACKS = "postbacks"
    REQUESTS = "requests"
    MAILS = "mails"
    TROUBLE = "trouble"


class Feed:
    """Tells waiters and listeners that something has changed; what exactly, they look up themselves.

    So a listener that reads slowly misses nothing and piles nothing up.
    """

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    def publish(self, *topics: Topic) -> None:
        """Wake everybody who waits or listens."""
        self._wake()
        for listener in self._listeners:
            listener.tell(topics)

    async def wait_for(self, find: Callable[[], T | None], timeout: float, what: str) -> T:  # noqa: ASYNC109
        """The first thing that `find` returns, now or after one of the next changes.

        Args:
            find: looks for it; None means not yet.
            timeout: seconds.
            what: names it in the error.

        Raises:
            WaitTimeoutError: it did not turn up in time.
            StoppedError: it never will.
        """
        try:
            async with asyncio.timeout(timeout):
                while (found := find()) is None:
                    if self._closed:
                        raise StoppedError
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
                return found
        except TimeoutError:
            raise WaitTimeoutError(f"{what} did not come within {timeout:g} s") from None

    @contextmanager
    def listening(self) -> Iterator["Listener"]:
        """A listener that is told of every change from now on."""
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def close(self) -> None:
        """End every listener's stream and every wait."""
        self._closed = True
        self._wake()
        for listener in self._listeners:
            listener.close()


class Listener:
    """Gathers what has changed until it is looked at."""

    def __init__(self) -> None:
        self._changed: set[Topic] = set()
        self._wake = asyncio.Event()
        self._closed = False

    def tell(self, topics: Iterable[Topic]) -> None:
        """These have changed."""
        self._changed.update(topics)
        self._wake.set()

    def close(self) -> None:
        """There is nothing more to come."""
        self._closed = True
        self._wake.set()

    async def changes(self) -> AsyncIterator[set[Topic]]:
        """What has changed, each time something has, until the feed closes."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = self._changed, set()
            if changed:
                yield changed
            if self._closed:
                return
