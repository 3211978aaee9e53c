"""A deployment that is cut off anywhere, two at once, and former tokens, used or not."""

import threading
from pathlib import Path

import pytest

from hosting.server import ServerForwarderProvider
from hosting.ssh import ServerError
from tests.forwarder_kit import TOKEN, MailSink
from tests.server.kit import Load, broken_release, declared, differing, post, read
from tests.server.machine import Machine, eventually
from tests.server.test_lifecycle import fail_on_real_data

provider = ServerForwarderProvider()
NEW_TOKEN = "fedcba9876543210fedcba9876543210"
NEWER_TOKEN = "89abcdef0123456789abcdef01234567"
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


def test_former_tokens_are_dropped_when_nobody_uses_them(machine: Machine, sink: MailSink) -> None:
    """Two rotations, whose `up` failed before CallFire was told: all three are accepted, until the unused ones go."""
    outputs = dict(provider.create(declared(machine, sink=sink)).outs or {})
    rotated = {token: declared(machine, sink=sink, tokens=[token]) for token in (NEW_TOKEN, NEWER_TOKEN)}
    with Load(lambda: (machine.ip, 8710), first=2_000_000) as load:  # with the first token
        for declaration in rotated.values():
            outputs = dict(provider.update("id", read(provider, outputs), declaration).outs or {})
    load.check(sink)
    assert [post(machine, 3 + n, token) for n, token in enumerate(rotated)] == [200, 200]
    props = rotated[NEWER_TOKEN]
    seen = read(provider, outputs)
    assert (seen["former_token"], differing(seen, props)) == ("accepted", {})
    assert not provider.diff("id", seen, props).changes
    soon = outputs | {"retire_after": 0.5}
    eventually(lambda: read(provider, soon)["former_token"] == "unused", "they are unused for half a second")
    seen = read(provider, soon)
    assert differing(seen, props) == {}
    assert provider.diff("id", seen, props).changes
    assert post(machine, 5) == 200  # the first one again
    assert read(provider, seen | {"retire_after": 3600.0})["former_token"] == "accepted"
    dropped = dict(provider.update("id", seen, props).outs or {})
    assert [post(machine, 6 + n, token) for n, token in enumerate([TOKEN, *rotated])] == [404, 404, 200]
    assert not provider.diff("id", read(provider, dropped), props).changes
    provider.delete("id", dropped)


def test_states_that_listed_two_tokens(machine: Machine, sink: MailSink) -> None:
    """As they were written when the program declared the former one: it stays in force, or stays dropped."""
    outputs = dict(provider.create(declared(machine, sink=sink, tokens=[NEW_TOKEN, TOKEN])).outs or {})
    outputs.pop("owner", None)  # nor did they know that
    declaration = declared(machine, sink=sink, tokens=[NEW_TOKEN])
    assert not provider.diff("id", read(provider, outputs), declaration).changes
    newer = declared(machine, sink=sink, tokens=[NEWER_TOKEN])
    three = dict(provider.update("id", read(provider, outputs), newer).outs or {})
    assert [post(machine, 9 + n, token) for n, token in enumerate([TOKEN, NEW_TOKEN, NEWER_TOKEN])] == [200] * 3
    provider.update("id", three | {"former_token": "unused", "tokens": [NEW_TOKEN, TOKEN]}, declaration)
    assert [post(machine, 15 + n, token) for n, token in enumerate([TOKEN, NEW_TOKEN])] == [404, 200]
    dropped = outputs | {"former_token": "dropped"}
    seen = read(provider, dropped)
    assert differing(seen, declaration) == {}
    assert not provider.diff("id", seen, declaration).changes
    outputs = dict(provider.update("id", seen, newer).outs or {})
    assert [post(machine, 12 + n, token) for n, token in enumerate([TOKEN, NEW_TOKEN, NEWER_TOKEN])] == [404, 200, 200]
    provider.delete("id", outputs)


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
