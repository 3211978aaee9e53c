"""From release to release: an old outbox opens with everything in it, a newer one says so."""

import re
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from forwarder.errors import StartError
from forwarder.outbox import Outbox, Turn, connect
from forwarder.schema import metadata, quarantine, texts
from tests.forwarder_kit import PostgreSQL, open_outbox, states

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


def test_two_forwarders_may_start_on_an_empty_database_at_once(postgresql: PostgreSQL) -> None:
    """One makes the tables, the other waits for it."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only here

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
    found = sorted(int(re.match(r"v(\d+)_", path.name)[1]) for path in folder.glob("v*.py"))  # type: ignore[index]
    assert found == list(range(1, len(found) + 1))
