"""A release that brings the outbox to a version of its own, and what becomes of it when that release fails."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import MailSink
from tests.server.kit import ADDITIONS, Load, Properties, add_version, broken_release, declared, edit, read
from tests.server.machine import Machine, eventually

UNIT = "callfire-mail-production"
OFFICE = "office@example.com"
provider = ServerForwarderProvider()
ASK = """
import sqlite3
outbox = sqlite3.connect("/var/lib/callfire-mail-production/outbox.db")
print(*outbox.execute("{question}").fetchone())
"""


@pytest.fixture
def created(machine: Machine, sink: MailSink) -> Iterator[Properties]:
    """The outputs of a fresh installation, which is taken away again."""
    outputs = dict(provider.create(declared(machine, sink=sink)).outs or {})
    yield outputs
    provider.delete("id", outputs | {"purge": True})


FIRSTS = itertools.count(1_000_000, 1_000_000)


def load_on(machine: Machine) -> Load:
    """Posts for the time of a block, of texts that no other has; a release that is sick is given half a minute."""
    load = Load(lambda: (machine.ip, 8710), first=next(FIRSTS))
    load.pause = 0.05
    return load


def asked(machine: Machine, question: str) -> str:
    """What the outbox answers to a question for one value."""
    return machine.call("ssh", "python3 -", stdin=ASK.format(question=question))


def version(machine: Machine) -> str:
    """The version of the outbox's tables."""
    return asked(machine, "SELECT version_num FROM alembic_version")


def takers(machine: Machine) -> int:
    """How many processes, one after the other, took texts."""
    return int(asked(machine, "SELECT count(DISTINCT worker) FROM flow WHERE kind = 'received'"))


def main_pid(machine: Machine) -> str:
    """The process that serves."""
    return machine.run(f"systemctl show -P MainPID {UNIT}.service")


def add(sources: Path) -> None:
    """Tables that the release before can use."""
    add_version(sources, "3_from_2", *ADDITIONS)


def know_whether_there_are_texts(sources: Path) -> None:
    """What a release must know to fail on a real outbox alone, which no preflight sees."""
    method = "    def has_texts(self) -> bool:\n        with self.reading() as connection:\n"
    method += "            return bool(connection.scalar(sa.select(sa.exists(sa.select(texts.c.id)))))\n\n"
    edit(sources / "outbox.py", "    def register(self)", f"{method}    def register(self)")


def add_and_end(sources: Path) -> None:
    """A release that brings the outbox to its version and then ends."""
    add(sources)
    end(sources)


def end(sources: Path) -> None:
    """A release that ends where there are texts."""
    know_whether_there_are_texts(sources)
    refusal = '            if outbox.has_texts():\n                raise StartError("it does not like them")\n'
    edit(sources / "app.py", "            if lost:\n", f"{refusal}            if lost:\n")


def add_and_sicken(sources: Path) -> None:
    """A release that brings the outbox to its version, takes posts, mails them, and says that it is not well."""
    add(sources)
    know_whether_there_are_texts(sources)
    edit(sources / "admin.py", "200 if vitals", "200 if not self._ledger._outbox.has_texts() and vitals")


MISSED = "ALTER TABLE text RENAME COLUMN message TO content"


def take_away(sources: Path) -> None:
    """Tables that the release before can't use."""
    add_version(sources, "3", MISSED)
    miss(sources)


def take_away_later(sources: Path) -> None:
    """Tables that only a release can use which knows what the one before it added; and it ends."""
    add(sources)
    add_version(sources, "4_from_3", MISSED, before="3_from_2")
    miss(sources)
    end(sources)


def miss(sources: Path) -> None:
    """A release without what was taken away."""
    schema = sources / "schema.py"
    edit(schema, 'Column("message", Text)', 'Column("content", Text, key="message")')


