"""From release to release: an old outbox opens with everything in it, a newer one says so."""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from forwarder import migrations
from forwarder.errors import StartError
from forwarder.migrations import Version, has_way_back, version
from forwarder.outbox import Outbox, Turn, connect
from forwarder.schema import deliveries, metadata, quarantine, texts
from tests.forwarder_kit import PostgreSQL, inbound, open_outbox, posting, states

_FIRST_RELEASE = Path(__file__).resolve().parents[1] / "recorded" / "outbox-v1.db"
"""Written by the first release: eight texts, of which some were sent, and one body in quarantine."""


def _differences(outbox: Outbox) -> list[str]:
    with outbox.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        return [str(found) for found in compare_metadata(context, metadata) if "alembic_version" not in str(found)]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_versions_make_the_tables_of_the_schema(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What the migrations leave behind is what schema.py says, and running them again changes nothing."""
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    if kind == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.database()
    outbox = open_outbox(url)
    assert _differences(outbox) == []
    outbox.migrate()
    outbox.close()


def test_an_outbox_of_the_first_release_opens_with_its_backlog(tmp_path: Path) -> None:
    """Nothing is missing, what the lost process had in hand is queued, and the days of all count from their arrival."""
    path = tmp_path / "outbox.db"
    shutil.copy(_FIRST_RELEASE, path)
    outbox = open_outbox(f"sqlite:///{path}")
    assert _differences(outbox) == []
    found = states(outbox)
    assert len(found) == 10
    assert sorted(found.values()) == ["dead"] + ["queued"] * 8 + ["sent"]
    claimed = outbox.turn(Turn(room=99, look=True)).claimed
    assert len(claimed) == 8
    for delivery in claimed:
        assert delivery.text.message == f"Backlog {delivery.text.id}: Grüße 👋"
        assert delivery.queued_at == delivery.received_at == 1_700_000_000.0
    assert [delivery.order for delivery in claimed if not delivery.attempts] == sorted(
        delivery.order for delivery in claimed if not delivery.attempts
    )
    with outbox.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(texts)) == 8
        assert connection.scalar(sa.select(quarantine.c.reason)) == "not well-formed XML: test"
    outbox.close()


def test_an_outbox_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    """A forwarder that was rolled back too far says what to do instead of guessing."""
    outbox = open_outbox(f"sqlite:///{tmp_path / 'outbox.db'}")
    with outbox.transaction() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '999'")
    with pytest.raises(StartError, match=r"a newer release .* version 999"):
        outbox.migrate()
    outbox.close()


_LATER = """
from alembic import op

revision = "{name}"
down_revision = "{before}"


def upgrade() -> None:
    for statement in {statements}:
        op.execute(statement)
"""
_ADDITIONS = (
    "ALTER TABLE delivery ADD COLUMN added_{number} INTEGER",
    "ALTER TABLE text ADD COLUMN added_{number} INTEGER NOT NULL DEFAULT 0",
    "CREATE TABLE added_{number} (id INTEGER PRIMARY KEY, word VARCHAR(8) NOT NULL)",
    "CREATE INDEX index_added_{number} ON text (added_{number})",
)


@pytest.fixture
def later_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., AbstractContextManager[None]]:
    """A function that makes this process a later release, whose versions have these names, for the time of a block."""

    @contextmanager
    def release(*names: str, statements: Sequence[str] = _ADDITIONS) -> Iterator[None]:
        folder = tmp_path / "-".join(names)
        shutil.copytree(Path(migrations.__file__).parent, folder)
        for before, name in pairwise(("2", *names)):
            number = name.partition("_")[0]
            changes = [statement.format(number=number) for statement in statements]
            text = _LATER.format(name=name, before=before, statements=changes)
            (folder / "versions" / f"v{number}_later.py").write_text(text)
        with monkeypatch.context() as patched:
            patched.setattr(migrations, "__file__", str(folder / "__init__.py"))
            yield

    return release


@pytest.mark.parametrize(
    ("names", "way_back", "after"),
    [
        (["3_from_2"], True, Version.NEWER),
        (["3_from_2", "4_from_2"], True, Version.NEWER),
        (["3_from_2", "4_from_3"], False, Version.UNUSABLE),
        (["3"], False, Version.UNUSABLE),
        (["3", "4_from_2"], False, Version.NEWER),
    ],
)
def test_a_version_says_which_releases_can_use_it(
    names: list[str],
    way_back: bool,  # noqa: FBT001 - a column of the table
    after: Version,
    tmp_path: Path,
    later_release: Callable[..., AbstractContextManager[None]],
) -> None:
    """Beforehand, to the release that will make it; afterwards, to the one before, which goes on with it or refuses."""
    outbox = open_outbox(f"sqlite:///{tmp_path / 'outbox.db'}")
    outbox.turn(Turn([posting(inbound(1))]))
    with later_release(*names):
        with outbox.reading() as connection:
            assert (version(connection), has_way_back(connection, 2)) == (Version.EARLIER, way_back)
        outbox.migrate()
        outbox.migrate()
    with outbox.reading() as connection:
        assert version(connection) is after
    if after is Version.NEWER:
        outbox.migrate()
        outbox.turn(Turn([posting(inbound(2))]))
        assert set(states(outbox)) == {(1, "office@example.com"), (2, "office@example.com")}
    else:
        with pytest.raises(StartError, match=f"in version {names[-1]}, which this one does not know"):
            outbox.migrate()
    outbox.close()


@pytest.mark.parametrize(("known", "way_back"), [(2, False), (3, True), (4, True)])
def test_what_a_release_knows_counts_and_not_what_it_runs_on(
    known: int,
    way_back: bool,  # noqa: FBT001 - a column of the table
    tmp_path: Path,
    later_release: Callable[..., AbstractContextManager[None]],
) -> None:
    """The tables of a release that was taken back stay, and the one before it is still what may have to go on."""
    outbox = open_outbox(f"sqlite:///{tmp_path / 'outbox.db'}")
    with later_release("3_from_2"):
        outbox.migrate()
    with later_release("3_from_2", "4_from_3"), outbox.reading() as connection:
        assert (version(connection), has_way_back(connection, known)) == (Version.EARLIER, way_back)
    outbox.close()


@pytest.mark.parametrize(("held", "wanted"), [(texts, deliveries), (deliveries, texts)])
def test_an_upgrade_is_in_no_knot_with_a_forwarder_at_work(
    postgresql: PostgreSQL,
    later_release: Callable[..., AbstractContextManager[None]],
    held: sa.Table,
    wanted: sa.Table,
) -> None:
    """Whatever another transaction holds and then wants, it gets; the tables change when it has ended."""
    url = postgresql.database()
    busy, newer = open_outbox(url), Outbox(connect(url))
    with later_release("3_from_2"), ThreadPoolExecutor() as pool:
        with busy.transaction() as connection:
            connection.execute(sa.delete(held))
            upgrading = pool.submit(newer.migrate)
            _until_somebody_waits(busy)
            connection.execute(sa.delete(wanted))
        upgrading.result(30)
    assert "added_3" in str(_differences(newer))
    busy.close()
    newer.close()


def test_an_upgrade_leaves_the_tables_of_another_application_alone(
    postgresql: PostgreSQL, later_release: Callable[..., AbstractContextManager[None]]
) -> None:
    """In the same database: it waits for none of them, whatever they are called."""
    url = postgresql.database()
    with psycopg.connect(url) as other:
        other.execute('CREATE TABLE "order" (id integer)')
        other.commit()
        outbox = open_outbox(url)
        other.execute('LOCK TABLE "order"')
        with later_release("3_from_2"):
            outbox.migrate()
        assert "added_3" in str(_differences(outbox))
        outbox.close()


def _until_somebody_waits(outbox: Outbox) -> None:
    """Wait until a transaction waits for a table that another holds."""
    deadline = time.monotonic() + 10
    with outbox.engine.connect() as connection:
        while not connection.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            connection.rollback()
            assert time.monotonic() < deadline


def test_two_forwarders_may_start_on_an_empty_database_at_once(postgresql: PostgreSQL) -> None:
    """One makes the tables, the other waits for it."""
    url = postgresql.database()
    both = [Outbox(connect(url)) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(Outbox.migrate, both))
    assert _differences(both[0]) == []
    for outbox in both:
        outbox.close()


def test_the_versions_form_one_line() -> None:
    """Each says which comes before it; numbers only grow."""
    folder = Path(__file__).resolve().parents[2] / "forwarder" / "migrations" / "versions"
    found = sorted(int(re.findall(r"^v(\d+)_", path.name)[0]) for path in folder.glob("v*.py"))
    assert found == list(range(1, len(found) + 1))


def _not_only_added(url: str) -> list[str]:
    """What versions that say that an earlier release can use them do to its tables besides adding, each in words."""
    found, engine = [], connect(url)
    with engine.begin() as connection:
        config = migrations._config(connection)
        for script in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
            before = _reflected(connection)
            command.upgrade(config, script.revision)
            if "_from_" in script.revision:
                found += [f"{script.revision}: {said}" for said in _missed(before, _reflected(connection))]
    engine.dispose()
    return found


def _reflected(connection: sa.Connection) -> dict[str, sa.Table]:
    """The tables as they are."""
    there = sa.MetaData()
    there.reflect(connection)
    return dict(there.tables)


def _missed(before: dict[str, sa.Table], after: dict[str, sa.Table]) -> Iterator[str]:
    """What a release that knows the tables as they were can't do as before."""
    for name, old in before.items():
        if name not in after:
            yield f"table {name} is gone"
            continue
        new = after[name]
        yield from (f"index {index} is gone" for index in _indexes(old) - _indexes(new))
        for column in old.columns:
            if column.name not in new.columns:
                yield f"column {column} is gone"
            elif _nature(column) != _nature(new.columns[column.name]):
                yield f"column {column} is another"
        for column in new.columns:
            if column.name not in old.columns and not column.nullable and column.server_default is None:
                yield f"column {column} is new and must be given"


def _indexes(table: sa.Table) -> set[str]:
    return {str(index.name) for index in table.indexes}


def _nature(column: sa.Column[object]) -> tuple[str, bool, bool, bool]:
    return str(column.type), bool(column.nullable), column.server_default is None, column.primary_key


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_version_for_the_release_before_only_adds(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """It says in its name that an earlier release can go on with it: nothing that one has is gone or another."""
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    if kind == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.database()
    assert _not_only_added(url) == []


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (_ADDITIONS, []),
        (["DROP TABLE alert"], ["table alert is gone"]),
        (["ALTER TABLE text DROP COLUMN message"], ["column text.message is gone"]),
        (["ALTER TABLE text RENAME COLUMN message TO content"], ["column text.message is gone"]),
        (["DROP INDEX text_received_at"], ["index text_received_at is gone"]),
        (["ALTER TABLE text ALTER COLUMN message TYPE VARCHAR(8)"], ["column text.message is another"]),
        (["ALTER TABLE text ALTER COLUMN message SET NOT NULL"], ["column text.message is another"]),
        (["ALTER TABLE delivery ALTER COLUMN queued_at DROP DEFAULT"], ["column delivery.queued_at is another"]),
        (["ALTER TABLE text ADD COLUMN word TEXT NOT NULL"], ["column text.word is new and must be given"]),
    ],
)
def test_what_a_version_does_besides_adding_is_found(
    statements: Sequence[str],
    said: list[str],
    postgresql: PostgreSQL,
    later_release: Callable[..., AbstractContextManager[None]],
) -> None:
    """Of a version made up for this, so that the test of the real ones is known to see it."""
    with later_release("3_from_2", statements=statements):
        assert _not_only_added(postgresql.database()) == [f"3_from_2: {each}" for each in said]
    with later_release("3", statements=statements):
        assert _not_only_added(postgresql.database()) == []
