"""Servers to install on. Without root, namespaces or the programs they need, these tests are skipped, and say why."""

from collections.abc import Callable, Iterator

import pytest

from sandbox.server import Sandbox
from tests.forwarder_kit import MailSink
from tests.server import machine as machines
from tests.server.kit import sink_at
from tests.server.machine import Machine
from tests.server.stack import CallFire

Servers = Callable[..., Machine]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what can't run here; and give a server the time that it needs."""
    reason = machines.missing()
    for item in items:
        if "/server/" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(600))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """A function that boots a server with this label; all are gone after the module."""
    machines.sweep()
    made: list[Machine] = []

    def boot(label: str, suite: str = "bookworm") -> Machine:
        reason = machines.no_tree(suite)
        if reason:
            pytest.skip(reason)
        made.append(Machine(label, suite))
        return made[-1]

    try:
        yield boot
    finally:
        for server in made:
            server.remove()


@pytest.fixture(scope="module")
def machine(servers: Servers) -> Machine:
    """A server with nothing on it."""
    return servers("a")


@pytest.fixture(scope="module")
def sink(machine: Machine) -> Iterator[MailSink]:
    """A mail server on this side, as that server sees it."""
    with sink_at(machine) as sink:
        yield sink


@pytest.fixture(scope="module")
def callfire(machine: Machine) -> Iterator[CallFire]:
    """CallFire and a mailbox on this side, as that server sees it."""
    with Sandbox(host=machine.gateway) as sandbox:
        yield CallFire(sandbox)