@pytest.mark.parametrize(
    ("change", "said", "took"), [(add_and_end, "it does not like them", 2), (add_and_sicken, "/readyz answered 503", 3)]
)
def test_a_release_that_fails_after_its_migration_is_taken_back_and_nothing_is_lost(  # noqa: PLR0913, PLR0917 - fixtures
    machine: Machine,
    sink: MailSink,
    created: Properties,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: Callable[[Path], None],
    said: str,
    took: int,
) -> None:
    """Under load: each text is answered and mailed once, also those that the newer one took before it went."""
    with load_on(machine) as load, broken_release(monkeypatch, tmp_path, change):
        with pytest.raises(ServerError, match="What was in force before runs again") as raised:
            provider.update("id", created, declared(machine, sink=sink))
        load.wait_for(20)
    assert said in str(raised.value)
    assert version(machine) == "3_from_2"
    assert takers(machine) == took
    load.check(sink)
    assert not provider.diff("id", read(provider, created), declared(machine, sink=sink)).changes
    machine.run(f"systemctl restart {UNIT}.service")
    with load_on(machine) as after:
        pass
    after.check(sink)


COPIES = """
import pathlib, sqlite3
for file in pathlib.Path("/var/backups/callfire-mail-production").iterdir():
    copy = sqlite3.connect(file)
    for each in ("SELECT version_num FROM alembic_version", "SELECT count(*) FROM text"):
        print(*copy.execute(each).fetchone())
"""


