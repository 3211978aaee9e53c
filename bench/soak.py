"""What is lost and what is repeated when everything breaks, again and again. Run by `make soak`; writes bench/soak.md.

A real forwarder between real load and a real mail server, on SQLite and on a real PostgreSQL. Every post that was
answered 200 is remembered, every mail that arrived too, with the moment; in the end each text must have arrived at each
of its recipients, and a mail that came twice must have been under way when something was killed or cut.
"""

import contextlib
import http.client
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa
from aiosmtpd.smtp import SMTP

from forwarder.outbox import connect
from tests.forwarder_kit import TOKEN, Mail, MailSink, PostgreSQL, RunningForwarder, cut, environment, text_postback

RECIPIENTS = ("a@example.com", "b@example.com", "c@example.com")
QUEUED = 1000
"""So many deliveries are waiting, at least, when something is killed."""
HANG_SECONDS = 75.0
"""How long a mail server hangs: longer than the minute for which the forwarder waits for a reply."""
CHURN = 100
"""So many posts are accepted and mails delivered before each kill."""
UNDER_WAY_SECONDS = 1.0
"""A mail that came so shortly before a kill may have been under way: its mark was not on disk."""
COLUMNS = (
    "what breaks", "database", "rounds", "texts answered 200", "posts answered 503", "mails", "lost", "repeated",
    "not under way", "dead", "waiting", "note",
)  # fmt: skip
REPORT = Path(__file__).with_name("soak.md")


