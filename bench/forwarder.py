"""How fast the forwarder is, as ratios to a yardstick in the same run. Run by `make bench`; writes bench/forwarder.md.

The yardstick is the same server (uvicorn with httptools and uvloop) with a Starlette route that parses a postback and
answers. Load and mail server are C programs (bench/native), which leave as much of the machine as possible to what is
measured. Every figure is the median of several repetitions.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from forwarder.outbox import Delivery, Posting, Result, Routed, Turn
from forwarder.schema import State
from tests.forwarder_kit import TOKEN, PostgreSQL, environment, inbound, open_outbox

REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "5"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))
ROWS = int(os.environ.get("BENCH_ROWS", "1000000"))
REPORT = Path(__file__).with_name("forwarder.md")
NATIVE = Path(__file__).with_name("native")
BODY = (
    '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><n:TextNotification xmlns="http://api.callfire.com/data" '
    'xmlns:n="http://api.callfire.com/notification/xsd"><n:SubscriptionId>19001</n:SubscriptionId>'
    '<Text id="1000000000000"><FromNumber>15550000000</FromNumber><ToNumber>18186469991</ToNumber>'
    "<State>FINISHED</State><ContactId>1418291001</ContactId><Inbound>true</Inbound>"
    "<Created>2012-09-24T05:02:35Z</Created><Modified>2012-09-24T05:02:35Z</Modified>"
    "<FinalResult>RECEIVED</FinalResult><Message>Hello, World!</Message>"
    '<TextRecord id="3526268001"><Result>RECEIVED</Result><FinishTime>2012-09-24T05:02:35Z</FinishTime>'
    "<BilledAmount>0.03</BilledAmount><Message>Hello, World!</Message></TextRecord></Text></n:TextNotification>"
).encode("ascii")
YARDSTICK = """
import uvicorn
from lxml import etree
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
DATA = "{http://api.callfire.com/data}"
async def postback(request):
    root = etree.fromstring(await request.body())
    text = root.find(DATA + "Text")
    fields = {child.tag: child.text for child in text}
    return JSONResponse({"status": "ok", "id": text.get("id"), "from": fields[DATA + "FromNumber"]})
app = Starlette(routes=[Route("/postback/{token}", postback, methods=["POST"])])
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)
Server(uvicorn.Config(
    app, port=0, loop="uvloop", http="httptools", log_level="error", access_log=False, lifespan="off"
)).run()
"""


@dataclass(frozen=True)
class Programs:
    """The C programs, built."""

    load: Path
    sink: Path
    flushes: Path


@contextlib.contextmanager
def programs() -> Iterator[Programs]:
    """Build the C programs in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        built = Programs(*(Path(folder) / name for name in ("load", "sink", "flushes.so")))
        for target in (built.load, built.sink):
            subprocess.run(["cc", "-O2", "-o", target, NATIVE / f"{target.name}.c"], check=True)
        shared: list[str | Path] = ["cc", "-O2", "-shared", "-fPIC", "-o", built.flushes, NATIVE / "flushes.c", "-ldl"]
        subprocess.run(shared, check=True)
        yield built


@dataclass(frozen=True)
class Loaded:
    """What came of a load."""

    started: float
    posts: int
    rate: float
    """Accepted posts a second."""
    p50: float
    """Microseconds, as the next."""
    p99: float


_next_id = 1