def test_a_further_try_keeps_the_copy_from_before_the_migration(
    machine: Machine, sink: MailSink, created: Properties, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same release fails twice: there is one copy in the earlier version, and one with all that came since."""
    with broken_release(monkeypatch, tmp_path, add_and_end):
        for _ in range(2):
            with load_on(machine) as load:
                pass
            load.check(sink)
            with pytest.raises(ServerError, match="What was in force before runs again"):
                provider.update("id", created, declared(machine, sink=sink))
    copies = machine.call("ssh", "python3 -", stdin=COPIES).splitlines()
    texts = dict(zip(copies[::2], map(int, copies[1::2]), strict=True))
    assert set(texts) == {"2", "3_from_2"}
    assert 20 < texts["2"] < texts["3_from_2"]


@pytest.mark.parametrize("again", ["newer", "former"])
@pytest.mark.parametrize("moment", ["gated", "going back"])
def test_a_way_back_that_is_cut_off_is_finished_by_the_next(  # noqa: PLR0913, PLR0917 - fixtures
    machine: Machine,
    sink: MailSink,
    created: Properties,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    moment: str,
    again: str,
) -> None:
    """SIGKILL to what works on the server; the next `up`, of either release, ends with the former and every text."""
    former = declared(machine, sink=sink)
    unit = f"/etc/systemd/system/{UNIT}.service"
    with load_on(machine) as load:
        with broken_release(monkeypatch, tmp_path, add_and_sicken) as name:
            newer = declared(machine, sink=sink)
            failures: list[ServerError] = []
            thread = threading.Thread(target=fail, args=(created, newer, failures))
            thread.start()
            machine.run(f"until grep -q {name} {unit}; do sleep 0.05; done")
            eventually(
                lambda: version(machine) == "3_from_2", "the newer release has brought the outbox to its version"
            )
            if moment == "going back":
                machine.run(f"while grep -q {name} {unit}; do :; done")
            machine.run("pkill -9 -f '^python3 -I -c import sys'")
            thread.join(60)
            assert not thread.is_alive()
            assert "the connection ended before the answer" in str(failures[0])
            if again == "newer":
                with pytest.raises(ServerError, match="What was in force before runs again"):
                    provider.update("id", created, newer)
        if again == "former":
            provider.update("id", read(provider, created), former)
        load.wait_for(20)
    load.check(sink)
    assert not provider.diff("id", read(provider, created), former).changes


def fail(olds: Properties, news: Properties, failures: list[ServerError]) -> None:
    """Update, and keep the error."""
    try:
        provider.update("id", olds, news)
    except ServerError as error:
        failures.append(error)


def test_the_power_is_cut_before_a_release_that_fails_is_taken_back(
    machine: Machine, sink: MailSink, created: Properties, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever was answered 200 is mailed; the next `up` ends with the former release."""
    former = declared(machine, sink=sink)
    load = load_on(machine)
    with broken_release(monkeypatch, tmp_path, add_and_sicken):
        failures: list[ServerError] = []
        thread = threading.Thread(target=fail, args=(created, declared(machine, sink=sink), failures))
        with load:
            thread.start()
            eventually(
                lambda: version(machine) == "3_from_2", "the newer release has brought the outbox to its version"
            )
            load.wait_for(50)
        machine.cut()
        thread.join(90)  # a connection that says nothing is given up after a while
        assert not thread.is_alive()
    assert "finishes what is half done" in str(failures[0])
    machine.boot()
    provider.update("id", read(provider, created), former)
    eventually(lambda: {(ident, OFFICE) for ident in load.accepted} <= set(sink.times()), "every text is mailed")
    assert not provider.diff("id", read(provider, created), former).changes


def test_one_can_go_back_on_purpose(
    machine: Machine, sink: MailSink, created: Properties, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From a release with tables of its own to the one before it, under load: it goes on with the newer tables."""
    former = declared(machine, sink=sink)
    with load_on(machine) as load:
        with broken_release(monkeypatch, tmp_path, add):
            outputs = dict(provider.update("id", created, declared(machine, sink=sink)).outs or {})
        load.wait_for(50)
        provider.update("id", outputs, former)
        load.wait_for(50)
    assert version(machine) == "3_from_2"
    assert takers(machine) == 3
    load.check(sink)


def test_a_release_without_a_way_back_never_takes_over(
    machine: Machine, sink: MailSink, created: Properties, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The release in force could not use what it would make of the outbox: refused, and nothing was touched."""
    pid = main_pid(machine)
    with load_on(machine) as load, broken_release(monkeypatch, tmp_path, take_away):
        refused = pytest.raises(
            ServerError, match=r"was refused before it took over; nothing was changed: .* no way back"
        )
        with refused as raised:
            provider.update("id", created, declared(machine, sink=sink))
    assert "upgrade to a release in between first" in str(raised.value)
    assert (main_pid(machine), version(machine)) == (pid, "2")
    load.check(sink)


def test_what_runs_must_have_a_way_back_whatever_the_tables_say(
    machine: Machine, sink: MailSink, created: Properties, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A release was taken back and left its tables; the next could follow that one, but not what runs: refused."""
    former = declared(machine, sink=sink)
    with load_on(machine) as load:
        taken_back = pytest.raises(ServerError, match="What was in force before runs again")
        with broken_release(monkeypatch, tmp_path / "third", add_and_end), taken_back:
            provider.update("id", created, declared(machine, sink=sink))
        pid = main_pid(machine)
        refused = pytest.raises(
            ServerError, match=r"was refused before it took over; nothing was changed: .* no way back"
        )
        with broken_release(monkeypatch, tmp_path / "fourth", take_away_later), refused:
            provider.update("id", created, declared(machine, sink=sink))
    assert (main_pid(machine), version(machine)) == (pid, "3_from_2")
    load.check(sink)
    assert not provider.diff("id", read(provider, created), former).changes


def test_a_release_that_is_too_old_for_the_outbox_never_takes_over(
    machine: Machine, sink: MailSink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It does not know the tables: refused with what to do, and what runs was not touched."""
    with broken_release(monkeypatch, tmp_path, take_away):
        outputs = dict(provider.create(declared(machine, sink=sink)).outs or {})
    pid = main_pid(machine)
    try:
        with load_on(machine) as load, pytest.raises(ServerError) as raised:
            provider.update("id", outputs, declared(machine, sink=sink))
        assert "a newer release has used the outbox and left it in version 3" in str(raised.value)
        assert main_pid(machine) == pid
        load.check(sink)
    finally:
        provider.delete("id", outputs | {"purge": True})
