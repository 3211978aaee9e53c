"""Measure the provider: SOAP calls, wall time against a provider that does nothing, 10,000 subscriptions, crashes.

Run from the project's root, with the Pulumi CLI on PATH: `python -m bench.provider [PART …]`. Writes
`bench/provider.md` and keeps the raw figures of each part beside it, so that one part can be measured again alone.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from provider.redaction import Secret
from provider.remote import new_request_id
from provider.settings import Settings
from provider.soap import CallFire
from sandbox import Sandbox
from tests.crashes import COUNT, Crashes, End, Moment
from tests.pulumi_kit import PROGRAM, ROOT, Project, credentials
from tests.trouble import TroubledCallFire

HERE = Path(__file__).resolve().parent
RAW = HERE / "provider.json"
REPORT = HERE / "provider.md"

REPETITIONS = 5
SIZE = 500
KILLS = 50
KILLED = 40
ACCOUNT = 10_000
LATENCY = 0.1
NO_CHECKPOINTS = {"PULUMI_EXPERIMENTAL": "true", "PULUMI_SKIP_CHECKPOINTS": "true"}
"""Lets the engine write the state once at the end, where the state is not what is measured."""

WRITES = 100

NOTHING = '''\
"""A dynamic provider that does nothing, or takes SLEEP seconds for it and notes in SLEPT when."""

import os
import time

from pulumi import dynamic


class NothingProvider(dynamic.ResourceProvider):
    serialize_as_secret_always = False

    def create(self, props):
        sleep("CreateSubscription")
        return dynamic.CreateResult("1", dict(props))

    def update(self, _id, _olds, news):
        return dynamic.UpdateResult(dict(news))

    def delete(self, _id, _props):
        sleep("DeleteSubscription")


def sleep(operation):
    if "SLEEP" in os.environ:
        began = time.monotonic()
        time.sleep(float(os.environ["SLEEP"]))
        with open(os.environ["SLEPT"], "a") as file:
            print(operation, began, time.monotonic(), file=file)


class Subscription(dynamic.Resource, module="callfire", name="Subscription"):
    def __init__(self, name, opts=None, **arguments):
        props = {
            "endpoint": pulumi.Output.secret(arguments["endpoint"]),
            "notification_format": "XML",
            "trigger_event": "INBOUND_TEXT_FINISHED",
            "enabled": True,
            "non_strict_ssl": None,
            "filter": None,
            "adopt": True,
            "__name": name,
        }
        secret = pulumi.ResourceOptions(additional_secret_outputs=["endpoint"])
        super().__init__(NothingProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


import pulumi
'''

Figures = dict[str, Any]


def cli() -> Path:
    """The folder of the Pulumi CLI."""
    found = shutil.which("pulumi")
    assert found, "put the Pulumi CLI on PATH"
    return Path(found).parent


def fill(sandbox: Sandbox, count: int) -> list[str]:
    """Create subscriptions of some other application over SOAP."""
    api = CallFire(Settings(sandbox.login, Secret(sandbox.password), sandbox.url))

    def create(number: int) -> str:
        properties = {
            "endpoint": f"https://crm.example.com/hook/{number:032d}",
            "notification_format": "XML",
            "trigger_event": "INBOUND_TEXT_FINISHED",
            "enabled": True,
            "filter": {"to_number": f"1818{number:07d}"},
        }
        return api.create(properties, new_request_id())

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(create, range(count)))


def calls(folder: Path) -> Figures:
    """How many SOAP calls each command makes, by the size of the program and of the account."""
    rows = []
    with Sandbox() as sandbox:
        for existing, count in ((0, 20), (999, 20), (1000, 20), (2500, 20), (0, 1200)):
            sandbox.reset()
            fill(sandbox, existing)
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                project = Project(Path(inner), cli(), credentials(sandbox) | NO_CHECKPOINTS | {"COUNT": str(count)})
                row: Figures = {"existing": existing, "count": count}
                row["preview"] = _calls(sandbox, partial(project.pulumi, "preview"))
                row["up"] = _calls(sandbox, project.up)
                row["no-op up"] = _calls(sandbox, project.up)
                row["refresh"] = _calls(sandbox, partial(project.pulumi, "refresh", "--yes", "--skip-preview"))
                rows.append(row)
                print(row, flush=True)
    return {"rows": rows}


def _calls(sandbox: Sandbox, work: Callable[[], object]) -> int:
    before = sum(sandbox.requests().values())
    work()
    return sum(sandbox.requests().values()) - before


def made(folder: Path) -> Path:
    """A new folder."""
    folder.mkdir()
    return folder


def nothing(folder: Path, environ: dict[str, str]) -> Project:
    """The same program on a dynamic provider that does nothing."""
    project = Project(made(folder / "nothing"), cli(), environ)
    (project.folder / "nothing.py").write_text(NOTHING)
    project.write(PROGRAM.replace("from provider", "from nothing"))
    project.environ["PYTHONPATH"] += f"{os.pathsep}{project.folder}"
    return project


def wall(folder: Path) -> Figures:
    """Wall time of each command with 500 subscriptions, against the same program on a provider that does nothing."""
    with Sandbox() as sandbox:
        projects = {
            "nothing": nothing(folder, credentials(sandbox) | {"COUNT": str(SIZE)}),
            "callfire": Project(made(folder / "callfire"), cli(), credentials(sandbox) | {"COUNT": str(SIZE)}),
        }
        times: dict[str, dict[str, list[float]]] = {kind: {} for kind in projects}
        for repetition in range(REPETITIONS):
            for kind, project in projects.items():
                for name, work in _commands(project):
                    started = time.monotonic()
                    work()
                    times[kind].setdefault(name, []).append(time.monotonic() - started)
            print(
                "wall",
                repetition + 1,
                {k: {n: round(t[-1], 2) for n, t in v.items()} for k, v in times.items()},
                flush=True,
            )
    return times


def _commands(project: Project) -> list[tuple[str, Callable[[], object]]]:
    return [
        ("up", project.up),
        ("no-op up", project.up),
        ("refresh", lambda: project.pulumi("refresh", "--yes", "--skip-preview")),
        ("destroy", lambda: project.pulumi("destroy", "--yes", "--skip-preview")),
    ]


def scale(folder: Path) -> Figures:
    """Time and memory with 10,000 subscriptions on the account."""
    with Sandbox() as sandbox:
        started = time.monotonic()
        fill(sandbox, ACCOUNT)
        figures: Figures = {"fill": {"seconds": time.monotonic() - started}}
        python = [sys.executable, "-m", "provider"]
        read = [sys.executable, "-c", _READ]
        where = {**os.environ, **credentials(sandbox), "PYTHONPATH": str(ROOT), "PATH": "/nonexistent"}
        for name, command in (
            ("list", [*python, "list", "--json"]),
            ("import file", [*python, "import", "--json", "--output", str(folder / "imported")]),
            ("refresh's reads", read),
        ):
            figures[name] = _measured(command, where, folder)
            print(name, figures[name], flush=True)
        written = json.loads((folder / "imported" / "import.json").read_text())
        assert len(written["resources"]) == ACCOUNT
    return figures


_READ = """
import os
from provider.account import account_of
from provider.settings import read_settings
account = account_of(read_settings(lambda _: None))
ids = [subscription.id for subscription in account.all()]
assert len(ids) == 10000 and all(account.find(id_) for id_ in ids)
"""


def _measured(command: list[str], where: dict[str, str], folder: Path) -> Figures:
    started = time.monotonic()
    process = subprocess.Popen(command, env=where, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S603 - commands of this file
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {"seconds": time.monotonic() - started, "megabytes": usage.ru_maxrss / 1024}


def latency(folder: Path) -> Figures:
    """How busy the provider's four threads are when CallFire takes 100 ms for each call, and one that only sleeps."""
    slept = folder / "slept"
    rows: list[Figures] = []
    with Sandbox() as sandbox, TroubledCallFire(sandbox) as callfire:
        callfire.latency = LATENCY
        environ = {"COUNT": str(WRITES), "SLEEP": str(LATENCY), "SLEPT": str(slept)}
        ours = credentials(sandbox, callfire.url) | environ
        projects = {
            "sleeps": nothing(folder, environ),
            "callfire": Project(made(folder / "callfire"), cli(), ours),
            "callfire, no checkpoints": Project(made(folder / "unchecked"), cli(), ours | NO_CHECKPOINTS),
        }
        for _ in range(REPETITIONS):
            for kind, project in projects.items():
                for operation, work in (
                    ("CreateSubscription", project.up),
                    ("DeleteSubscription", lambda p=project: p.pulumi("destroy", "--yes", "--skip-preview")),
                ):
                    callfire.log.clear()
                    slept.write_text("")
                    work()
                    noted = _read_slept(slept) if kind == "sleeps" else callfire.log
                    spans = [(came, answered) for name, came, answered in noted if name == operation]
                    assert len(spans) == WRITES
                    took = max(end for _, end in spans) - min(start for start, _ in spans)
                    rows.append({"kind": kind, "operation": operation, "share": WRITES * LATENCY / 4 / took})
                    print(rows[-1], flush=True)
    return {"count": WRITES, "shares": rows}


