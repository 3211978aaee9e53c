"""What an operator asks of an outbox, beside a running forwarder or in it: what is there, what failed, try it again.

Nothing here takes the lock of a state folder. Reading is in nobody's way, a change is one short transaction, and a
forwarder that runs sees it within a second. Lists never hold what a text said; only looking at one thing does.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from forwarder.errors import ForwarderError
from forwarder.outbox import Outbox, Posting, Routed, Turn, redact
from forwarder.postback import InboundText, Unreadable, parse_postback
from forwarder.schema import State, deliveries, flow, quarantine, texts

BATCH: Final = 500
"""Most rows that one transaction changes, so that postbacks never wait long."""
BODIES: Final = 20
"""Most bodies of the quarantine that one transaction forgets: each may be a MiB, and is overwritten on the disk."""
DAY: Final = 86_400.0
"""Seconds."""


class NotFoundError(ForwarderError):
    """There is nothing of that name."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What waits, and what needs a person."""

    queued: int
    sending: int
    dead: int
    quarantined: int
    deferred: int
    """Of those that are queued: refused for now, and not due before their next attempt."""
    oldest_at: float | None
    """Since when the delivery is due that waits longest, in seconds since the epoch."""

    @property
    def waiting(self) -> int:
        """What is not sent yet, in hand or not."""
        return self.queued + self.sending


@dataclass(frozen=True, slots=True)
class Entry:
    """A delivery in a list."""

    text_id: int
    recipient: str
    state: State
    from_number: str
    to_number: str
    route: str
    received_at: float
    attempts: int
    changed_at: float
    """Queued: when it is due; sent and dead: when that happened."""
    answer: str | None


@dataclass(frozen=True, slots=True)
class DeadText:
    """A text of which a delivery is dead, with all that is known."""

    entries: tuple[Entry, ...]
    subscription_id: str
    created: str
    message: str | None
    """None if it has been forgotten."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A body that nobody could read; `body` only when one looks at this one."""

    id: int
    received_at: float
    reason: str
    content_type: str
    size: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Reread:
    """How reading bodies of the quarantine again went."""

    texts: int
    """Texts that were found in them; those that came another way meanwhile are not mailed twice."""
    left: int
    """Bodies that are still unreadable."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What was forgotten."""

    messages: int
    texts: int


