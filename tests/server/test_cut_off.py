"""The CLI is killed in a deployment, or its state is lost: the next command ends as if nothing had been."""

import itertools
import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.journey.checkout import Checkout
from tests.pulumi_kit import Running, backend
from tests.server.handbook import commands
from tests.server.machine import Machine
from tests.server.stack import PASSWORD, CallFire, Stack, settings

UNIT = "callfire-mail-production"
# What a deployment is doing when its CLI is killed, as it leaves its mark on the server.
INSTALLING = "ls -d /opt/callfire-mail/production/releases/*/bin"
TRYING = f"ls /run/systemd/system/{UNIT}-preflight.service"
STARTING = f"ls /etc/systemd/system/{UNIT}.service"
SWITCHING = "ls -d /etc/callfire-mail/production.before"
REMOVING = f"! ls /etc/systemd/system/{UNIT}.service"
LOST = "When a stack is lost"  # a section of docs/server.md
number = itertools.count(1)


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory,
    free_ports: Callable[[int], list[int]],
    pulumi_cli: Path,
    machine: Machine,
    callfire: CallFire,
) -> Stack:
    """A stack `production` that was never up."""
    environment = backend(tmp_path_factory.mktemp("pulumi"), pulumi_cli)
    stack = Stack(Checkout(tmp_path_factory.mktemp("checkout"), free_ports(4)), "production", environment)
    stack.start(settings(machine, callfire), {"callfire:login": "sandbox", "callfire:password": PASSWORD})
    return stack


@contextmanager
def running(stack: Stack, *words: str) -> Iterator[Running]:
    """A command of the CLI in a process group of its own, and without anybody who could answer a question."""
    process = subprocess.Popen(
        ["pulumi", "--non-interactive", *words],
        cwd=stack.checkout.folder,
        env=stack.environment | {"PULUMI_STACK": stack.name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    run = Running(process)
    try:
        yield run
    finally:
        run.end()


def kill(stack: Stack, machine: Machine, verb: str, mark: str) -> None:
    """Kill the CLI's process group when this mark is on the server, and drop the lock that it leaves."""
    with running(stack, verb, "--yes", "--skip-preview") as command:
        machine.run(f"until {mark} >/dev/null 2>&1; do :; done")
        command.kill()
        command.wait_for_providers_end()
        command.wait_for_programs_end()
    stack.pulumi("cancel", "--yes")


def ends_right(stack: Stack, machine: Machine, callfire: CallFire) -> str:
    """One subscription, one mail for a text (which is returned), nothing half done, and nothing left to do."""
    assert len(callfire.ask("/control/subscriptions")["subscriptions"]) == 1
    text = f"text {next(number)}"
    callfire.arrives(text)
    assert "preflight" not in machine.run("ls /run/systemd/system /etc/callfire-mail /var/lib/private")
    assert "before" not in machine.run("ls /etc/callfire-mail")
    stack.up("--expect-no-changes")
    stack.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    return text


def nothing_is_left(machine: Machine, callfire: CallFire) -> None:
    """Neither on the server nor at CallFire."""
    assert callfire.ask("/control/subscriptions")["subscriptions"] == []
    assert machine.run("ls -d /etc/callfire-mail /opt/callfire-mail /var/lib/callfire-mail*", check=False) == ""
    assert "callfire" not in machine.run("systemctl list-units --all --no-legend; ls /etc/systemd/system")


@pytest.mark.parametrize("mark", [INSTALLING, STARTING])
def test_a_first_installation(stack: Stack, machine: Machine, callfire: CallFire, mark: str) -> None:
    """The next `up` waits for what the server still does, and takes it over."""
    stack.pulumi("destroy", "--yes", "--skip-preview")
    kill(stack, machine, "up", mark)
    stack.up()
    ends_right(stack, machine, callfire)


@pytest.mark.parametrize("mark", [TRYING, SWITCHING])
def test_a_change(stack: Stack, machine: Machine, callfire: CallFire, mark: str) -> None:
    """The next `up` ends in the new settings."""
    stack.up()
    recipient = f"office-{next(number)}@example.com"
    stack.pulumi("config", "set", "mailTo", recipient)
    kill(stack, machine, "up", mark)
    stack.up()
    assert recipient in callfire.recipients(ends_right(stack, machine, callfire))


def test_ctrl_c(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """The CLI waits for what is under way and writes it down, so the next `up` has nothing to do."""
    stack.up()
    stack.pulumi("config", "set", "mailTo", f"office-{next(number)}@example.com")
    with running(stack, "up", "--yes", "--skip-preview") as command:
        machine.run(f"until {TRYING} >/dev/null 2>&1; do :; done")
        command.interrupt()
        command.wait()
    ends_right(stack, machine, callfire)


def test_a_destroy(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """Typed again, it ends; who would rather keep the forwarder types `up --refresh`."""
    stack.up()
    kill(stack, machine, "destroy", REMOVING)
    stack.up("--refresh")
    ends_right(stack, machine, callfire)
    kill(stack, machine, "destroy", REMOVING)
    stack.pulumi("destroy", "--yes", "--skip-preview")
    nothing_is_left(machine, callfire)


def test_a_destroy_after_a_first_installation(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """It leaves what was begun, of which Pulumi knows nothing; docs/server.md says so, and how to go on."""
    stack.pulumi("destroy", "--yes", "--skip-preview")
    kill(stack, machine, "up", STARTING)
    stack.pulumi("destroy", "--yes", "--skip-preview")
    refused_until_forgotten(stack, machine)
    ends_right(stack, machine, callfire)


def test_a_lost_stack(stack: Stack, machine: Machine, callfire: CallFire) -> None:
    """The commands of docs/server.md: nothing of it is left but its outbox."""
    stack.up()
    outbox = machine.run(f"stat -c %i /var/lib/{UNIT}/outbox.db")
    stack.pulumi("stack", "rm", "--force", "--yes", "--preserve-config")
    stack.pulumi("stack", "init", stack.name)
    refused_until_forgotten(stack, machine)
    of_both = {found["id"] for found in callfire.ask("/control/subscriptions")["subscriptions"]}
    [ours] = json.loads(stack.pulumi("stack", "output", "--json"))["subscriptions"]
    sweep = commands(LOST)[-1]
    shown = stack.shell(sweep)
    for lost in of_both - {ours}:
        assert lost in shown
        stack.shell(f"{sweep.removesuffix(' --unowned')} {lost} --yes")
    assert len(of_both) == 2
    assert machine.run(f"stat -c %i /var/lib/{UNIT}/outbox.db") == outbox
    ends_right(stack, machine, callfire)


def refused_until_forgotten(stack: Stack, machine: Machine) -> None:
    """Type what docs/server.md says; the error says it, too."""
    forget, up, _ = commands(LOST)
    assert f"its service {UNIT} belongs to another stack" in stack.check(1)
    said = stack.pulumi(*shlex.split(up)[1:], "--yes", "--skip-preview", status=1)
    assert f"its service {UNIT} belongs to another stack" in said
    assert f"`{forget}`" in said
    assert machine.run(f"systemctl is-active {UNIT}.service") == "active"
    machine.run(forget)
    stack.up()
    stack.check(0)