def _read_slept(file: Path) -> list[tuple[str, float, float]]:
    lines = (line.split() for line in file.read_text().splitlines())
    return [(operation, float(began), float(ended)) for operation, began, ended in lines]


def crashes(folder: Path) -> Figures:
    """Interrupt, repair, compare; and 50 kills at random moments."""
    rows = []
    with Sandbox() as sandbox, TroubledCallFire(sandbox) as callfire:
        (folder / "crashes").mkdir()
        peer = Crashes(Project(folder / "crashes", cli(), {}), sandbox, callfire)
        for end in End:
            for operation in ("create", "update", "delete"):
                for moment in Moment:
                    result = peer.interrupt(operation, moment, end)
                    rows.append(
                        {
                            "end": end.value,
                            "operation": operation,
                            "moment": moment.value,
                            "orphans": result.orphans,
                            "missing": result.missing,
                            "mended": result.checkpoint_mended,
                        }
                    )
                    print(rows[-1], flush=True)
    return {"count": COUNT, "rows": rows}


def kills(folder: Path) -> Figures:
    """Kill an `up` of 40 subscriptions 50 times at random moments."""
    rows = []
    rng = random.Random(5)
    with Sandbox() as sandbox, TroubledCallFire(sandbox) as callfire:
        peer = Crashes(Project(folder, cli(), {}), sandbox, callfire)
        callfire.latency = 0.15  # an `up` of 40 would else be over too soon to be hit while it creates
        started = time.monotonic()
        peer.project.up(COUNT=str(KILLED))
        longest = (time.monotonic() - started) * 1.1
        for number in range(KILLS):
            callfire.log.clear()
            before = callfire.counts["CreateSubscription"]
            watch = _Watch(callfire, before)
            result = peer.kill_at_random(KILLED, longest, rng, watch.note)
            rows.append(
                {
                    "made_before_the_kill": watch.made,
                    "orphans": result.orphans,
                    "missing": result.missing,
                    "mended": result.checkpoint_mended,
                }
            )
            print(number + 1, rows[-1], flush=True)
    return {"size": KILLED, "rows": rows}


