"""The outbox: what is accepted and what has become of it, in SQLite or PostgreSQL, by the same statements.

Everything that changes it while the forwarder runs is a *turn*: one transaction that stores the postbacks that came
in, writes down how sending went, and claims what is to be sent next. A turn is committed before anyone is told of it:
CallFire gets its 200 after the commit, the mail server its mail after the claim. This module is synchronous and knows
neither HTTP nor SMTP; `commits.py` feeds it from one thread.
"""

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.ext.compiler import compiles

from forwarder.errors import StartError, Unavailable, Unstorable
from forwarder.migrations import upgrade
from forwarder.postback import InboundText
from forwarder.schema import State, deliveries, flow, quarantine, texts, workers
from forwarder.schema import secrets as secret_table

LEASE_SECONDS: Final = 30.0
"""How long a forwarder's deliveries stay its own after it was last heard of; renewed three times in that time."""
LONGEST_WAIT: Final = 4 * 3600.0
"""Most seconds between two attempts at a delivery; one that waits longer was queued by a clock that was wrong."""
PROBE_BYTES: Final = 65_536
"""More than a text and all that goes with it: on a full disk a smaller write can succeed where a text does not."""
MOST_ROWS: Final = 1000
"""Most rows in one statement, well below what either database takes as parameters."""

Key = tuple[int, str]
"""What a delivery is known by: the text's id and the recipient."""


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

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.text.id, self.recipient

    @property
    def order(self) -> float:
        """What was created first goes first, whenever it arrived; in seconds since the epoch."""
        created_at = self.text.created_at
        return created_at if created_at is not None and created_at < self.received_at else self.received_at


@dataclass(frozen=True, slots=True)
class Result:
    """How one attempt at a delivery ended: sent, dead, or queued again for `next_at`; or that it was not tried."""

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


_QUEUED: Final = State.QUEUED.value
_SENDING: Final = State.SENDING.value
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


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
    """An engine for the outbox at `url`: what is committed is on disk, and a dead server is noticed within seconds."""
    parsed = sa.make_url(url)
    return _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)


def _sqlite(url: sa.URL) -> sa.Engine:
    """Every transaction that may write is a writer's from its start, so that none waits for a lock halfway."""
    engine = sa.create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver's own idea of transactions is in the way of BEGIN IMMEDIATE
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "secure_delete=ON",
            "journal_size_limit=67108864",
            "cache_size=-16384",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


_POSTGRESQL_OPTIONS: Final = {
    "connect_timeout": "5",
    "tcp_user_timeout": "10000",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "application_name": "callfire-forwarder",
}


def _postgresql(url: sa.URL) -> sa.Engine:
    options = {name: value for name, value in _POSTGRESQL_OPTIONS.items() if name not in url.query}
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"), connect_args=options, pool_size=2, pool_pre_ping=True
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.execute("SET statement_timeout = '60s'")
        connection.execute("SET lock_timeout = '30s'")
        # a server set up to lose the last commits of a crash would break the first promise
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()

    return engine


