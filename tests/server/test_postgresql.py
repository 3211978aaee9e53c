"""A forwarder whose outbox is in PostgreSQL: what is wrong with that is said before anything is changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, MailSink
from tests.server.kit import ADDITIONS, Load, Properties, add_version, broken_release, declared, post, read
from tests.server.machine import Machine, eventually
from tests.server.postgresql import PASSWORD, PORT, postgresql

UNIT = "callfire-mail-production"
WRONG = "Wr0ng-and-secret"
provider = ServerForwarderProvider()


@pytest.fixture(scope="module")
def url(machine: Machine) -> Iterator[str]:
    """An empty database, and a user who may only look."""
    with postgresql(machine.gateway) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE USER reader PASSWORD '{WRONG}'".encode())
        yield url


@pytest.fixture(scope="module")
def declare(machine: Machine, sink: MailSink) -> Callable[[str], Properties]:
    """A function that returns what a program declares with the database at this URL."""
    return lambda url: declared(machine, sink=sink, secrets={"FORWARDER_DATABASE_URL": url})


MISTAKES = {
    "a wrong password": (PASSWORD, WRONG, 'password authentication failed for user "callfire"'),
    "a server that is down": (f":{PORT}/", f":{PORT + 1}/", "Connection refused"),
    "an address that does not answer": ("@10.77.", "@10.99.", "timeout expired"),
    "a database that is not there": ("/outbox", "/elsewhere", 'database "elsewhere" does not exist'),
    "a user without rights": (f"callfire:{PASSWORD}", f"reader:{WRONG}", "permission denied for"),
    "a URL that is none": ("postgresql://", "mysql://", "does not start with postgresql://"),
}


def refused(attempt: Callable[[], object]) -> str:
    """Return why an installation or an update is refused before anything is changed."""
    with pytest.raises(ServerError) as raised:
        attempt()
    said = str(raised.value)
    assert "was refused before it took over" in said
    assert "nothing was changed" in said
    assert not any(secret in said for secret in (PASSWORD, WRONG, TOKEN))
    return said


def stays(machine: Machine) -> str:
    """What must stay as it is: the process, and every file of settings and units."""
    files = "/etc/systemd/system/callfire* /etc/callfire-mail /var/lib/private/callfire* /var/backups/callfire*"
    shown = machine.run(f"find {files} -type f ! -name lock | xargs -r sha256sum", check=False)
    return shown + machine.run(f"systemctl show -P MainPID {UNIT}.service")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_first_installation_with_a_wrong_database_leaves_nothing(
    machine: Machine, declare: Callable[[str], Properties], url: str, mistake: str
) -> None:
    """Refused with the forwarder's own sentence, and no password in it."""
    right, wrong, said = MISTAKES[mistake]
    reason = refused(lambda: provider.create(declare(url.replace(right, wrong))))
    assert said in reason
    assert "databaseUrl" in reason
    left = "/opt/callfire-mail /etc/callfire-mail /var/lib/callfire-mail* /var/lib/private/callfire*"
    assert machine.run(f"ls -d {left} /etc/systemd/system/callfire* /run/systemd/system/callfire*", check=False) == ""
    assert tables(url) == set()


def tables(url: str) -> set[str]:
    """Which tables and columns are there."""
    question = b"SELECT table_name || '.' || column_name FROM information_schema.columns WHERE table_schema = 'public'"
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute(question)}


@pytest.fixture(scope="module")
def created(declare: Callable[[str], Properties], url: str) -> Properties:
    """The outputs of a fresh installation."""
    return dict(provider.create(declare(url)).outs or {})


def load_on(machine: Machine, first: int) -> Load:
    """Posts for the time of a block."""
    return Load(lambda: (machine.ip, 8710), first=first)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_update_to_a_wrong_database_leaves_what_runs(  # noqa: PLR0913, PLR0917 - fixtures
    machine: Machine,
    sink: MailSink,
    declare: Callable[[str], Properties],
    created: Properties,
    url: str,
    mistake: str,
) -> None:
    """It keeps its process and its settings, and goes on under load."""
    right, wrong, said = MISTAKES[mistake]
    before = stays(machine)
    with load_on(machine, 1_000_000 * (2 + list(MISTAKES).index(mistake))) as load:
        assert said in refused(lambda: provider.update("id", created, declare(url.replace(right, wrong))))
    assert stays(machine) == before
    load.check(sink)
    assert not provider.diff("id", read(provider, created), declare(url)).changes