class _Watch:
    """Notes how many creates had reached CallFire when the kill came."""

    def __init__(self, callfire: TroubledCallFire, before: int) -> None:
        self._callfire = callfire
        self._before = before
        self.made = 0

    def note(self) -> None:
        self.made = self._callfire.counts["CreateSubscription"] - self._before


PARTS: dict[str, Callable[[Path], Figures]] = {
    "calls": calls,
    "wall": wall,
    "scale": scale,
    "latency": latency,
    "crashes": crashes,
    "kills": kills,
}


def report(raw: dict[str, Figures]) -> str:
    """The report, from the raw figures of all parts that were measured."""
    parts = {
        "calls": _report_calls,
        "wall": _report_wall,
        "scale": _report_scale,
        "latency": _report_latency,
        "crashes": _report_crashes,
        "kills": _report_kills,
    }
    head = "# The provider, measured\n\nWritten by `python -m bench.provider` against the sandbox, with the real CLI.\n"
    return "\n".join([head, *(write(raw[name]) for name, write in parts.items() if name in raw)])


def _report_calls(figures: Figures) -> str:
    lines = [
        "## SOAP calls\n",
        (
            "| already on the account | declared | preview | `up` | target: N + ⌈(existing + 1)/1000⌉ | no-op `up` "
            "| refresh | target: ⌈all/1000⌉ + 1 |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        existing, count = row["existing"], row["count"]
        target = count + math.ceil((existing + 1) / 1000)
        listing = math.ceil((existing + count) / 1000) + 1
        lines.append(
            f"| {existing} | {count} | {row['preview']} | {row['up']} | {target} | {row['no-op up']} "
            f"| {row['refresh']} | {listing} |"
        )
    return "\n".join(lines) + "\n"


def _report_wall(figures: Figures) -> str:
    lines = [
        f"## Wall time with {SIZE} subscriptions\n",
        (
            f"Seconds, median of {len(figures['nothing']['up'])} repetitions in one run, against the same program on a "
            "dynamic provider that does nothing.\n"
        ),
        "| command | does nothing | this provider | ratio | target |",
        "|---|---|---|---|---|",
    ]
    for name in figures["nothing"]:
        base, ours = (figures[kind][name] for kind in ("nothing", "callfire"))
        ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, base, strict=True))
        target = "≤ 1.1" if name == "no-op up" else "≤ 1.3"
        lines.append(
            f"| {name} | {statistics.median(base):.2f} | {statistics.median(ours):.2f} | {ratio:.2f} | {target} |"
        )
    return "\n".join(lines) + "\n"


