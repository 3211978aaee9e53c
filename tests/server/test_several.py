"""Two servers with one PostgreSQL, behind an address that spreads over those that answer."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import MailSink
from tests.server.conftest import Servers
from tests.server.kit import ADDITIONS, Load, Properties, add_version, broken_release, declared, read, sink_at
from tests.server.machine import Machine, eventually
from tests.server.postgresql import postgresql
from tests.server.test_lifecycle import crash

provider = ServerForwarderProvider()


@pytest.fixture(scope="module")
def machines(servers: Servers) -> list[Machine]:
    """Two servers with nothing on them."""
    return [servers("one"), servers("two")]


@pytest.fixture(scope="module")
def sink(machines: list[Machine]) -> Iterator[MailSink]:
    """The mail server."""
    with sink_at(machines[0]) as sink:
        yield sink


@pytest.fixture(scope="module")
def declare_again(machines: list[Machine], sink: MailSink) -> Iterator[Callable[[], Properties]]:
    """A function that returns what the program declares for the release that is current."""
    with postgresql(machines[0].gateway) as url:
        yield lambda: declared(*machines, sink=sink, secrets={"FORWARDER_DATABASE_URL": url})


@pytest.fixture(scope="module")
def created(declare_again: Callable[[], Properties]) -> Properties:
    """The outputs of a fresh installation."""
    outputs = provider.create(declare_again()).outs
    assert outputs is not None
    return dict(outputs)


def spread(machines: list[Machine], first: int) -> Load:
    """A load on all of these, in turns."""
    turns = itertools.cycle(machines)
    return Load(lambda: (next(turns).ip, 8710), first=first)


def test_an_upgrade_goes_one_by_one_and_loses_nothing(  # noqa: PLR0913, PLR0917 - fixtures
    machines: list[Machine],
    sink: MailSink,
    declare_again: Callable[[], Properties],
    created: Properties,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Both take the new release, under load; each text is answered and mailed once."""

    def change(sources: Path) -> None:
        (sources / "__init__.py").write_text('"""Another release."""\n')

    with spread(machines, 1_000_000) as load:
        with broken_release(monkeypatch, tmp_path, change):
            outputs = provider.update("id", created, declare_again()).outs
        assert outputs is not None
        provider.update("id", dict(outputs), declare_again())
    load.check(sink)


def test_a_broken_release_stops_at_the_first(  # noqa: PLR0913, PLR0917 - fixtures
    machines: list[Machine],
    sink: MailSink,
    declare_again: Callable[[], Properties],
    created: Properties,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The second is not even tried."""
    refused = pytest.raises(ServerError, match=f"{machines[0].ip}: release .* was refused before it took over")
    with spread(machines, 2_000_000) as load, broken_release(monkeypatch, tmp_path, crash), refused:
        provider.update("id", created, declare_again())
    load.check(sink)
    assert not provider.diff("id", read(provider, created), declare_again()).changes


def only(machine: Machine, props: Properties) -> Properties:
    """The same for one of the servers alone: how far an `up` has come when it is the first one's turn."""
    return props | {"hosts": [machine.ip], "servers": {machine.ip: props["servers"][machine.ip]}}


def take_away(sources: Path) -> None:
    """What only releases can go on with that know the tables of the one before."""
    add_version(sources, "4_from_3", "DROP TABLE later", before="3_from_2")


def test_the_release_before_goes_on_with_the_tables_of_the_next(  # noqa: PLR0913, PLR0917 - fixtures
    machines: list[Machine],
    sink: MailSink,
    declare_again: Callable[[], Properties],
    created: Properties,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The first server has migrated, the second has not had its turn: it takes texts, even when it is killed.

    A release that leaves tables which only the first could go on with is refused there, where it would come first.
    """
    first, second = machines
    former = declare_again()
    with broken_release(monkeypatch, tmp_path, lambda sources: add_version(sources, "3_from_2", *ADDITIONS)):
        newer = declare_again()
        with spread(machines, 8_000_000) as load:
            provider.update("id", only(first, former), only(first, newer))
            load.wait_for(200)
        second.run("systemctl kill --signal KILL callfire-mail-production.service")
        with spread(machines, 9_000_000) as between:
            between.wait_for(50)
        found = read(provider, created)["servers"]
        assert [found[machine.ip]["release"] for machine in machines] == [newer["release"], former["release"]]
        refused = pytest.raises(ServerError, match=f"{first.ip}: release .* nothing was changed: .* no way back")
        with spread(machines, 10_000_000) as rest:
            with broken_release(monkeypatch, tmp_path / "later", take_away), refused:
                provider.update("id", created, declare_again())
            provider.update("id", created, newer)
            provider.update("id", newer, former)
    for each in (load, between, rest):
        each.check(sink)
    assert not provider.diff("id", read(provider, created), former).changes


def test_one_machine_is_killed(
    machines: list[Machine], sink: MailSink, declare_again: Callable[[], Properties], created: Properties
) -> None:
    """Whatever it had accepted is mailed by the other; a refresh says so, and `up` heals when it is back."""
    with spread(machines, 3_000_000) as before:
        before.wait_for(100)
    with spread(machines[1:], 4_000_000) as load:
        sink.on_data = lambda _mail, _server: "451 not now"
        late = spread(machines[:1], 5_000_000)
        with late:
            late.wait_for(20)
        machines[0].cut()
        sink.on_data = lambda _mail, _server: None
        seen = read(provider, created)
        assert seen["servers"][machines[0].ip]["state"] == "not reachable"
        assert seen["servers"][machines[1].ip]["state"] == "running"
        assert provider.diff("id", seen, declare_again()).changes
    load.check(sink)
    before.check(sink)
    late.check(sink)
    machines[0].boot()
    eventually(lambda: not provider.diff("id", read(provider, created), declare_again()).changes, "as declared again")


def test_a_server_is_taken_off_the_list(
    machines: list[Machine],
    sink: MailSink,
    declare_again: Callable[[], Properties],
    created: Properties,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is no longer listed is cleared, and nobody waits for its outbox: the other goes on with what waits."""
    both = declare_again()
    one = both | {"hosts": both["hosts"][:1], "servers": {both["hosts"][0]: both["servers"][both["hosts"][0]]}}
    sink.stop()
    with spread(machines[1:], 11_000_000) as waiting:
        pass
    outputs = provider.update("id", created, one).outs
    assert outputs is not None
    assert "PostgreSQL" not in capsys.readouterr().out
    sink.start()
    waiting.check(sink)
    assert machines[1].run("ls -d /opt/callfire-mail /etc/callfire-mail", check=False) == ""
    with spread(machines[:1], 6_000_000) as load:
        pass
    load.check(sink)
    provider.delete("id", dict(outputs))
    assert machines[0].run("ls -d /opt/callfire-mail /etc/callfire-mail", check=False) == ""
