"""Logs that forget, and news that reaches whoever waits."""

import asyncio
from dataclasses import dataclass

import pytest

from sandbox.errors import WaitTimeoutError
from sandbox.journal import BoundedLog, Feed, Topic


@dataclass
class Note:
    """An entry of a given size."""

    id: int
    bytes: int = 10

    def size(self) -> int:
        """As given."""
        return self.bytes


def ids(log: BoundedLog[Note]) -> list[int]:
    """The entries that are left."""
    return [note.id for note in log.newest()]


def test_a_log_forgets_the_oldest_entries() -> None:
    """When there are too many, or they are too large together; the newest is always kept."""
    log: BoundedLog[Note] = BoundedLog(max_entries=3, max_bytes=100)
    for number in range(1, 6):
        log.add(Note(number))
    assert ids(log) == [3, 4, 5]
    log.add(Note(6, bytes=85))
    assert ids(log) == [5, 6]
    log.add(Note(7, bytes=1000))
    assert ids(log) == [7]


def test_an_entry_that_grows_keeps_its_place_and_counts_anew() -> None:
    """Its size is what it has become, not the sum."""
    log: BoundedLog[Note] = BoundedLog(max_entries=10, max_bytes=100)
    notes = [Note(1), Note(2), Note(3)]
    for note in notes:
        log.add(note)
    for size in (20, 40, 80):
        notes[1].bytes = size
        log.update(notes[1])
    assert ids(log) == [1, 2, 3]
    notes[1].bytes = 81
    log.update(notes[1])
    assert ids(log) == [2, 3]


def test_what_is_forgotten_stays_forgotten() -> None:
    """An entry that changes late does not come back behind younger ones."""
    log: BoundedLog[Note] = BoundedLog(max_entries=2, max_bytes=100)
    notes = [Note(1), Note(2), Note(3)]
    for note in notes:
        log.add(note)
    log.update(notes[0])
    assert ids(log) == [2, 3]


def test_entries_are_found_by_id_and_by_what_follows() -> None:
    """`after` is the oldest that is acceptable."""
    log: BoundedLog[Note] = BoundedLog(max_entries=10, max_bytes=1000)
    assert log.latest() is None
    for number in (2, 4, 6):
        log.add(Note(number, bytes=number))
    assert log.get(4) == Note(4, 4)
    assert log.get(5) is None
    assert log.after(0) == Note(2, 2)
    assert log.after(2, lambda note: note.bytes > 4) == Note(6, 6)
    assert log.after(6) is None
    assert log.latest() == Note(6, 6)
    assert [note.id for note in log.newest(2)] == [4, 6]


def test_waiting_ends_when_something_is_there() -> None:
    """Now, later, or with an error that names what did not come."""

    async def run() -> None:
        feed, found = Feed(), list[str]()
        waiting = asyncio.create_task(feed.wait_for(lambda: found[0] if found else None, 5, "a thing"))
        await asyncio.sleep(0)
        feed.publish(Topic.MAILS)
        await asyncio.sleep(0)
        assert not waiting.done()
        found.append("thing")
        feed.publish(Topic.MAILS)
        assert await waiting == "thing"
        assert await feed.wait_for(lambda: "now", 0.01, "nothing") == "now"
        with pytest.raises(WaitTimeoutError, match=r"a train did not come within 0\.01 s"):
            await feed.wait_for(lambda: None, 0.01, "a train")

    asyncio.run(run())


def test_a_slow_listener_learns_of_everything_at_once() -> None:
    """However much happens meanwhile, it is told each list once."""

    async def run() -> None:
        feed = Feed()
        with feed.listening() as listener:
            for _ in range(1000):
                feed.publish(Topic.MAILS)
                feed.publish(Topic.EVENTS)
            feed.close()
            assert [changed async for changed in listener.changes()] == [{Topic.MAILS, Topic.EVENTS}]

    asyncio.run(run())
