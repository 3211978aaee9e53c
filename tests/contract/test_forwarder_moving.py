"""An outbox that is backed up, moved and multiplied, as docs/outbox.md tells it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from forwarder.errors import StartError
from forwarder.moving import MOVED, move
from forwarder.outbox import LEASE_SECONDS, Outbox, Posting, Quarantined, Turn, connect
from forwarder.schema import State, metadata, workers
from forwarder.sender import Backoff
from tests.forwarder_kit import (
    TOKEN,
    MailSink,
    PostgreSQL,
    environment,
    inbound,
    mail_sink,
    open_outbox,
    posting,
    running,
    states,
    text_postback,
)

_DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "outbox.md"


@pytest.fixture
def sink() -> Iterator[MailSink]:
    """A mail server."""
    with mail_sink() as server:
        yield server


def _verb(settings: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forwarder", *map(str, words)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)


def _documented(start: str) -> str:
    """The one command of the document that begins so."""
    (line,) = re.findall(rf"^\$ ({re.escape(start)}.*)$", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return str(line)


def test_the_document_tells_every_state() -> None:
    """And the times it names are those of the program."""
    document = _DOCUMENT.read_text(encoding="utf-8")
    for state in State:
        assert f"| `{state}` |" in document
    backoff = Backoff()
    assert (backoff.first, backoff.longest, backoff.give_up_after, backoff.least) == (10, 4 * 3600, 5 * 86400, 10)
    assert "tried again after 5 to 10 seconds" in document
    assert "at most every four hours; `dead` after five days and at least ten attempts" in document
    assert f"in leases of {LEASE_SECONDS:g} seconds" in document
    assert f"after {LEASE_SECONDS:g} to {LEASE_SECONDS * 4 / 3:g} seconds with PostgreSQL" in document


def test_every_table_is_moved() -> None:
    """All but the one that says who is at work."""
    assert {*MOVED, workers} == {*metadata.tables.values()}


def test_an_outbox_moves_from_sqlite_to_postgresql_with_all_it_holds(
    tmp_path: Path, postgresql: PostgreSQL, sink: MailSink
) -> None:
    """The backlog is delivered there, what was mailed is not mailed again, and conversations stay together."""
    old = environment(tmp_path / "old", sink.port)
    with running(old) as forwarder:
        assert forwarder.post(text_postback(1)).status == 200
        assert forwarder.post(b"<broken").status == 200
        thread = sink.wait_for(1)[0].parsed["References"]
        sink.stop()
        assert forwarder.post(text_postback(2)).status == 200
    new = environment(tmp_path / "new", sink.port) | {"FORWARDER_DATABASE_URL": postgresql.database()}
    done = _verb(new, "move", tmp_path / "old" / "outbox.db", "--json")
    assert done.returncode == 0, done.stderr
    moved = json.loads(done.stdout)
    assert [moved[table] for table in ("text", "delivery", "quarantine")] == [2, 2, 1]
    sink.start()
    with running(new) as forwarder:
        assert sink.wait_for(2)[1].parsed["References"] == thread
        assert forwarder.post(text_postback(1)).status == 200
        assert forwarder.post(b"<broken again").status == 200
        assert forwarder.post(text_postback(3)).status == 200
        sink.wait_for(3)
    assert sink.times() == {(n, "office@example.com"): 1 for n in (1, 2, 3)}
    again = _verb(new, "move", tmp_path / "old" / "outbox.db")
    assert again.returncode == 1
    assert "holds texts already" in again.stderr


def test_an_outbox_in_use_is_not_moved(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """SQLite's lock and PostgreSQL's list of who is at work both tell."""
    target = Outbox(connect(f"sqlite:///{tmp_path / 'target.db'}"))
    for url in (f"sqlite:///{tmp_path / 'outbox.db'}", postgresql.database()):
        with (
            closing(open_outbox(url)),
            closing(Outbox(connect(url))) as seen,
            pytest.raises(StartError, match=r"another forwarder|at work"),
        ):
            move(seen, target)
    target.close()


def test_an_outbox_moves_back_to_sqlite(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """From several machines to one."""
    url = postgresql.database()
    with closing(open_outbox(url)) as source:
        broken = Posting(1.0, quarantined=(Quarantined("why", "", b"\x00\xff"),))
        source.turn(Turn([posting(inbound(1), inbound(2)), broken], room=1))
        source.unregister()
    with closing(Outbox(connect(url))) as source, closing(Outbox(connect(f"sqlite:///{tmp_path / 'o.db'}"))) as target:
        assert move(source, target)["quarantine"] == 1
        assert set(states(target).values()) == {"queued"}


def test_a_backup_of_a_running_forwarder_is_whole(tmp_path: Path, sink: MailSink) -> None:
    """The documented command, beside posts that come in; what is put back delivers what waited."""
    sink.stop()
    settings = environment(tmp_path / "state", sink.port)
    with running(settings) as forwarder:
        for n in range(1, 21):
            assert forwarder.post(text_postback(n)).status == 200
        command = _documented("python -c").replace("/var/lib/forwarder/", f"{tmp_path}/state/")
        command = command.replace("python ", f"{shlex.quote(sys.executable)} ", 1).replace("/backup/", f"{tmp_path}/")
        subprocess.run(command, shell=True, check=True, timeout=30)  # noqa: S602 - as people run it
        forwarder.kill()
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(tmp_path / "outbox.db", restored / "outbox.db")
    sink.start()
    with running(environment(restored, sink.port)):
        sink.wait_for(20)
    assert set(sink.times().values()) == {1}
    assert TOKEN.encode() not in (restored / "outbox.db").read_bytes()