class Load:
    """Threads that post texts one after the other and remember which were answered 200."""

    def __init__(self, url: Callable[[], str], threads: int = 6) -> None:
        self.accepted: set[int] = set()
        self.refused = 0
        self._url = url
        self._next = 0
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._end = False
        self._threads = [threading.Thread(target=self._post, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def go(self) -> None:
        """Post."""
        self._running.set()

    def pause(self) -> None:
        """Post nothing more after what is under way."""
        self._running.clear()

    def close(self) -> None:
        """End."""
        self._end = True
        self._running.set()
        for thread in self._threads:
            thread.join(30)

    def _post(self) -> None:
        connection: http.client.HTTPConnection | None = None
        text_id = 0
        while self._running.wait() and not self._end:
            if not text_id:  # one that was not answered 200 is posted again, as CallFire might
                with self._lock:
                    self._next += 1
                    text_id = self._next
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(self._url().removeprefix("http://"), timeout=30)
                body = text_postback(text_id, f"text {text_id}", FromNumber=f"1818555{text_id % 500:04}")
                connection.request("POST", f"/postback/{TOKEN}", body, {"Content-Type": "text/xml"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                if connection:
                    connection.close()
                connection = None
                time.sleep(0.02)
                continue
            with self._lock:
                if answer.status == 200:
                    self.accepted.add(text_id)
                    text_id = 0
                else:
                    self.refused += 1
        if connection:
            connection.close()


@dataclass
class Result:
    """What became of a scenario."""

    name: str
    database: str
    rounds: int
    accepted: int
    refused: int
    deliveries: int
    lost: int
    repeated: int
    unexplained: int
    dead: int
    queued: int | None
    seconds: float
    note: str = ""

    @property
    def good(self) -> bool:
        """Nothing lost, nothing repeated that was not under way."""
        return not self.lost and not self.unexplained


@dataclass
class Run:
    """One forwarder (or two) in trouble."""

    database: str
    folder: Path
    server: PostgreSQL | None = None
    forwarders: int = 1
    sink: MailSink = field(default_factory=MailSink)
    running: list[RunningForwarder] = field(default_factory=list)
    mails: int = 0
    slowness: float = 0.0
    """Seconds the mail server takes for each mail, until the end."""
    breaks: list[float] = field(default_factory=list)
    """When something was killed or cut."""
    queued: list[int] = field(default_factory=list)
    arrivals: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    message_ids: dict[tuple[int, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    cut: set[tuple[int, str]] = field(default_factory=set)
    behaviour: Callable[["Run", Mail, SMTP], str | None] = lambda *_: None

    def __post_init__(self) -> None:
        self.url = self.server.database() if self.server else f"sqlite:///{self.folder / 'state0' / 'outbox.db'}"
        self.sink.on_data = self._on_data
        self.load = Load(self._some_url)

    def _on_data(self, mail: Mail, server: SMTP) -> str | None:
        key = mail.text_id, mail.recipient
        time.sleep(self.slowness)  # a mail server has its own pace
        answer = self.behaviour(self, mail, server)
        if answer is None:
            self.arrivals[key].append(time.monotonic())
            self.mails += 1
            self.message_ids[key].add(mail.parsed["Message-ID"])
        return answer

    def _some_url(self) -> str:
        alive = [forwarder for forwarder in self.running if forwarder.process.poll() is None]
        if not alive:
            raise ConnectionError("no forwarder is running")
        return random.choice(alive).url

    def start(self) -> None:
        """Start what is not running."""
        self.running = [forwarder for forwarder in self.running if forwarder.process.poll() is None]
        for n in range(len(self.running), self.forwarders):
            settings = environment(self.folder / f"state{n}", self.sink.port, mail_to=",".join(RECIPIENTS))
            if self.server:
                settings["FORWARDER_DATABASE_URL"] = self.url
            self.running.append(RunningForwarder(settings))

    def kill(self) -> None:
        """End every forwarder at once, as kill -9 does."""
        self.queued.append(self.open())
        for forwarder in self.running:
            forwarder.kill()
        self.breaks.append(time.monotonic())
        self.running = []

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        engine = connect(self.url)
        try:
            with engine.connect().execution_options(reading=True) as connection:
                yield connection
        finally:
            engine.dispose()

    def count(self, where: str) -> int:
        """How many deliveries there are of which that is so."""
        with self._reading() as connection:
            return int(connection.scalar(sa.text(f"SELECT count(*) FROM delivery WHERE {where}")))  # noqa: S608 - ours

    def open(self) -> int:
        """How many deliveries wait or are under way."""
        return self.count("state IN ('queued', 'sending')")

    def until_queued(self, count: int = QUEUED, seconds: float = 120.0) -> None:
        """Wait until so many deliveries wait."""
        self.wait(lambda: self.open() >= count, seconds)

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for something that nobody announces."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.running and self.running[0].log[-3000:]
            time.sleep(0.1)

    def finish(self, name: str, rounds: int, began: float, note: str = "", seconds: float = 900.0) -> Result:
        """Let everything end, and count."""
        self.load.pause()
        self.slowness = 0.0
        self.start()
        self.wait(lambda: self.open() == 0, seconds)
        self.load.close()
        for forwarder in self.running:
            assert forwarder.stop() == 0
        refused = {(n, who) for n, who in self._dead()}
        wanted = {(n, who) for n in self.load.accepted for who in RECIPIENTS} - refused
        arrivals = dict(self.arrivals)
        repeated = {key for key, moments in arrivals.items() if len(moments) > 1}
        assert all(len(ids) == 1 for ids in self.message_ids.values())
        return Result(
            name,
            "PostgreSQL" if self.server else "SQLite",
            rounds,
            len(self.load.accepted),
            self.load.refused,
            len(wanted),
            len(wanted - set(arrivals)),
            len(repeated),
            sum(not self._explained(key) for key in repeated),
            len(refused),
            min(self.queued, default=None),
            time.monotonic() - began,
            note,
        )

    def _dead(self) -> list[tuple[int, str]]:
        with self._reading() as connection:
            rows = connection.execute(sa.text("SELECT text_id, recipient FROM delivery WHERE state = 'dead'"))
            return [(row.text_id, row.recipient) for row in rows]

    def _explained(self, key: tuple[int, str]) -> bool:
        """Whether each arrival but the last was cut, or came just before a kill."""
        return key in self.cut or all(
            any(-0.1 <= moment - arrival <= UNDER_WAY_SECONDS for moment in self.breaks)
            for arrival in self.arrivals[key][:-1]
        )

    def close(self) -> None:
        """End everything."""
        self.load.close()
        for forwarder in self.running:
            if forwarder.process.poll() is None:
                forwarder.stop()
        self.sink.close()


@contextlib.contextmanager
def run(server: PostgreSQL | None = None, forwarders: int = 1, folder: Path | None = None) -> Iterator[Run]:
    """A forwarder to break, on SQLite or on a database of its own in `server`."""
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        one = Run("PostgreSQL" if server else "SQLite", folder or Path(temporary), server, forwarders)
        try:
            one.start()
            yield one
        finally:
            one.close()


def killed(server: PostgreSQL | None, rounds: int, *, database_too: bool = True) -> Result:
    """Everything is killed with -9 while posts come in and at least 1,000 deliveries wait."""
    began = time.monotonic()
    with run(server, forwarders=2 if server else 1) as one:
        one.slowness = 0.02
        one.load.go()
        for number in range(rounds):
            posts, mails = len(one.load.accepted) + CHURN, one.mails + CHURN
            one.until_queued()
            one.wait(lambda: len(one.load.accepted) >= posts and one.mails >= mails, 120)  # noqa: B023 - used at once
            one.kill()
            if server and database_too and number % 2:
                server.stop(signal.SIGKILL)
                server.start()
            if server and not database_too:  # a test has no time to wait for the lease
                _end_leases(one.url)
            one.start()
        return one.finish("kill -9 of everything under load", rounds, began)


def _end_leases(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE worker SET alive_until = 0")


def mail_server_down(server: PostgreSQL | None, seconds: float) -> Result:
    """Nothing listens for minutes."""
    began = time.monotonic()
    with run(server) as one:
        one.sink.stop()
        one.breaks.append(time.monotonic())
        one.load.go()
        time.sleep(seconds)  # which is the trouble itself
        one.load.pause()
        one.sink.start()
        return one.finish("mail server down", 1, began, f"for {seconds:g} s")


def greylisted(server: PostgreSQL | None, seconds: float) -> Result:
    """Every mail is refused with 451 the first time."""
    began, seen = time.monotonic(), set()

    def behaviour(_: Run, mail: Mail, __: SMTP) -> str | None:
        key = mail.text_id, mail.recipient
        known = key in seen
        seen.add(key)
        return None if known else "451 4.7.1 greylisted, come again"

    with run(server) as one:
        one.behaviour = behaviour
        one.load.go()
        time.sleep(seconds)  # load for so long
        return one.finish("greylisting", 1, began, "451 for each mail, once")


def one_of_three_refused(server: PostgreSQL | None, seconds: float) -> Result:
    """One recipient does not exist."""
    began = time.monotonic()
    with run(server) as one:
        one.sink.on_rcpt = {RECIPIENTS[1]: "550 5.1.1 no such user"}.get
        one.load.go()
        time.sleep(seconds)  # load for so long
        result = one.finish("550 for one of three", 1, began)
        assert result.dead == result.accepted
        return result


def hanging(server: PostgreSQL | None, seconds: float) -> Result:
    """The mail server says nothing more to anybody, for longer than the forwarder waits; then it goes on."""
    began = time.monotonic()
    hung = threading.Event()

    def on_rcpt(_: str) -> str | None:
        if not hung.is_set():
            hung.set()
            time.sleep(HANG_SECONDS)  # all of it: this is its event loop
        return None

    with run(server) as one:
        one.load.go()
        time.sleep(seconds)  # load for so long
        one.sink.on_rcpt = on_rcpt
        assert hung.wait(60)
        one.load.pause()
        return one.finish("hang", 1, began, f"for {HANG_SECONDS:g} s")


def cut_after_data(server: PostgreSQL | None, seconds: float) -> Result:
    """One in a hundred connections breaks when the mail has arrived and before the answer."""
    began = time.monotonic()

    def behaviour(one: Run, mail: Mail, smtp: SMTP) -> str | None:
        key = mail.text_id, mail.recipient
        if key not in one.cut and random.random() < 0.01:
            one.cut.add(key)
            cut(smtp)
        return None

    with run(server) as one:
        one.behaviour = behaviour
        one.load.go()
        time.sleep(seconds)  # load for so long
        result = one.finish("cut after DATA", 1, began)
        result.note = f"{len(one.cut)} cuts"
        return result


def disk_full() -> Result:
    """The file system of the outbox is full for a while."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-disk-") as temporary:
        folder = Path(temporary)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
        try:
            with run(folder=folder) as one:
                one.load.go()
                one.wait(lambda: one.load.refused > 20, 120)
                one.load.pause()
                subprocess.run(["mount", "-o", "remount,size=512m", folder], check=True)
                one.load.go()
                before = len(one.load.accepted)
                one.wait(lambda: len(one.load.accepted) > before + 500, 60)
                return one.finish("disk full", 1, began, f"503 to {one.load.refused} posts")
        finally:
            subprocess.run(["umount", folder], check=True)


def database_restarted(server: PostgreSQL, rounds: int) -> Result:
    """PostgreSQL is stopped and started, in order and not."""
    began = time.monotonic()
    with run(server, forwarders=2) as one:
        one.load.go()
        for number in range(rounds):
            before = len(one.load.accepted)
            one.wait(lambda: len(one.load.accepted) > before + 300, 120)  # noqa: B023 - used at once
            one.breaks.append(time.monotonic())
            server.stop(signal.SIGINT if number % 2 else signal.SIGKILL)
            time.sleep(1)  # time enough to notice
            server.start()
            one.breaks.append(time.monotonic())
        return one.finish("database restarted", rounds, began, f"503 to {one.load.refused} posts")


def main() -> None:
    """Everything, one after the other; the report grows with each."""
    rounds = int(os.environ.get("SOAK_ROUNDS", "20"))
    seconds = float(os.environ.get("SOAK_SECONDS", "20"))
    server = PostgreSQL()
    scenarios: list[Callable[[], Result]] = [
        lambda: killed(None, rounds),
        lambda: killed(server, rounds),
        lambda: mail_server_down(None, 6 * seconds),
        lambda: greylisted(None, seconds),
        lambda: one_of_three_refused(None, seconds),
        lambda: hanging(None, seconds),
        lambda: cut_after_data(None, seconds),
        lambda: mail_server_down(server, seconds),
        lambda: cut_after_data(server, seconds),
        lambda: database_restarted(server, 6),
    ]
    if os.geteuid() == 0:
        scenarios.append(disk_full)
    results = []
    try:
        for scenario in scenarios:
            results.append(scenario())
            print(results[-1], flush=True)
            write(results)
    finally:
        server.close()
    sys.exit(0 if all(result.good for result in results) else 1)


def write(results: list[Result]) -> None:
    """The report."""
    lines = [
        "# What is lost when everything breaks",
        "",
        "Written by `make soak` (`bench/soak.py`). Each text goes to three recipients. *Lost*: answered 200, and",
        "neither arrived nor in the list of dead deliveries. *Repeated*: arrived more than once, each time with the",
        "same `Message-ID`; *not under way*: of these, arrived neither over a connection that was cut nor in the",
        "second before something was killed. *Waiting*: deliveries in the outbox at the least of the kills.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for r in results:
        waiting = "" if r.queued is None else f"{r.queued:,}"
        cells = (
            r.name, r.database, r.rounds, f"{r.accepted:,}", f"{r.refused:,}", f"{r.deliveries:,}", f"**{r.lost}**",
            r.repeated, f"**{r.unexplained}**", f"{r.dead:,}", waiting, r.note,
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    total = math.fsum(result.seconds for result in results)
    lines += ["", f"{sum(r.deliveries for r in results):,} mails in {total / 60:.0f} minutes.", ""]
    REPORT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