def fail_halfway(sources: Path) -> None:
    """A migration that changes the tables and then fails where there are texts."""
    add_version(sources, "3_from_2", *ADDITIONS, "CREATE UNIQUE INDEX one_of_each ON text (route)")


def test_a_migration_that_fails_leaves_the_tables_as_they_were(  # noqa: PLR0913, PLR0917 - fixtures
    machine: Machine,
    sink: MailSink,
    declare: Callable[[str], Properties],
    created: Properties,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """It is one transaction: the former release runs again on what it knows, and no text is lost."""
    before = tables(url)
    taken_back = pytest.raises(ServerError, match="What was in force before runs again")
    with (
        load_on(machine, 20_000_000) as load,
        broken_release(monkeypatch, tmp_path, fail_halfway),
        taken_back as raised,
    ):
        provider.update("id", created, declare(url))
    assert 'could not create unique index "one_of_each"' in str(raised.value)
    assert PASSWORD not in str(raised.value)
    assert tables(url) == before
    load.check(sink)
    assert not provider.diff("id", read(provider, created), declare(url)).changes


def delete(created: Properties, at_drain: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """Delete, and do something when the outbox begins to drain; return what is said."""
    said: list[str] = []

    def progress(doing: str) -> None:
        said.append(doing)
        if doing == "letting the outbox drain":
            at_drain()

    with monkeypatch.context() as patched:
        patched.setattr("hosting.server.reporter", lambda *_: progress)
        provider.delete("id", created)
    return "\n".join(said)


def test_what_waits_is_mailed_before_the_forwarder_goes(
    machine: Machine,
    sink: MailSink,
    declare: Callable[[str], Properties],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Delete drains an outbox in PostgreSQL like any other: the mail server is back in time."""
    created = dict(provider.create(declare(url)).outs or {})
    sink.stop()
    assert post(machine, 30_000_001) == 200
    said = delete(created, sink.start, monkeypatch)
    assert sink.times()[30_000_001, "office@example.com"] == 1
    assert "PostgreSQL" not in said


def test_what_is_left_in_postgresql_is_named(
    machine: Machine,
    sink: MailSink,
    declare: Callable[[str], Properties],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Delete drains as long as it helps and says what stays there; the next installation mails it."""
    monkeypatch.setattr("hosting.server.DRAIN", 1.0)
    created = dict(provider.create(declare(url)).outs or {})
    sink.stop()
    assert post(machine, 30_000_002) == 200
    said = delete(created, lambda: None, monkeypatch)
    assert "1 waiting are kept in your PostgreSQL, for a forwarder with the same databaseUrl" in said
    assert machine.run(f"ls -d /opt/callfire-mail /etc/callfire-mail /var/lib/{UNIT}", check=False) == ""
    sink.start()
    again = dict(provider.create(declare(url)).outs or {})
    eventually(lambda: sink.times()[30_000_002, "office@example.com"] == 1, "the kept text is mailed")
    provider.delete("id", again)


def break_the_release(machine: Machine, _: "psycopg.Connection[Any]") -> None:
    """Its process has read what is no longer there."""
    machine.run("rm -r /opt/callfire-mail/production/releases/*/lib/python*/site-packages/forwarder")


def lock_out(_: Machine, database: "psycopg.Connection[Any]") -> None:
    """Nobody who connects now gets in."""
    database.execute(f"ALTER USER callfire PASSWORD '{WRONG}'".encode())


@pytest.mark.parametrize(
    ("trouble", "why"),
    [
        (break_the_release, "No module named forwarder"),
        (lock_out, MISTAKES["a wrong password"][2]),
    ],
)
def test_a_forwarder_that_cannot_tell_what_is_left_goes_all_the_same(  # noqa: PLR0913, PLR0917 - fixtures
    machine: Machine,
    declare: Callable[[str], Properties],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Machine, "psycopg.Connection[Any]"], None],
    why: str,
) -> None:
    """Its release is broken, or the database refuses it: that is said with the reason, and it is removed."""
    created = dict(provider.create(declare(url)).outs or {})
    with psycopg.connect(url, autocommit=True) as database:
        try:
            trouble(machine, database)
            said = delete(created, lambda: None, monkeypatch)
        finally:
            database.execute(f"ALTER USER callfire PASSWORD '{PASSWORD}'".encode())
    assert "what waits in your PostgreSQL could not be told" in said
    assert why in said
    assert not any(secret in said for secret in (PASSWORD, WRONG, TOKEN))
    assert machine.run(f"ls -d /opt/callfire-mail /etc/callfire-mail /var/lib/{UNIT}", check=False) == ""