class Ledger:
    """Questions to one outbox, and an operator's changes."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._purging = threading.Event()
        self._purging.set()

    def totals(self) -> Totals:
        """How much there is of what is not sent."""
        open_ = sa.text("delivery.state <> 'sent'")
        later = deliveries.c.next_at > self._outbox.clock()
        due_at = sa.case(
            (deliveries.c.next_at > deliveries.c.queued_at, deliveries.c.next_at), else_=deliveries.c.queued_at
        )
        with self._outbox.reading() as connection:
            rows = connection.execute(
                sa.select(deliveries.c.state, sa.func.count()).where(open_).group_by(deliveries.c.state)
            )
            counts: dict[str, int] = {state: count for state, count in rows}  # noqa: C416 - rows are no tuples to mypy
            waiting = sa.and_(open_, deliveries.c.state != State.DEAD)
            deferred = connection.scalar(sa.select(sa.func.count()).select_from(deliveries).where(waiting, later))
            oldest = connection.scalar(sa.select(sa.func.min(due_at)).where(waiting, ~later))
            unread = connection.scalar(sa.select(sa.func.count()).select_from(quarantine))
        queued, sending, dead = (counts.get(state, 0) for state in (State.QUEUED, State.SENDING, State.DEAD))
        return Totals(queued, sending, dead, unread or 0, deferred or 0, oldest)

    def flow(self, since: float, step: float) -> list[dict[str, int]]:
        """What happened from `since` to now, in steps of so many seconds: kind → how often."""
        first, minutes = int(since // 60), max(1, int(step // 60))
        slots: list[dict[str, int]] = [
            defaultdict(int) for _ in range(int(self._outbox.clock() // 60 - first) // minutes + 1)
        ]
        with self._outbox.reading() as connection:
            rows = connection.execute(
                sa.select(flow.c.minute, flow.c.kind, sa.func.sum(flow.c.count))
                .where(flow.c.minute >= first)
                .group_by(flow.c.minute, flow.c.kind)
            )
            for minute, kind, count in rows:
                slot = (minute - first) // minutes
                if slot < len(slots):  # a forwarder whose clock is ahead
                    slots[slot][kind] += int(count)
        return slots

    def recent(self, limit: int) -> list[Entry]:
        """The deliveries of the texts that were received last, the last one first."""
        latest = sa.select(texts.c.id).order_by(texts.c.received_at.desc()).limit(limit).scalar_subquery()
        statement = _entries().where(texts.c.id.in_(latest))
        with self._outbox.reading() as connection:
            rows = connection.execute(statement.order_by(texts.c.received_at.desc(), deliveries.c.recipient))
            return [_entry(row) for row in rows.fetchmany(limit)]

    def dead(self, limit: int = 1000) -> list[Entry]:
        """Dead deliveries, the one that died last first."""
        statement = _entries().where(_is_dead()).order_by(deliveries.c.next_at.desc()).limit(limit)
        with self._outbox.reading() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def dead_text(self, text_id: int) -> DeadText:
        """A text with its dead deliveries and what it says; raises NotFoundError."""
        statement = _entries(texts.c.subscription_id, texts.c.created, texts.c.message)
        with self._outbox.reading() as connection:
            rows = connection.execute(statement.where(_is_dead(), deliveries.c.text_id == text_id)).all()
        if not rows:
            raise NotFoundError(f"no delivery of text {text_id} is dead; `dead list` shows those that are")
        entries = tuple(_entry(row) for row in rows)
        return DeadText(entries, rows[0].subscription_id, rows[0].created, rows[0].message)

    def replay_dead(self, text_ids: Iterable[int] | None, recipient: str | None = None) -> int:
        """Queue dead deliveries again, as new as on the first day; None is all of them. Returns how many.

        Raises NotFoundError if a text that is named has none.
        """
        now = self._outbox.clock()
        anew = {"state": State.QUEUED, "attempts": 0, "next_at": now, "queued_at": now, "owner": None}

        def replay(connection: sa.Connection, those: sa.ColumnElement[bool]) -> int:
            return connection.execute(sa.update(deliveries).values(anew).where(those)).rowcount

        return self._change_dead(replay, "replayed", text_ids, recipient)

    def drop_dead(self, text_ids: Iterable[int] | None, recipient: str | None = None) -> int:
        """Give up dead deliveries for good; None is all of them. Returns how many. Raises as `replay_dead`."""

        def drop(connection: sa.Connection, those: sa.ColumnElement[bool]) -> int:
            dropped = connection.scalars(sa.delete(deliveries).where(those).returning(deliveries.c.text_id)).all()
            redact(connection, texts.c.id.in_(dropped), texts.c.redact)
            return len(dropped)

        return self._change_dead(drop, "dropped", text_ids, recipient)

    def _change_dead(
        self,
        change: Callable[[sa.Connection, sa.ColumnElement[bool]], int],
        kind: str,
        text_ids: Iterable[int] | None,
        recipient: str | None,
    ) -> int:
        """Do `change` with dead deliveries: with those that are named at once, with all of them some at a time."""
        wanted = _is_dead() if recipient is None else sa.and_(_is_dead(), deliveries.c.recipient == recipient)
        changed = 0
        if text_ids is None:
            with self._outbox.reading() as connection:
                everything = connection.scalars(sa.select(deliveries.c.text_id).where(wanted).distinct()).all()
            for some in _batches(everything):
                with self._outbox.transaction() as connection:
                    count = change(connection, sa.and_(wanted, deliveries.c.text_id.in_(some)))
                    self._outbox.count(connection, {kind: count})
                changed += count
            return changed
        with self._outbox.transaction() as connection:
            for text_id in text_ids:
                count = change(connection, sa.and_(wanted, deliveries.c.text_id == text_id))
                if not count:
                    where = f" to {recipient}" if recipient else ""
                    raise NotFoundError(f"no delivery of text {text_id}{where} is dead; nothing was changed")
                changed += count
            self._outbox.count(connection, {kind: changed})
        return changed

    def quarantined(self, limit: int = 1000) -> list[Quarantined]:
        """What is in quarantine, the last one first, without what it says."""
        size = sa.func.length(quarantine.c.body).label("size")
        columns = [column for column in quarantine.c if column.name != "body"]
        statement = sa.select(*columns, size).order_by(quarantine.c.id.desc()).limit(limit)
        with self._outbox.reading() as connection:
            return [Quarantined(**row._mapping) for row in connection.execute(statement)]  # noqa: SLF001 - SQLAlchemy's public name

    def quarantined_body(self, ident: int) -> Quarantined:
        """One thing in quarantine with its body; raises NotFoundError."""
        with self._outbox.reading() as connection:
            row = connection.execute(sa.select(quarantine).where(quarantine.c.id == ident)).one_or_none()
        if row is None:
            raise _not_in_quarantine(ident)
        return Quarantined(**row._mapping, size=len(row.body))  # noqa: SLF001 - SQLAlchemy's public name

    def replay_quarantined(self, idents: Iterable[int] | None, route: Callable[[InboundText], Routed]) -> Reread:
        """Read bodies of the quarantine again, perhaps with a newer release; None is all of them.

        What can be read now is queued and leaves the quarantine. Raises NotFoundError for one that is not there.
        """
        found, left = 0, 0
        for ident in self._all_quarantined() if idents is None else idents:
            unread = self.quarantined_body(ident)
            events = parse_postback(unread.body)
            arrived = [event for event in events if isinstance(event, InboundText)]
            reasons = [event.reason for event in events if isinstance(event, Unreadable)]
            if arrived:
                self._outbox.turn(Turn([Posting(self._outbox.clock(), tuple(route(text) for text in arrived))]))
            # Not one transaction with the turn: after a crash the texts are known already, and nothing is mailed twice.
            with self._outbox.transaction() as connection:
                those = quarantine.c.id == ident
                if reasons:
                    connection.execute(sa.update(quarantine).where(those).values(reason="; ".join(reasons)[:2000]))
                else:
                    connection.execute(sa.delete(quarantine).where(those))
            found += len(arrived)
            left += bool(reasons)
        return Reread(found, left)

    def drop_quarantined(self, idents: Iterable[int] | None) -> int:
        """Forget what is in quarantine; None is all of it. Returns how many. Raises NotFoundError, and drops none."""
        dropped = 0
        if idents is None:
            for some in _batches(self._all_quarantined(), BODIES):
                with self._outbox.transaction() as connection:
                    dropped += connection.execute(sa.delete(quarantine).where(quarantine.c.id.in_(some))).rowcount
            return dropped
        with self._outbox.transaction() as connection:
            for ident in idents:
                if not connection.execute(sa.delete(quarantine).where(quarantine.c.id == ident)).rowcount:
                    raise _not_in_quarantine(ident)
                dropped += 1
        return dropped

    def _all_quarantined(self) -> Sequence[int]:
        with self._outbox.reading() as connection:
            return connection.scalars(sa.select(quarantine.c.id).order_by(quarantine.c.id)).all()

    def purge(self, text_days: float, metadata_days: float) -> Purged:
        """Forget what texts said after `text_days`, and that they ever were after `metadata_days`.

        What is not sent, what is dead and what is in quarantine stays as it is, however old: a person decides.
        """
        now = self._outbox.clock()
        messages = self._purge_messages(now - text_days * DAY)
        forgotten = self._purge_texts(now - metadata_days * DAY)
        with self._outbox.transaction() as connection:
            connection.execute(sa.delete(flow).where(flow.c.minute < int(now - metadata_days * DAY) // 60))
        return Purged(messages, forgotten)

    def stop_purging(self) -> None:
        """End a purge that goes on in another thread; what is left is for the next one."""
        self._purging.clear()

    def _purge_messages(self, before: float) -> int:
        # A redacted text is forgotten with its last delivery, unless two forwarders ended the last two at one moment.
        due = sa.or_(texts.c.received_at < before, texts.c.redact)
        old = sa.and_(due, texts.c.raw.is_not(None), _settled())

        def forget(connection: sa.Connection, idents: Sequence[int]) -> int:
            return redact(connection, texts.c.id.in_(idents))

        return self._in_batches(old, forget)

    def _purge_texts(self, before: float) -> int:
        old = sa.and_(texts.c.received_at < before, _settled())

        def forget(connection: sa.Connection, idents: Sequence[int]) -> int:
            settled = sa.and_(texts.c.id.in_(idents), _settled())
            those = list(connection.scalars(sa.select(texts.c.id).where(settled)))
            connection.execute(sa.delete(deliveries).where(deliveries.c.text_id.in_(those)))
            return connection.execute(sa.delete(texts).where(texts.c.id.in_(those))).rowcount

        return self._in_batches(old, forget)

    def _in_batches(self, wanted: sa.ColumnElement[bool], forget: Callable[[sa.Connection, Sequence[int]], int]) -> int:
        """Do `forget` with all texts that are wanted, some of them at a time; finding them is in nobody's way."""
        place = sa.tuple_(texts.c.received_at, texts.c.id)
        forgotten, last = 0, (0.0, 0)
        while self._purging.is_set():
            statement = sa.select(texts.c.received_at, texts.c.id).where(wanted, place > last).order_by(*place.clauses)
            with self._outbox.reading() as connection:
                found = [(received_at, ident) for received_at, ident in connection.execute(statement.limit(BATCH))]
            if not found:
                break
            last = found[-1]
            with self._outbox.transaction() as connection:
                forgotten += forget(connection, [ident for _, ident in found])
        return forgotten


def _entries(*more: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return sa.select(
        deliveries, texts.c.from_number, texts.c.to_number, texts.c.route, texts.c.received_at, *more
    ).join(texts, texts.c.id == deliveries.c.text_id)


def _entry(row: Any) -> Entry:
    return Entry(
        row.text_id,
        row.recipient,
        State(row.state),
        row.from_number,
        row.to_number,
        row.route,
        row.received_at,
        row.attempts,
        row.next_at,
        row.answer,
    )


def _is_dead() -> sa.ColumnElement[bool]:
    return sa.and_(sa.text("delivery.state <> 'sent'"), deliveries.c.state == sa.literal_column(f"'{State.DEAD}'"))


def _settled() -> sa.ColumnElement[bool]:
    """Every delivery of the text has been sent."""
    return ~sa.exists().where(deliveries.c.text_id == texts.c.id, deliveries.c.state != State.SENT)


def _batches(idents: Sequence[int], size: int = BATCH) -> Iterator[Sequence[int]]:
    return (idents[start : start + size] for start in range(0, len(idents), size))


def _not_in_quarantine(ident: int) -> NotFoundError:
    return NotFoundError(f"{ident} is not in quarantine; `quarantine list` shows what is")
