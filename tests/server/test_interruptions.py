"""A deployment that is cut off anywhere, two at once, and a former token that nobody uses any more."""

import threading
from pathlib import Path

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, MailSink
from tests.server.kit import broken_release, declared, differing, post, read
from tests.server.machine import Machine, eventually
from tests.server.test_lifecycle import fail_on_real_data

provider = ServerForwarderProvider()
NEW_TOKEN = "fedcba9876543210fedcba9876543210"
# What a deployment is doing when it is killed, as it leaves its mark on the server.
MOMENTS = {
    "installing": "ls -d /opt/callfire-mail/production/releases/*/bin",
    "trying": "ls /run/systemd/system/callfire-mail-production-preflight.service",
    "switching": "ls /etc/systemd/system/callfire-mail-production.service",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_first_installation_that_is_killed_is_finished_by_the_next(
    machine: Machine, sink: MailSink, moment: str
) -> None:
    """SIGKILL to what works on the server, at each step; the next `up` ends as if nothing had been."""
    props = declared(machine, sink=sink)
    failures: list[ServerError] = []

    def create() -> None:
        try:
            provider.create(props)
        except ServerError as error:
            failures.append(error)

    thread = threading.Thread(target=create)
    thread.start()
    machine.run(f"until {MOMENTS[moment]} >/dev/null 2>&1; do :; done; pkill -9 -f '^python3 -I -c import sys'")
    thread.join(60)
    assert not thread.is_alive()
    assert "the connection ended before the answer" in str(failures[0])
    outputs = provider.create(props).outs
    assert outputs is not None
    assert differing(read(provider, dict(outputs)), props) == {}
    assert post(machine, 1) == 200
    assert "preflight" not in machine.run("ls /run/systemd/system /etc/callfire-mail /var/lib/private")
    provider.delete("id", dict(outputs))


def test_two_at_once_wait_for_each_other(machine: Machine, sink: MailSink, capfd: pytest.CaptureFixture[str]) -> None:
    """The second waits, says so, and finds nothing left to do."""
    props = declared(machine, sink=sink)
    threads = [threading.Thread(target=provider.create, args=(props,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    printed = capfd.readouterr().out
    assert "waiting for another deployment to end" in printed
    assert printed.count("starting") == 1
    assert post(machine, 2) == 200


def test_a_former_token_is_dropped_when_nobody_uses_it(machine: Machine, sink: MailSink) -> None:
    """After a rotation both are accepted; a refresh that finds the former one unused for long enough drops it."""
    once = provider.create(declared(machine, sink=sink)).outs
    rotated = declared(machine, sink=sink, tokens=[NEW_TOKEN, TOKEN], retire_after=3600.0)
    both = provider.update("id", dict(once or {}), rotated).outs
    assert both is not None
    assert both["former_token"] == "accepted"
    assert (post(machine, 3), post(machine, 4, NEW_TOKEN)) == (200, 200)
    assert read(provider, dict(both))["former_token"] == "accepted"
    assert not provider.diff("id", read(provider, dict(both)), rotated).changes
    soon = dict(both) | {"retire_after": 0.5}
    eventually(lambda: read(provider, soon)["former_token"] == "unused", "it is unused for half a second")
    seen = read(provider, soon)
    assert provider.diff("id", seen, rotated).changes
    dropped = provider.update("id", seen, rotated).outs
    assert dropped is not None
    assert dropped["former_token"] == "dropped"
    assert (post(machine, 5), post(machine, 6, NEW_TOKEN)) == (404, 200)
    assert not provider.diff("id", read(provider, dict(dropped)), rotated).changes
    provider.delete("id", dict(dropped))


def test_an_update_that_is_killed_after_the_switch_is_gated_by_the_next(
    machine: Machine, sink: MailSink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is in force was never found healthy, so a refresh shows it, and the next `up` looks again."""
    props = declared(machine, sink=sink)
    outputs = dict(provider.create(props).outs or {})
    machine.run("echo cut > /etc/callfire-mail/production.applied")
    seen = read(provider, outputs)
    assert differing(seen, props) == {"state": "running, its last change was cut off"}
    with broken_release(monkeypatch, tmp_path, lambda sources: (sources / "more.py").touch()):
        provider.update("id", seen, declared(machine, sink=sink))
    mended = dict(provider.update("id", seen, props).outs or {})
    assert differing(read(provider, mended), props) == {}


KEEP_HALF = """
cd /etc/callfire-mail
until mount --bind production.before/{unit} production.before/{unit}; do :; done 2>/dev/null
"""


def test_no_release_goes_back_further_than_to_the_one_that_ran(
    machine: Machine, sink: MailSink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An upgrade whose last step was cut off, then one that fails: the first of them is in force again, and whole."""
    outputs = dict(provider.create(declared(machine, sink=sink)).outs or {})
    former = declared(machine, sink=sink, settings={"FORWARDER_MAIL_FROM": "former@example.com"})
    # A mount in it can't be removed: so it looks when that was cut off half way.
    thread = threading.Thread(target=machine.run, args=(KEEP_HALF.format(unit="callfire-mail-production.service"),))
    thread.start()
    outputs = dict(provider.update("id", outputs, former).outs or {})
    thread.join(60)
    machine.run("umount /etc/callfire-mail/production.before*/callfire-mail-production.service")
    assert post(machine, 7) == 200
    refused = pytest.raises(ServerError, match="What was in force before runs again")
    with broken_release(monkeypatch, tmp_path, fail_on_real_data), refused:
        provider.update("id", outputs, declared(machine, sink=sink, tokens=[NEW_TOKEN]))
    assert differing(read(provider, outputs), former) == {}
    assert post(machine, 8) == 200
    provider.delete("id", outputs)
    assert machine.run("ls -d /etc/callfire-mail", check=False) == ""