def lock_state_dir(state_dir: Path) -> IO[str]:
    """The lock that keeps a second forwarder off this state folder; held until the file is closed."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _take_lock(state_dir / "lock", f"the state folder {state_dir}")
    except OSError as error:
        raise StartError(
            f"the state folder {state_dir} cannot be written ({error.strerror}); "
            "create it for this user or set FORWARDER_STATE_DIR to another"
        ) from error


def _take_lock(path: Path, what: str) -> IO[str]:
    """A lock on `path`, which says who holds it; raises StartError if somebody else does."""
    lock = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise StartError(
            f"another forwarder (process {holder}) uses {what}; "
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
        self._words = f"the database ({'FORWARDER_DATABASE_URL' if self._shared else 'FORWARDER_STATE_DIR'})"
        self._insert = postgresql.insert if self._shared else sqlite.insert
        self._path = None if self._shared or not engine.url.database else Path(engine.url.database)
        self._file: tuple[int, int] | None = None
        self._lock: IO[str] | None = None

    def migrate(self) -> None:
        """Bring the tables to this release's version, with everything in them.

        Raises StartError if this release cannot use them, or the database cannot hold every text.
        """
        with self.transaction() as connection:
            upgrade(connection)
        if self._path:
            self._file = _identity(self._path)

    def try_to_migrate(self) -> None:
        """Make the tables of an empty database, and leave none of it: raises what `migrate` would."""
        with contextlib.suppress(_OnlyTried), self.transaction() as connection:
            upgrade(connection)
            raise _OnlyTried

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that only reads and is in nobody's way; raises Unavailable as `transaction` does."""
        try:
            with self.engine.connect().execution_options(reading=True) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise Unavailable(f"{self._words} cannot be read: {_short(error)}") from error

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """One transaction, which leaves nothing behind if it fails.

        Raises Unavailable when the database cannot be written, Unstorable when it will not have what it is given.
        """
        if self._file and self._path and _identity(self._path) != self._file:
            raise Unavailable(
                f"{self._path} is not the file that was opened: it was moved, deleted or replaced; "
                f"as long as process {os.getpid()} runs the old one is among /proc/{os.getpid()}/fd; "
                "put it back, or restart the forwarder to use what is there now"
            )
        try:
            with self.engine.begin() as connection:
                yield connection
        except (DataError, IntegrityError) as error:
            raise Unstorable(_short(error)) from error
        except DBAPIError as error:
            raise Unavailable(f"{self._words} cannot be written: {_short(error)}") from error
        except (StatementError, OverflowError, UnicodeError) as error:
            raise Unstorable(_short(error)) from error
        except SQLAlchemyError as error:
            raise Unavailable(f"{self._words} cannot be written: {_short(error)}") from error

    def check_writable(self, *, thoroughly: bool = False) -> None:
        """Raise Unavailable unless a transaction could write right now; to be sure, write and forget PROBE_BYTES."""
        with self.transaction() as connection:
            if thoroughly:
                probe = {"name": f"probe {self.worker}", "value": secrets.token_bytes(PROBE_BYTES)}
                connection.execute(sa.insert(secret_table), probe)
                connection.execute(sa.delete(secret_table).where(secret_table.c.name == probe["name"]))
            else:
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
        """Say that this forwarder begins, and queue again what a lost one had in hand; returns how many.

        With SQLite a file lock proves that there is no other, so whatever is in hand belongs to a lost one. Raises
        StartError if there is another.
        """
        if self._path and not self._lock:
            self._lock = _take_lock(self._path.with_name(f"{self._path.name}-lock"), f"the outbox {self._path}")
        with self.transaction() as connection:
            if not self._shared:
                connection.execute(sa.delete(workers))
            self._say_alive(connection)
            return _take_over(connection)

    def renew(self) -> bool:
        """Stay alive for another lease, and queue again what lost forwarders had in hand.

        False if this one had been taken for lost itself: what it has in hand may be others' by now.
        """
        with self.transaction() as connection:
            known = connection.scalar(sa.select(workers.c.id).where(workers.c.id == self.worker).with_for_update())
            self._say_alive(connection)
            _take_over(connection)
            connection.execute(
                sa.update(deliveries)
                .where(_is(State.QUEUED), deliveries.c.next_at > self.clock() + LONGEST_WAIT)
                .values(next_at=self.clock())
            )
        return known is not None

    def reconcile(self, in_hand: Collection[Key]) -> set[Key]:
        """After a commit nobody can be sure of: queue what is ours and not in hand; returns what is ours no more."""
        with self.transaction() as connection:
            rows = connection.execute(
                sa.select(deliveries.c.text_id, deliveries.c.recipient).where(
                    _is(State.SENDING), deliveries.c.owner == self.worker
                )
            )
            ours = {(text_id, recipient) for text_id, recipient in rows}
            stray = sorted(ours - {*in_hand})
            _GIVE_BACK.execute(connection, stray)
        return {*in_hand} - ours

    def unregister(self) -> None:
        """Give back what is in hand, so that the next forwarder need not wait for the lease to end."""
        with self.transaction() as connection:
            connection.execute(
                sa.update(deliveries)
                .where(_is(State.SENDING), deliveries.c.owner == self.worker)
                .values(state=_QUEUED, owner=None)
            )
            connection.execute(sa.delete(workers).where(workers.c.id == self.worker))

    def close(self) -> None:
        """Close every connection, and let another forwarder have it."""
        self.engine.dispose()
        if self._lock:
            self._lock.close()
            self._lock = None

    def turn(self, work: Turn) -> Outcome:
        """Do `work` in one transaction. It is on disk when this returns; an error means that none of it is.

        Raises Unavailable, or Unstorable if something in it can never be stored.
        """
        all_new = True
        while True:
            outcome = Outcome(Counter(), [], behind=False, next_due=None)
            try:
                with self.transaction() as connection:
                    if work.postings:
                        self._accept(connection, work, outcome, all_new=all_new)
                    if work.results:
                        self._write_down(connection, work.results, outcome.counts)
                    if work.look or outcome.behind:
                        self._claim(connection, work.room - len(outcome.claimed), outcome)
                    self.count(connection, outcome.counts)
            except _KnownError:
                all_new = False
                continue
            return outcome

    def _say_alive(self, connection: sa.Connection) -> None:
        alive_until = _DatabaseTime() + LEASE_SECONDS
        statement = self._insert(workers).values(id=self.worker, alive_until=alive_until)
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"alive_until": alive_until}))

    def _accept(self, connection: sa.Connection, work: Turn, outcome: Outcome, *, all_new: bool) -> None:
        """Store what came in; what is new goes straight into the sender's hands if it waits for work."""
        new = self._insert_texts(connection, work.postings, all_new=all_new)
        outcome.counts["received"] += len(new)
        outcome.counts["duplicate"] += sum(len(posting.texts) for posting in work.postings) - len(new)
        outcome.counts["ignored"] += sum(posting.ignored for posting in work.postings)
        fresh = [
            Delivery(routed.text, routed.route, recipient, 0, received_at, received_at, routed.redact)
            for routed, received_at in new
            for recipient in dict.fromkeys(routed.recipients)
        ]
        fresh.sort(key=lambda delivery: delivery.order)
        if not work.look:
            outcome.claimed = fresh[: work.room]
        outcome.behind = len(outcome.claimed) < len(fresh)
        rows = [self._row(delivery, mine=place < len(outcome.claimed)) for place, delivery in enumerate(fresh)]
        _INSERT_DELIVERY.execute(connection, rows)
        unread = [
            {
                "received_at": posting.received_at,
                "reason": _storable(each.reason),
                "content_type": _storable(each.content_type),
                "body": each.body,
            }
            for posting in work.postings
            for each in posting.quarantined
        ]
        outcome.counts["quarantined"] += len(unread)
        if unread:
            connection.execute(sa.insert(quarantine), unread)

    def _insert_texts(
        self, connection: sa.Connection, postings: Sequence[Posting], *, all_new: bool
    ) -> list[tuple[Routed, float]]:
        """Store the texts that are new and return them, in the order of their ids so that no two forwarders deadlock.

        As good as every text is new, so that is tried first; raises _KnownError if one is not after all.
        """
        arrived = {routed.text.id: (routed, posting.received_at) for posting in postings for routed in posting.texts}
        known = set() if all_new or not arrived else _known(connection, arrived)
        new = [arrived[text_id] for text_id in sorted(arrived) if text_id not in known]
        rows = [
            (
                routed.text.id,
                routed.text.subscription_id,
                routed.text.from_number,
                routed.text.to_number,
                routed.text.created,
                routed.text.message,
                routed.text.raw,
                routed.text.recovered,
                routed.route,
                routed.redact,
                received_at,
            )
            for routed, received_at in new
        ]
        if _INSERT_TEXT.execute(connection, rows) < len(rows):
            raise _KnownError
        return new

    def _row(self, delivery: Delivery, *, mine: bool) -> tuple[object, ...]:
        return (
            delivery.text.id,
            delivery.recipient,
            _SENDING if mine else _QUEUED,
            0,
            delivery.order,
            self.worker if mine else None,
            None,
            delivery.queued_at,
        )

    def _write_down(self, connection: sa.Connection, results: Sequence[Result], counts: Counter[str]) -> None:
        rows = [
            (
                *result.delivery.key,
                str(result.state),
                result.attempts,
                result.next_at,
                _storable(result.answer),
                self.worker,
            )
            for result in sorted(results, key=lambda result: result.delivery.key)
        ]
        _FINISH.execute(connection, rows)
        for result in results:
            if result.attempts > result.delivery.attempts:
                counts["retried" if result.state is State.QUEUED else str(result.state)] += 1
        redacted = {result.delivery.text.id for result in results if result.delivery.redact}
        if redacted:
            redact(connection, texts.c.id.in_(redacted), texts.c.redact)

    def _claim(self, connection: sa.Connection, room: int, outcome: Outcome) -> None:
        """Take up to `room` deliveries that are due, the oldest first, passing over what others are just taking."""
        due = (
            sa.select(
                deliveries.c.recipient,
                deliveries.c.attempts,
                texts.c.route,
                texts.c.received_at,
                deliveries.c.queued_at,
                texts.c.redact,
                texts.c.id,
                texts.c.subscription_id,
                texts.c.from_number,
                texts.c.to_number,
                texts.c.created,
                texts.c.message,
                texts.c.recovered,
            )
            .join(texts, texts.c.id == deliveries.c.text_id)
            .where(_is(State.QUEUED), deliveries.c.next_at <= self.clock())
            .order_by(deliveries.c.next_at)
            .limit(max(room, 0))
            .with_for_update(skip_locked=True, of=deliveries)
        )
        claimed = [_delivery(row) for row in connection.execute(due)] if room > 0 else []
        _TAKE.execute(connection, [(*delivery.key, self.worker) for delivery in claimed])
        outcome.claimed += claimed
        outcome.behind = len(claimed) == room
        if not outcome.behind:
            outcome.next_due = connection.scalar(sa.select(sa.func.min(deliveries.c.next_at)).where(_is(State.QUEUED)))

    def insert_missing(self, connection: sa.Connection, table: sa.Table, row: Mapping[str, object]) -> None:
        """Insert `row`, unless there is one of its key."""
        connection.execute(self._insert(table).on_conflict_do_nothing(), row)

    def insert_or_enlarge(
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
        rows = [(minute, self.worker, kind, count) for kind, count in counts.items() if count]
        _COUNT.execute(connection, rows)


class _OnlyTried(Exception):  # noqa: N818 - no error: it ends a transaction that is not meant to last
    """What a transaction was to show, it has shown."""


class _KnownError(Exception):
    """One of the texts is there already, perhaps from another forwarder at this very moment."""


def _known(connection: sa.Connection, ids: Iterable[int]) -> set[int]:
    """Those of `ids` that are ids of stored texts."""
    numbers = ",".join(map(str, ids))
    return set(connection.exec_driver_sql(f"SELECT id FROM text WHERE id IN ({numbers})").scalars())  # noqa: S608 - whole numbers


class _Statement:
    """One statement for many rows: a turn gives the database all of a kind at once, in the same words on either.

    A statement for each row would cost several times as much, most of it in SQLAlchemy and in handing Python's lock to
    and fro between this thread and the one that serves.
    """

    def __init__(self, columns: int, before: str, after: str = "") -> None:
        self._before = before
        self._row = f"({', '.join(['?'] * columns)})"
        self._after = after

    def execute(self, connection: sa.Connection, rows: Sequence[tuple[object, ...]]) -> int:
        """Execute it with `rows`, whose values are the driver's own; returns how many rows it changed."""
        changed = 0
        for start in range(0, len(rows), MOST_ROWS):
            some = rows[start : start + MOST_ROWS]
            sql = f"{self._before} VALUES {', '.join([self._row] * len(some))} {self._after}"
            if connection.dialect.paramstyle != "qmark":
                sql = sql.replace("?", "%s")
            changed += connection.exec_driver_sql(sql, tuple(chain.from_iterable(some))).rowcount
        return changed


def _insert_into(table: sa.Table) -> str:
    return f"INSERT INTO {table.name} ({', '.join(column.name for column in table.columns)})"


_ONE: Final = "delivery.text_id = given.text_id AND delivery.recipient = given.recipient"
_INSERT_TEXT: Final = _Statement(len(texts.columns), _insert_into(texts), "ON CONFLICT DO NOTHING")
_INSERT_DELIVERY: Final = _Statement(len(deliveries.columns), _insert_into(deliveries))
_TAKE: Final = _Statement(
    3,
    "WITH given (text_id, recipient, owner) AS (",
    f") UPDATE delivery SET state = 'sending', owner = given.owner FROM given WHERE {_ONE}",  # noqa: S608 - words of ours
)
_GIVE_BACK: Final = _Statement(
    2,
    "WITH given (text_id, recipient) AS (",
    f") UPDATE delivery SET state = 'queued', owner = NULL FROM given WHERE {_ONE}",  # noqa: S608 - words of ours
)
_FINISH: Final = _Statement(
    7,
    "WITH given (text_id, recipient, state, attempts, next_at, answer, owner) AS (",
    ") UPDATE delivery SET state = given.state, attempts = given.attempts, next_at = given.next_at,"
    " answer = given.answer, owner = NULL FROM given"
    " WHERE delivery.text_id = given.text_id AND delivery.recipient = given.recipient"
    " AND (delivery.owner = given.owner OR given.state = 'sent')",
)
"""A sent mail is sent whoever owns it by now; anything else only counts while the delivery is still ours."""
_COUNT: Final = _Statement(
    len(flow.columns),
    _insert_into(flow),
    "ON CONFLICT (minute, worker, kind) DO UPDATE SET count = flow.count + excluded.count",
)


def _take_over(connection: sa.Connection) -> int:
    """Queue again what forwarders had in hand that have not been heard of for a lease; returns how many."""
    connection.execute(sa.delete(workers).where(workers.c.alive_until < _DatabaseTime()))
    return connection.execute(
        sa.update(deliveries)
        .where(_is(State.SENDING), deliveries.c.owner.not_in(sa.select(workers.c.id)))
        .values(state=_QUEUED, owner=None)
    ).rowcount


def redact(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> int:
    """Forget what the texts said, where every delivery has been sent; returns how many were changed."""
    unsent = sa.exists().where(deliveries.c.text_id == texts.c.id, deliveries.c.state != State.SENT)
    return connection.execute(
        sa.update(texts).where(*which, texts.c.raw.is_not(None), ~unsent).values(message=None, raw=None)
    ).rowcount


def _is(state: State) -> sa.ColumnElement[bool]:
    """`state`, said so that the partial index of what is not sent can be used."""
    return sa.and_(sa.text("delivery.state <> 'sent'"), deliveries.c.state == sa.literal_column(f"'{state}'"))


def _delivery(row: Any) -> Delivery:
    (
        recipient, attempts, route, received_at, queued_at, redacted,
        text_id, subscription_id, from_number, to_number, created, message, recovered,
    ) = row  # fmt: skip
    text = InboundText(
        text_id, subscription_id, from_number, to_number, created, message or "", b"", recovered=recovered
    )
    return Delivery(text, route, recipient, attempts, received_at, queued_at, redacted)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file `path` names, or None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _storable(value: str) -> str:
    """`value` without what no database takes as text: NUL, and half of a character."""
    return _UNSTORABLE.sub("\ufffd", value)


def _short(error: Exception) -> str:
    """The database's own words, without the statement and its parameters."""
    cause = error.orig if isinstance(error, StatementError) and error.orig else error
    return " ".join(str(cause).split()) or type(cause).__name__
