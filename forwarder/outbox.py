"""The outbox: what is accepted and what has become of it, in SQLite or PostgreSQL, by the same statements.

Everything that changes it while the forwarder runs is a *turn*: one transaction that stores the postbacks that came
in, writes down how sending went, and claims what is to be sent next. A turn is committed before anyone is told of it:
CallFire gets its 200 after the commit, the mail server its mail after the claim. This module is synchronous and knows
neither HTTP nor SMTP; `commits.py` feeds it from one thread.
"""

import fcntl
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles

from forwarder.errors import StartError, Unavailable
from forwarder.postback import InboundText
from forwarder.schema import State, deliveries, flow, metadata, quarantine, texts, workers
from forwarder.schema import secrets as secret_table

LEASE_SECONDS: Final = 60.0
"""How long a forwarder's deliveries stay its own after it was last heard of; renewed three times in that time."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A text and where it goes; no recipients means that a route drops it."""

    text: InboundText
    route: str
    recipients: tuple[str, ...]
    redact: bool = False


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A body nobody could read, and why."""

    reason: str
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Posting:
    """What one postback leaves in the outbox."""

    received_at: float
    texts: tuple[Routed, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One text on its way to one recipient, claimed by this forwarder."""

    text: InboundText
    route: str
    recipient: str
    attempts: int
    received_at: float
    queued_at: float
    """When it was received or, if later, replayed: how long it has been tried counts from here."""
    redact: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How one attempt at a delivery ended: sent, dead, or queued again for `next_at`."""

    delivery: Delivery
    state: State
    attempts: int
    next_at: float
    answer: str


@dataclass(slots=True)
class Turn:
    """The work of one transaction."""

    postings: list[Posting] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    room: int = 0
    """How many deliveries the sender could take."""
    look: bool = False
    """Look for deliveries that are due, not only at what came in."""


@dataclass(slots=True)
class Outcome:
    """What a committed turn did."""

    counts: Counter[str]
    claimed: list[Delivery]
    behind: bool
    """More is due than there was room for."""
    next_due: float | None
    """When the next delivery is due, if the turn looked and found none left that is due now."""


class _DatabaseTime(sa.sql.functions.FunctionElement[float]):
    """Seconds since the epoch by the clock that all forwarders share."""

    type = sa.Float()
    inherit_cache = True


@compiles(_DatabaseTime, "sqlite")
def _sqlite_time(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_DatabaseTime, "postgresql")
def _postgresql_time(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def connect(url: str) -> sa.Engine:
    """An engine for the outbox at `url`: every SQLite transaction is a writer's and on disk when it is committed."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed.set(drivername="postgresql+psycopg"), pool_size=2, pool_pre_ping=True)
    engine = sa.create_engine(parsed, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver's own idea of transactions is in the way of BEGIN IMMEDIATE
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "journal_size_limit=67108864"):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def lock_state_dir(state_dir: Path) -> IO[str]:
    """The lock that keeps a second forwarder off this state folder; held until the file is closed."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (state_dir / "lock").open("a+", encoding="ascii")
    except OSError as error:
        raise StartError(
            f"the state folder {state_dir} cannot be written ({error.strerror}); "
            "create it for this user or set FORWARDER_STATE_DIR to another"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise StartError(
            f"another forwarder (process {holder}) uses the state folder {state_dir}; "
            "stop it, set FORWARDER_STATE_DIR to another folder, or use PostgreSQL for several forwarders"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


class Outbox:
    """The outbox in one database, seen by one forwarder (`worker`)."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine = engine
        self.clock = clock
        self.worker = secrets.token_hex(8)
        self._shared = engine.dialect.name == "postgresql"
        self._insert = postgresql.insert if self._shared else sqlite.insert

    def migrate(self) -> None:
        """Bring the tables to this release's version, with everything in them."""
        metadata.create_all(self.engine)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """One transaction; a database that cannot be written raises Unavailable and leaves nothing behind."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise Unavailable(f"the database cannot be written: {_short(error)}") from error

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that only reads and is in nobody's way; raises Unavailable as `transaction` does."""
        try:
            with self.engine.connect().execution_options(reading=True) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise Unavailable(f"the database cannot be read: {_short(error)}") from error

    def check_writable(self) -> None:
        """Raise Unavailable unless a transaction could write right now."""
        with self.transaction() as connection:
            connection.execute(sa.delete(workers).where(workers.c.id == ""))

    def secret(self, name: str) -> bytes:
        """A random key that lives, and moves, with the outbox; made when first asked for."""
        with self.transaction() as connection:
            connection.execute(
                self._insert(secret_table).on_conflict_do_nothing(), {"name": name, "value": secrets.token_bytes(32)}
            )
            value = connection.execute(sa.select(secret_table.c.value).where(secret_table.c.name == name)).scalar_one()
            return bytes(value)

    def register(self) -> int:
        """Say that this forwarder is alive, and queue again what a lost one had in hand; returns how many.

        With SQLite the file lock proves that there is no other, so whatever is in hand belongs to a lost one.
        """
        with self.transaction() as connection:
            if not self._shared:
                connection.execute(sa.delete(workers))
            alive_until = _DatabaseTime() + LEASE_SECONDS
            statement = self._insert(workers).values(id=self.worker, alive_until=alive_until)
            connection.execute(
                statement.on_conflict_do_update(index_elements=["id"], set_={"alive_until": alive_until})
            )
            connection.execute(sa.delete(workers).where(workers.c.alive_until < _DatabaseTime()))
            lost = connection.execute(
                sa.update(deliveries)
                .where(_is(State.SENDING), deliveries.c.owner.not_in(sa.select(workers.c.id)))
                .values(state=State.QUEUED, owner=None)
            )
        return lost.rowcount

    def unregister(self, in_hand: Iterable[Delivery] = ()) -> None:
        """Give back what is in hand, so that the next forwarder need not wait for the lease to end."""
        del in_hand
        with self.transaction() as connection:
            connection.execute(
                sa.update(deliveries)
                .where(_is(State.SENDING), deliveries.c.owner == self.worker)
                .values(state=State.QUEUED, owner=None)
            )
            connection.execute(sa.delete(workers).where(workers.c.id == self.worker))

    def turn(self, work: Turn) -> Outcome:
        """Do `work` in one transaction. It is on disk when this returns; Unavailable means that none of it is."""
        outcome = Outcome(Counter(), [], behind=False, next_due=None)
        with self.transaction() as connection:
            if work.postings:
                self._accept(connection, work, outcome)
            if work.results:
                self._write_down(connection, work.results, outcome.counts)
            if work.look or outcome.behind:
                self._claim(connection, work.room - len(outcome.claimed), outcome)
            self.count(connection, outcome.counts)
        return outcome

    def _accept(self, connection: sa.Connection, work: Turn, outcome: Outcome) -> None:
        """Store what came in; what is new goes straight into the sender's hands if it waits for work."""
        arrived = {
            routed.text.id: (routed, posting.received_at) for posting in work.postings for routed in posting.texts
        }
        new = self._insert_texts(connection, arrived.values()) if arrived else set()
        outcome.counts["received"] += len(new)
        outcome.counts["duplicate"] += sum(len(posting.texts) for posting in work.postings) - len(new)
        outcome.counts["ignored"] += sum(posting.ignored for posting in work.postings)
        fresh = [
            Delivery(routed.text, routed.route, recipient, 0, received_at, received_at, routed.redact)
            for text_id, (routed, received_at) in arrived.items()
            if text_id in new
            for recipient in routed.recipients
        ]
        fresh.sort(key=_due_first)
        if not work.look:
            outcome.claimed = fresh[: work.room]
        outcome.behind = len(outcome.claimed) < len(fresh)
        if fresh:
            connection.execute(
                sa.insert(deliveries),
                [self._row(delivery, mine=place < len(outcome.claimed)) for place, delivery in enumerate(fresh)],
            )
        unread = [(posting, each) for posting in work.postings for each in posting.quarantined]
        outcome.counts["quarantined"] += len(unread)
        if unread:
            connection.execute(
                sa.insert(quarantine),
                [
                    {
                        "received_at": posting.received_at,
                        "reason": each.reason,
                        "content_type": each.content_type,
                        "body": each.body,
                    }
                    for posting, each in unread
                ],
            )

    def _insert_texts(self, connection: sa.Connection, arrived: Iterable[tuple[Routed, float]]) -> set[int]:
        rows = [
            {
                "id": routed.text.id,
                "subscription_id": routed.text.subscription_id,
                "from_number": routed.text.from_number,
                "to_number": routed.text.to_number,
                "created": routed.text.created,
                "message": routed.text.message,
                "raw": routed.text.raw,
                "recovered": routed.text.recovered,
                "route": routed.route,
                "redact": routed.redact,
                "received_at": received_at,
            }
            for routed, received_at in arrived
        ]
        return set(connection.scalars(self._insert(texts).on_conflict_do_nothing().returning(texts.c.id), rows))

    def _row(self, delivery: Delivery, *, mine: bool) -> dict[str, object]:
        return {
            "text_id": delivery.text.id,
            "recipient": delivery.recipient,
            "state": State.SENDING if mine else State.QUEUED,
            "attempts": 0,
            "next_at": _due_first(delivery),
            "owner": self.worker if mine else None,
            "answer": None,
            "queued_at": delivery.queued_at,
        }

    def _write_down(self, connection: sa.Connection, results: Sequence[Result], counts: Counter[str]) -> None:
        """A sent mail is sent whoever owns it by now; anything else only counts while the delivery is still ours."""
        update = (
            sa.update(deliveries)
            .where(
                deliveries.c.text_id == sa.bindparam("b_text_id"),
                deliveries.c.recipient == sa.bindparam("b_recipient"),
                sa.or_(deliveries.c.owner == self.worker, sa.bindparam("b_sent") == True),  # noqa: E712 - SQL
            )
            .values({name: sa.bindparam(f"b_{name}") for name in ("state", "attempts", "next_at", "answer")})
            .values(owner=None)
        )
        connection.execute(
            update,
            [
                {
                    "b_text_id": result.delivery.text.id,
                    "b_recipient": result.delivery.recipient,
                    "b_sent": result.state is State.SENT,
                    "b_state": result.state,
                    "b_attempts": result.attempts,
                    "b_next_at": result.next_at,
                    "b_answer": result.answer,
                }
                for result in results
            ],
        )
        for result in results:
            counts["retried" if result.state is State.QUEUED else result.state] += 1
        redacted = {result.delivery.text.id for result in results if result.delivery.redact}
        if redacted:
            redact(connection, texts.c.id.in_(redacted), texts.c.redact)

    def _claim(self, connection: sa.Connection, room: int, outcome: Outcome) -> None:
        """Take up to `room` deliveries that are due, the oldest first, passing over what others are just taking."""
        due = (
            sa.select(deliveries.c.recipient, deliveries.c.attempts, deliveries.c.queued_at, texts)
            .join(texts, texts.c.id == deliveries.c.text_id)
            .where(_is(State.QUEUED), deliveries.c.next_at <= self.clock())
            .order_by(deliveries.c.next_at)
            .limit(max(room, 0))
            .with_for_update(skip_locked=True, of=deliveries)
        )
        rows = connection.execute(due).all() if room > 0 else []
        if rows:
            connection.execute(
                sa.update(deliveries)
                .where(
                    deliveries.c.text_id == sa.bindparam("b_text_id"),
                    deliveries.c.recipient == sa.bindparam("b_recipient"),
                )
                .values(state=State.SENDING, owner=self.worker),
                [{"b_text_id": row.id, "b_recipient": row.recipient} for row in rows],
            )
        outcome.claimed += [_delivery(row) for row in rows]
        outcome.behind = len(rows) == room
        if not outcome.behind:
            outcome.next_due = connection.scalar(sa.select(sa.func.min(deliveries.c.next_at)).where(_is(State.QUEUED)))

    def insert_missing(self, connection: sa.Connection, table: sa.Table, row: Mapping[str, object]) -> None:
        """Insert `row`, unless there is one of its key."""
        connection.execute(self._insert(table).on_conflict_do_nothing(), row)

    def insert_or_raise(
        self, connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, object]], column: str
    ) -> None:
        """Insert `rows`; where there is one of the same key, its `column` becomes the larger of the two."""
        statement = self._insert(table)
        keys = list(table.primary_key.columns)
        larger = statement.excluded[column]
        connection.execute(
            statement.on_conflict_do_update(index_elements=keys, set_={column: larger}, where=table.c[column] < larger),
            rows,
        )

    def count(self, connection: sa.Connection, counts: Mapping[str, int]) -> None:
        """Add to what happened in this minute: received, sent, dead and so on."""
        minute = int(self.clock() // 60)
        rows = [
            {"minute": minute, "worker": self.worker, "kind": kind, "count": count}
            for kind, count in counts.items()
            if count
        ]
        if rows:
            statement = self._insert(flow)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["minute", "worker", "kind"], set_={"count": flow.c.count + statement.excluded.count}
                ),
                rows,
            )


