"""Measure the server hosting on throw-away Debian machines: how long it takes, and what restarts and upgrades cost.

Run as root from the project's root, with the Pulumi CLI on PATH: `python -m bench.server`. Writes `bench/server.md`.
"""

import contextlib
import io
import os
import platform
import shutil
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from hosting.server import ServerForwarderProvider
from sandbox.server import Sandbox
from tests.forwarder_kit import MailSink
from tests.journey.checkout import Checkout
from tests.pulumi_kit import backend
from tests.server import machine as machines
from tests.server.authority import pebble
from tests.server.kit import Load, Properties, broken_release, declared, sink_at
from tests.server.machine import Machine
from tests.server.stack import PASSWORD, CallFire, Stack, settings
from tests.server.test_tls import DOMAIN, SELF_SIGNED

REPORT = Path(__file__).with_name("server.md")
REPETITIONS = 5
POSTS = 20_000  # in all, over the set-ups
SERVICE = "callfire-mail-production.service"

provider = ServerForwarderProvider()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long `work` takes; what it prints is dropped."""
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.monotonic() - started


def shown(times: list[float], limit: float) -> str:
    """Return a row's figures: median, range, and what is wanted."""
    return f"{statistics.median(times):.2f} s ({min(times):.2f}-{max(times):.2f}, n={len(times)}) | ≤ {limit:g} s"


@contextmanager
def another(folder: Path) -> Iterator[None]:
    """Another release for the time of a block."""

    def change(sources: Path) -> None:
        (sources / "__init__.py").write_text(f'"""Another release, {time.time_ns()}."""\n')

    with pytest.MonkeyPatch.context() as patch, broken_release(patch, folder, change):
        yield


def measure_times(machine: Machine, sink: MailSink, folder: Path) -> list[str]:
    """Fresh installation, upgrade, read, an update that has nothing to do."""
    props = declared(machine, sink=sink)
    outputs: Properties = {}
    fresh, upgrades, reads, idle = [], [], [], []
    for _ in range(REPETITIONS):
        fresh.append(seconds(lambda: outputs.update(provider.create(props).outs or {})))
        with another(folder):
            newer = declared(machine, sink=sink)
            upgrades.append(seconds(partial(provider.update, "id", outputs, newer)))
        provider.update("id", newer, props)
        reads += [seconds(lambda: provider.read("id", dict(outputs))) for _ in range(3)]
        idle.append(seconds(lambda: provider.update("id", outputs, props)))
        score = (
            machine.run(f"systemd-analyze security {SERVICE} --no-pager").splitlines()[-1].partition(":")[2].split()[0]
        )
        resident = machine.run(f"grep VmRSS /proc/$(systemctl show -P MainPID {SERVICE})/status").split()[1]
        provider.delete("id", outputs)
    return [
        f"| fresh installation, wheels sent along | {shown(fresh, 10)} |",
        f"| upgrade | {shown(upgrades, 6)} |",
        f"| read (refresh) | {shown(reads, 0.5)} |",
        f"| update with nothing to do | {shown(idle, 3)} |",
        f"| `systemd-analyze security` | {score} | ≤ 1.5 |",
        f"| memory of the service after start | {int(resident) / 1024:.0f} MB | |",
    ]


def measure_idle_up(machine: Machine, folder: Path) -> str:
    """A `pulumi up` with nothing to do."""
    home = folder / "pulumi"
    home.mkdir()
    environment = backend(home, Path(shutil.which("pulumi") or "pulumi").parent)
    with Sandbox(host=machine.gateway) as sandbox:
        (folder / "checkout").mkdir()
        stack = Stack(Checkout(folder / "checkout", [8700, 8725, 8710, 8711]), "production", environment)
        told = settings(machine, CallFire(sandbox))
        stack.start(told, {"callfire:login": "sandbox", "callfire:password": PASSWORD})
        stack.up()
        times = [seconds(lambda: stack.up("--expect-no-changes")) for _ in range(REPETITIONS)]
        stack.pulumi("destroy", "--yes", "--skip-preview")
    return f"| `pulumi up` with nothing to do | {shown(times, 3)} |"


def measure_losses(
    declare: Callable[[], Properties], load: Load, sink: MailSink, machine: Machine, folder: Path
) -> tuple[int, int]:
    """Restart, and upgrade every tenth time, until `POSTS` / 4 posts were answered; return how often each."""
    with contextlib.redirect_stdout(io.StringIO()):
        outputs = dict(provider.create(declare()).outs or {})
        restarts = upgrades = 0
        with load:
            while sum(load.answers.values()) < POSTS / 4:
                if restarts % 10 == 5:
                    with another(folder):
                        provider.update("id", outputs, declare())
                    upgrades += 1
                machine.run(f"systemctl restart {SERVICE}")
                restarts += 1
        load.check(sink)
        provider.delete("id", outputs)
    return restarts, upgrades


def measure_set_ups(machine: Machine, sink: MailSink, folder: Path) -> Iterator[str]:
    """Yield a row for each way to be reached."""
    machine.run(SELF_SIGNED)
    (folder / "own.pem").write_text(machine.run("cat /etc/ssl/texts.pem"))
    machine.call("hostnet", "apt-get", "update", "-qq")
    machine.install("caddy")
    paths = ["/etc/ssl/texts.pem", "/etc/ssl/texts.key"]
    with pebble(machine, folder) as (directory, root):
        machine.run("systemctl restart caddy")
        caddy = {"tls": "acme", "domain": DOMAIN, "acme_directory": directory, "listen": ""}
        files = {"tls": "files", "domain": DOMAIN, "certificate": paths, "listen": "443"}
        set_ups: list[tuple[str, dict[str, Any], int, Path | None]] = [
            ("plain HTTP", {}, 8710, None),
            ("plain HTTP, again", {}, 8710, None),
            ("TLS by the forwarder", files, 443, folder / "own.pem"),
            ("behind Caddy", caddy, 443, root),
        ]
        for number, (name, changes, port, trusted) in enumerate(set_ups, start=1):
            tls = ssl.create_default_context(cafile=str(trusted)) if trusted else None
            there = repeat((machine.ip, port))
            load = Load(there.__next__, first=number * 10**8, tls=tls, domain=DOMAIN)
            restarts, upgrades = measure_losses(
                partial(declared, machine, sink=sink, **changes), load, sink, machine, folder
            )
            posts = sum(load.answers.values())
            yield f"| {name} | {restarts} | {upgrades} | {posts:,} | {posts - load.answers['200']} |"


def main() -> None:
    """Measure everything and write the report."""
    reason = machines.missing()
    if reason:
        sys.exit(f"bench.server: {reason}")
    machines.sweep()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        machine = Machine("bench")
        try:
            with sink_at(machine) as sink:
                rows = [*measure_times(machine, sink, folder), measure_idle_up(machine, folder)]
                losses = list(measure_set_ups(machine, sink, folder))
        finally:
            machine.remove()
    REPORT.write_text(
        "# Figures of the server hosting\n"
        "Measured by `python -m bench.server` against a throw-away Debian 12 machine;"
        f" Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f}."
        " Times are medians (range).\n\n"
        "| what | measured | wanted |\n|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "Restarts and upgrades while four threads post, two on new connections and two on connections that are kept"
        " alive. Each text was answered and mailed once.\n\n"
        "| set-up | restarts | upgrades | posts | not answered 200 |\n|---|---|---|---|---|\n"
        + "\n".join(losses)
        + "\n"
    )
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
