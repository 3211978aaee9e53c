"""Moving to another server as docs/server.md tells it, with the real CLI, while texts arrive."""

import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from sandbox.server import Sandbox
from tests.journey.checkout import Checkout
from tests.pulumi_kit import backend
from tests.server.conftest import Servers
from tests.server.handbook import commands
from tests.server.machine import Machine, eventually
from tests.server.postgresql import postgresql
from tests.server.stack import PASSWORD, CallFire, Stack, settings


@pytest.fixture(scope="module")
def machines(servers: Servers) -> tuple[Machine, Machine]:
    """The old server and the new one."""
    return servers("old"), servers("new")


@pytest.fixture
def callfire(machines: tuple[Machine, Machine]) -> Iterator[CallFire]:
    """CallFire and a mailbox, on this side as the servers see it."""
    with Sandbox(host=machines[0].gateway) as sandbox:
        yield CallFire(sandbox)


@pytest.fixture
def stack(tmp_path: Path, free_ports: Callable[[int], list[int]], pulumi_cli: Path) -> Stack:
    """A stack `production` that is selected and empty."""
    environment = backend(tmp_path, pulumi_cli)
    (tmp_path / "checkout").mkdir()
    return Stack(Checkout(tmp_path / "checkout", free_ports(4)), "production", environment)


@contextmanager
def flood(callfire: CallFire) -> Iterator[list[str]]:
    """Texts without a pause, for the time of a block: what they say."""
    stop = threading.Event()
    sent: list[str] = []

    def send() -> None:
        while not stop.wait(0.05):  # the mailbox keeps the last 5,000
            callfire.send_text(f"flood {len(sent)}")
            sent.append(f"flood {len(sent)}")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        eventually(lambda: len(sent) > 20, "texts arrive")
        yield sent
        goal = len(sent) + 20
        eventually(lambda: len(sent) > goal, "more texts arrive")
    finally:
        stop.set()
        thread.join()


def type_in(stack: Stack, line: str, here: dict[str, str]) -> str:
    """Type a command of the handbook, but for the names of this server, and return what it prints."""
    for name, value in here.items():
        line = line.replace(name, value)
    words = shlex.split(line)
    if words[1] in {"up", "destroy", "stack"}:
        words += ["--yes"] if words[1:3] != ["stack", "init"] else []
    done = subprocess.run(
        words,
        cwd=stack.checkout.folder,
        env=stack.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}: {done.stdout}"
    return done.stdout


@pytest.mark.parametrize("database", ["SQLite", "PostgreSQL"])
def test_moving_to_another_server_loses_nothing(
    stack: Stack, machines: tuple[Machine, Machine], callfire: CallFire, database: str
) -> None:
    """Every text of a flood is mailed: by one server or by both, and with one database once."""
    old, new = machines
    keys = ",".join([*old.known_hosts, *new.known_hosts])
    open_database = postgresql(old.gateway) if database == "PostgreSQL" else nullcontext("")
    with open_database as url:
        secrets = {"callfire:login": "sandbox", "callfire:password": PASSWORD}
        stack.start(settings(old, callfire, serverHostKeys=keys), secrets | ({"databaseUrl": url} if url else {}))
        stack.up()
        with flood(callfire) as sent:
            moving = commands("Moving to another server without loss")
            assert len(moving) == 7
            for line in moving:
                printed = type_in(stack, line, {"serverHosts texts2.example.com": f"serverHosts {new.ip}"})
                if "stacks check" in line:
                    assert f"also go to http://{old.ip}:8710/… (subscription" in printed
                if line.startswith("pulumi config set domain"):  # a throw-away server has no name
                    for name, value in {"publicUrl": f"http://{new.ip}:8710", "listenOn": new.ip}.items():
                        type_in(stack, f"pulumi config set {name} {value}", {})
        assert len(callfire.ask("/control/subscriptions")["subscriptions"]) == 1
        assert old.run("ls -d /opt/callfire-mail /etc/callfire-mail /var/lib/callfire-mail*", check=False) == ""
        assert not stack.file.exists()
        eventually(lambda: set(sent) <= set(callfire.mails()), "every text of the flood is mailed")
        moved = Stack(stack.checkout, "production-2", {**stack.environment})
        moved.up("--expect-no-changes")
        callfire.arrives("and on it goes")
        times = set(callfire.mails().values())
        assert times == ({1} if url else {1, 2})
        moved.pulumi("destroy", "--yes", "--skip-preview")
