"""Servers that are gone, or somebody else's by now: what the others are spared, and what is said of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from hosting import ssh
from hosting.server import ServerForwarderProvider
from hosting.ssh import Access, Server, ServerError, UnreachableError
from tests.forwarder_kit import MailSink
from tests.server.conftest import Servers
from tests.server.kit import Load, Properties, declared, sink_at
from tests.server.machine import Machine
from tests.server.postgresql import postgresql
from tests.server.test_refusals import OTHER_KEY

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
def there(machines: list[Machine], sink: MailSink) -> Properties:
    """What is declared when the forwarder is on the first server."""
    return declared(machines[0], sink=sink)


@pytest.fixture(scope="module")
def elsewhere(machines: list[Machine], sink: MailSink) -> Properties:
    """What is declared when it is on the second."""
    return declared(machines[1], sink=sink, settings={"FORWARDER_SMTP_HOST": machines[0].gateway})


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not answer is not waited for."""
    monkeypatch.setattr("hosting.ssh.CONNECT_WITHIN", 1.0)


def installed(machine: Machine) -> str:
    """Return what of a forwarder is on a server."""
    return machine.run("ls -d /opt/callfire-mail /etc/callfire-mail", check=False)


def test_a_server_that_is_somebody_else_s_now_is_replaced(
    machines: list[Machine], there: Properties, elsewhere: Properties, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has its address has another host key, or lets nobody in: that is said, and stops nothing."""
    first, second = machines
    olds = dict(provider.create(there).outs or {})
    reasons = {
        "its host key is not the one that is known": {"known_hosts": [f"{first.ip} {OTHER_KEY}"]},
        "the login as nobody-here was refused": {"user": "nobody-here"},
        "the private key /nowhere can't be read": {"key_file": "/nowhere"},
    }
    for reason, change in reasons.items():
        outputs = dict(provider.update("id", olds | {"access": olds["access"] | change}, elsewhere).outs or {})
        assert outputs["hosts"] == [second.ip]
        said = capsys.readouterr().out
        assert f"production on {first.ip}: was left as it is. SSH" in said
        assert reason in said
    assert first.run("systemctl is-active callfire-mail-production.service") == "active"
    for left in (outputs, olds):
        provider.delete("id", left)
    assert installed(first) == installed(second) == ""


@pytest.mark.usefixtures("hurried")
def test_a_server_that_is_gone_is_replaced(
    machines: list[Machine],
    sink: MailSink,
    there: Properties,
    elsewhere: Properties,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another one takes its place in the list; that the dead one can't be cleared is said, and stops nothing."""
    first, second = machines
    olds = dict(provider.create(there).outs or {})
    first.cut()
    outputs = dict(provider.update("id", olds, elsewhere).outs or {})
    assert f"production on {first.ip}: was left as it is. SSH to {first.ip}: port 22" in capsys.readouterr().out
    with Load(lambda: (second.ip, 8710)) as load:
        pass
    load.check(sink)
    first.boot()
    for left in (outputs, olds):
        provider.delete("id", left)
    assert installed(first) == installed(second) == ""


@pytest.fixture(scope="module")
def both(machines: list[Machine], sink: MailSink) -> Iterator[Properties]:
    """What is declared when it is on both, with one PostgreSQL."""
    with postgresql(machines[0].gateway) as url:
        yield declared(*machines, sink=sink, secrets={"FORWARDER_DATABASE_URL": url})


@pytest.mark.usefixtures("hurried")
def test_a_dead_server_keeps_no_other_from_being_cleared(machines: list[Machine], both: Properties) -> None:
    """`pulumi destroy` goes on with the others, and says what is to be done about the dead one."""
    first, second = machines
    outputs = dict(provider.create(both).outs or {})
    first.cut()
    with pytest.raises(ServerError) as raised:
        provider.delete("id", outputs)
    assert f"  {first.ip}: SSH to {first.ip}: port 22 does not answer" in str(raised.value)
    assert f"If {first.ip} is gone for good, take it out of serverHosts and run `pulumi up`, then" in str(raised.value)
    assert installed(second) == ""
    first.boot()
    provider.delete("id", outputs)
    assert installed(first) == ""


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("dying", [1, 2])
def test_what_hides_in_a_first_installation_that_fails(
    machines: list[Machine], both: Properties, monkeypatch: pytest.MonkeyPatch, dying: int
) -> None:
    """The last server dies before its turn: the first is cleared; if it died, too, that is said beside the reason."""
    first, second = machines
    asked: list[str] = []

    def connect(host: str, access: Access, progress: Callable[[str], None]) -> AbstractAsyncContextManager[Server]:
        asked.append(host)
        if asked == [first.ip, second.ip] * 2:
            for machine in machines[-dying:]:
                machine.cut()
        return ssh.connect(host, access, progress)

    monkeypatch.setattr("hosting.server.connect", connect)
    with pytest.raises(UnreachableError) as raised:
        provider.create(both)
    for machine in machines[-dying:]:
        machine.boot()
    said = str(raised.value)
    assert said.startswith(f"SSH to {second.ip}: port 22 does not answer")
    if dying == 2:
        assert f"\nBrought up before it, and not taken back: {first.ip}: SSH to {first.ip}: port 22" in said
        provider.delete("id", both)
    assert "Brought up before it, and left so" not in said
    assert installed(first) == ""