def _report_scale(figures: Figures) -> str:
    lines = [
        f"## {ACCOUNT:,} subscriptions on the account\n",
        "| what | seconds | peak memory (MB), target < 300 |",
        "|---|---|---|",
    ]
    for name, figure in figures.items():
        if "megabytes" in figure:
            lines.append(f"| {name} | {figure['seconds']:.1f} | {figure['megabytes']:.0f} |")
    return "\n".join(lines) + "\n"


def _report_latency(figures: Figures) -> str:
    lines = [
        "## CallFire takes 100 ms for each call\n",
        (
            f"Share of the four provider threads' time that {figures['count']} writes keep busy, median of "
            f"{REPETITIONS}. A dynamic provider that only sleeps 100 ms shows what the engine leaves, which writes the "
            "whole state before and after each step. Target: ≥ 0.9.\n"
        ),
        "| operation | this provider | only sleeps | this provider, the state written once at the end |",
        "|---|---|---|---|",
    ]
    for operation in ("CreateSubscription", "DeleteSubscription"):
        shares = [
            statistics.median(
                row["share"] for row in figures["shares"] if (row["operation"], row["kind"]) == (operation, kind)
            )
            for kind in ("callfire", "sleeps", "callfire, no checkpoints")
        ]
        lines.append(f"| {operation} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return "\n".join(lines) + "\n"


def _report_crashes(figures: Figures) -> str:
    lines = [
        "## Interrupted at a given moment\n",
        f"`up` of {figures['count']} subscriptions, interrupted; then `pulumi cancel` and `pulumi up`.\n",
        "| how | operation | moment | orphans or duplicates | missing |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['end']} | {row['operation']} | {row['moment']} | {row['orphans']} | {row['missing']} |"
        for row in figures["rows"]
    ]
    return "\n".join(lines) + "\n"


def _report_kills(figures: Figures) -> str:
    rows = figures["rows"]
    made = [row["made_before_the_kill"] for row in rows]
    size = figures["size"]
    mended, orphans, missing = (sum(row[name] for row in rows) for name in ("mended", "orphans", "missing"))
    return f"""## Killed at random

`kill -9` of the CLI's process group at a random moment of an `up` of {size} subscriptions, then `pulumi cancel` and
`pulumi up`.

| kills | while creating (some made, not all) | left an empty checkpoint | orphans or duplicates | missing |
|---|---|---|---|---|
| {len(rows)} | {sum(0 < m < size for m in made)} | {mended} | {orphans} | {missing} |
"""


def main() -> None:
    """Measure the parts that are asked for, or all, and write the report."""
    parser = argparse.ArgumentParser(description="Measure the provider.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    asked = parser.parse_args().parts or list(PARTS)
    raw: dict[str, Figures] = json.loads(RAW.read_text()) if RAW.exists() else {}
    for name in asked:
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            raw[name] = PARTS[name](Path(folder))
        RAW.write_text(json.dumps(raw, indent=1))
        REPORT.write_text(report(raw))
    print(REPORT.read_text())


if __name__ == "__main__":
    main()