def load(built: Programs, port: int, connections: int, seconds: float = SECONDS, most: int = 1 << 60) -> Loaded:
    """Post for so many seconds over so many connections, each text once."""
    global _next_id  # noqa: PLW0603 - ids are never used twice
    path = f"/postback/{TOKEN}"
    arguments = [str(port), path, str(connections), str(seconds), str(_next_id), str(most)]
    done = subprocess.run([built.load, *arguments], input=BODY, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    assert found["ok"] == found["answered"] > 0, found
    _next_id += found["ok"]
    rate = found["ok"] / (found["ended"] - found["started"])
    return Loaded(found["started"], found["ok"], rate, found["p50"], found["p99"])


@contextlib.contextmanager
def yardstick() -> Iterator[int]:
    """The yardstick, and its port."""
    with subprocess.Popen([sys.executable, "-c", YARDSTICK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


class Sink:
    """The mail server in C."""

    def __init__(self, built: Programs) -> None:
        self.process = subprocess.Popen([built.sink], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._read())

    def _read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def mails(self) -> tuple[int, float]:
        """How many mails it has, and when the last came."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = json.loads(self._read())
        return found["mails"], found["last"]

    def wait_for(self, count: int, seconds: float = 300.0) -> float:
        """When mail number `count` came."""
        deadline = time.monotonic() + seconds
        while True:
            mails, last = self.mails()
            if mails >= count:
                return last
            assert time.monotonic() < deadline, f"{mails} of {count} mails"
            time.sleep(0.02)


class Forwarder:
    """A forwarder under measurement, whose flushes are counted."""

    def __init__(self, built: Programs, folder: Path, smtp_port: int, *, delay_us: int = 0, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._count, log = folder / "flushes", folder / "log"
        self._count.write_bytes(bytes(8))
        variables = environment(folder / "state", smtp_port, **settings) | {
            "LD_PRELOAD": str(built.flushes),
            "FLUSH_COUNT": str(self._count),
            "FLUSH_DELAY_US": str(delay_us),
        }
        self.began = time.monotonic()
        with log.open("w") as stderr:
            self.process = psutil.Popen([sys.executable, "-m", "forwarder"], env=os.environ | variables, stderr=stderr)
        while not (ready := re.search(r"public=http://\S+:(\d+)", log.read_text())):
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.005)
        self.port = int(ready[1])
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz") as answer:
            assert answer.status == 200
        self.healthy_after = time.monotonic() - self.began

    def flushes(self) -> int:
        """How often it has flushed to the device."""
        return int.from_bytes(self._count.read_bytes(), sys.byteorder)

    def memory(self) -> float:
        """Most memory it ever had, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1000

    def stop(self) -> None:
        """Let it drain."""
        self.process.terminate()
        assert self.process.wait(60) == 0


@contextlib.contextmanager
def forwarder(built: Programs, **options: Any) -> Iterator[tuple[Forwarder, Sink]]:
    """A forwarder with an outbox and a mail server of its own, warm."""
    sink = Sink(built)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        running = Forwarder(built, Path(folder), sink.port, **options)
        try:
            warm = load(built, running.port, 8, 1.0)
            sink.wait_for(warm.posts)
            yield running, sink
        finally:
            running.stop()
            sink.process.kill()
            sink.process.wait()


@dataclass(frozen=True)
class Measured:
    """One load at a forwarder, to its last mail."""

    accepted: Loaded
    mails_a_second: float
    flushes: float
    """For each post, until the last was accepted."""


def measure(built: Programs, connections: int, **options: Any) -> Measured:
    """A new forwarder under one load."""
    with forwarder(built, **options) as (running, sink):
        before, flushed = sink.mails()[0], running.flushes()
        accepted = load(built, running.port, connections)
        flushed = running.flushes() - flushed
        last = sink.wait_for(before + accepted.posts)
        return Measured(accepted, accepted.posts / (last - accepted.started), flushed / accepted.posts)


def seconds_of_fsync(folder: Path) -> float:
    """How long the disk takes to make a page durable: the median."""
    with (folder / "fsync").open("wb", buffering=0) as file:
        found = []
        for _ in range(200):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def fill(url: str, rows: int, queued: int) -> None:
    """An outbox with so many texts, the last of which wait."""
    outbox = open_outbox(url)
    now, batch = time.time(), 5000
    for first in range(0, rows, batch):
        some = [inbound(10**13 + n, from_number=f"1555{n % 100_000:07}", raw=BODY) for n in range(first, first + batch)]
        outbox.turn(Turn([Posting(now, tuple(Routed(text, "default", ("office@example.com",)) for text in some))]))
        if first < rows - queued:
            deliveries = [Delivery(text, "default", "office@example.com", 0, now, now) for text in some]
            outbox.turn(Turn(results=[Result(each, State.SENT, 1, now, "250 OK") for each in deliveries]))
    outbox.close()


@dataclass(frozen=True)
class Row:
    """One row of the report."""

    measure: str
    target: str
    found: float
    reached: bool
    detail: str


def ratio(built: Programs, connections: int) -> tuple[list[float], list[float], list[Measured], list[Loaded]]:
    """Accepted and mailed at so many connections, by the yardstick, in pairs."""
    accepted, mailed, measured, yards = [], [], [], []
    for _ in range(REPETITIONS):
        with yardstick() as port:
            load(built, port, connections, 1.0)
            yard = load(built, port, connections)
        one = measure(built, connections)
        accepted.append(one.accepted.rate / yard.rate)
        mailed.append(one.mails_a_second / yard.rate)
        measured.append(one)
        yards.append(yard)
    return accepted, mailed, measured, yards


def throughput(built: Programs, folder: Path) -> list[Row]:
    """What depends on the number of connections; the disk is measured next to each, in `folder`."""
    rows = []
    for connections in (1, 8, 64, 256):
        fsync = seconds_of_fsync(folder)
        accepted, mailed, measured, yards = ratio(built, connections)
        rate = statistics.median(one.accepted.rate for one in measured)
        yard = statistics.median(one.rate for one in yards)
        mails = statistics.median(one.mails_a_second for one in measured)
        p99 = statistics.median(one.accepted.p99 for one in measured) / 1e6
        flushes = statistics.median(one.flushes for one in measured)
        main = connections == 64
        found = statistics.median(accepted)
        rows.append(
            Row(
                f"accepted posts/s at {connections} connections ÷ yardstick", "≥ 0.60" if main else "", found,
                not main or found >= 0.60, f"{rate:,.0f}/s ÷ {yard:,.0f}/s; p99 {p99 * 1000:.1f} ms",
            )
        )  # fmt: skip
        if main:
            found = statistics.median(mailed)
            rows.append(Row("mails/s end to end ÷ yardstick", "≥ 0.40", found, found >= 0.40, f"{mails:,.0f}/s"))
            rows.append(Row("device flushes per post at 64 connections", "≤ 0.05", flushes, flushes <= 0.05, ""))
        if connections == 8:
            found = p99 / fsync
            detail = f"{p99 * 1000:.1f} ms ÷ {fsync * 1000:.2f} ms"
            rows.append(Row("p99 of an accepted post at 8 connections ÷ one fsync", "≤ 60", found, found <= 60, detail))
        if connections == 1:
            found = rate * fsync
            detail = f"{rate:,.0f}/s ÷ {1 / fsync:,.0f}/s"
            rows.append(Row("accepted posts/s on one connection ÷ fsyncs/s", "≥ 0.25", found, found >= 0.25, detail))
    return rows


def slow_disk(built: Programs) -> Row:
    """Every flush 5 ms slower."""
    pairs = [(measure(built, 64), measure(built, 64, delay_us=5000)) for _ in range(REPETITIONS)]
    found = statistics.median(slow.accepted.rate / normal.accepted.rate for normal, slow in pairs)
    rate = statistics.median(slow.accepted.rate for _, slow in pairs)
    return Row("accepted rate with fsync made 5 ms slower ÷ normal", "≥ 0.70", found, found >= 0.70, f"{rate:,.0f}/s")


def on_postgresql(built: Programs) -> Row:
    """The same load on PostgreSQL."""
    server = PostgreSQL()
    try:
        pairs = [(measure(built, 64), measure(built, 64, database_url=server.database())) for _ in range(REPETITIONS)]
    finally:
        server.close()
    found = statistics.median(shared.accepted.rate / alone.accepted.rate for alone, shared in pairs)
    rate = statistics.median(shared.accepted.rate for _, shared in pairs)
    mails = statistics.median(shared.mails_a_second for _, shared in pairs)
    detail = f"{rate:,.0f} posts/s, {mails:,.0f} mails/s"
    return Row("PostgreSQL, one process ÷ SQLite", "≥ 0.6", found, found >= 0.6, detail)


def large(built: Programs) -> list[Row]:
    """An outbox of a million texts, of which a tenth waits."""
    queued = ROWS // 10
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        (folder / "state").mkdir()
        fill(f"sqlite:///{folder / 'state' / 'outbox.db'}", ROWS, queued)
        size = (folder / "state" / "outbox.db").stat().st_size / 1e6
        sink = Sink(built)
        starts = []
        try:
            for _ in range(REPETITIONS):
                # nobody takes mail yet, so that as much waits at each start
                running = Forwarder(built, folder, 1)
                starts.append(running.healthy_after)
                running.stop()
            running = Forwarder(built, folder, sink.port)
            accepted = load(built, running.port, 64, 600, queued)
            sink.wait_for(queued + accepted.posts, 600)
            memory = running.memory()
            running.stop()
        finally:
            sink.process.kill()
            sink.process.wait()
    start = statistics.median(starts)
    detail = (
        f"{ROWS:,} texts, {queued:,} of them queued, {accepted.posts:,} more posted, all mailed; {size:,.0f} MB on disk"
    )
    return [
        Row(f"memory with {ROWS:,} texts, MB at most", "≤ 200", memory, memory <= 200, detail),
        Row(f"start with {ROWS:,} rows until healthy, s", "≤ 2", start, start <= 2, ""),
    ]


def write(rows: list[Row], fsync: float) -> None:
    """The report."""
    version = sys.version.split(maxsplit=1)[0]
    machine = f"{os.cpu_count()} processors, Python {version}; one fsync takes {fsync * 1000:.2f} ms."
    lines = [
        "# How fast the forwarder is",
        "",
        "Written by `make bench` (`bench/forwarder.py`). Load, forwarder and mail server share one machine;",
        f"medians of {REPETITIONS} repetitions of {SECONDS:g} s. {machine}",
        "",
        "| measure | target | found | | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = "" if not row.target else "reached" if row.reached else "**not reached**"
        lines.append(f"| {row.measure} | {row.target} | {row.found:.3g} | {verdict} | {row.detail} |")
    REPORT.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    """Every row of the table, then the report."""
    if not shutil.which("cc"):
        sys.exit("bench/forwarder.py: no C compiler (cc) for the load; Debian: gcc libc6-dev")
    with programs() as built, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        fsync = seconds_of_fsync(Path(folder))
        rows = throughput(built, Path(folder))
        rows.append(slow_disk(built))
        rows.append(on_postgresql(built))
        rows += large(built)
        write(rows, fsync)


if __name__ == "__main__":
    main()