def redact(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> int:
    """Forget what the texts said, where every delivery has been sent; returns how many were changed."""
    unsent = sa.exists().where(deliveries.c.text_id == texts.c.id, deliveries.c.state != State.SENT)
    return connection.execute(
        sa.update(texts).where(*which, texts.c.raw.is_not(None), ~unsent).values(message=None, raw=None)
    ).rowcount


def _is(state: State) -> sa.ColumnElement[bool]:
    """`state`, said so that the partial index of what is not sent can be used."""
    return sa.and_(sa.text("delivery.state <> 'sent'"), deliveries.c.state == sa.literal_column(f"'{state}'"))


def _due_first(delivery: Delivery) -> float:
    """When a new delivery is due: at once, those created first before the others whenever they arrived."""
    created_at = delivery.text.created_at
    return delivery.received_at if created_at is None else min(created_at, delivery.received_at)


def _delivery(row: Any) -> Delivery:
    return Delivery(
        InboundText(
            row.id,
            row.subscription_id,
            row.from_number,
            row.to_number,
            row.created,
            row.message or "",
            b"",
            recovered=row.recovered,
        ),
        row.route,
        row.recipient,
        row.attempts,
        row.received_at,
        row.queued_at,
        row.redact,
    )


def _short(error: SQLAlchemyError) -> str:
    """The database's own words, without the statement and its parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return " ".join(str(cause).split()) or type(cause).__name__
