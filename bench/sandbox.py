"""How fast and how large the sandbox is: its share of a SOAP call, postbacks per second, start, and memory.

`python -m bench.sandbox` prints the figures and writes them to bench/sandbox.md. Sandbox, receiver and load run as
processes of their own on this machine; times are medians over the repetitions.
"""

import contextlib
import json
import os
import platform
import smtplib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpcore
import psutil
import requests
import zeep

REPORT = Path(__file__).with_name("sandbox.md")
REPETITIONS = 5
CALLS = 1000
TEXTS = 1500
FLOODS = 4
RECEIVER = """
import sys, uvicorn
async def answer(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)
Server(uvicorn.Config(answer, port=0, log_level="error", lifespan="off", access_log=False)).run()
"""


@contextlib.contextmanager
def running(*command: str) -> Iterator[tuple[str, psutil.Process]]:
    """A program that says one line when it is ready, and its process."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - programs of this project
        assert process.stdout
        try:
            yield process.stdout.readline(), psutil.Process(process.pid)
        finally:
            process.terminate()


@contextlib.contextmanager
def running_sandbox() -> Iterator[tuple[dict[str, str], psutil.Process]]:
    """A sandbox on free ports."""
    with running("-m", "sandbox", "--port", "0", "--smtp-port", "0", "--json") as (line, process):
        yield json.loads(line), process


def cpu(process: psutil.Process) -> float:
    """CPU seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def soap_share() -> tuple[float, float]:
    """The sandbox's CPU and the whole time of a CreateSubscription through zeep, in ms."""
    with running_sandbox() as (about, process), requests.Session() as session:
        session.auth = (about["login"], about["password"])
        client = zeep.Client(about["wsdl"], transport=zeep.Transport(session=session))
        service = client.bind("CallFireApi", "SubscriptionServicePort")
        fields = {"Endpoint": "http://127.0.0.1:8710/postback/token", "TriggerEvent": "INBOUND_TEXT_FINISHED"}
        service.CreateSubscription(Subscription=fields)
        used, started = cpu(process), time.perf_counter()
        for _ in range(CALLS):
            service.CreateSubscription(Subscription=fields)
        elapsed, used = time.perf_counter() - started, cpu(process) - used
        assert service.QuerySubscriptions(MaxResults=1).TotalResults == CALLS + 1
    return used / CALLS * 1000, elapsed / CALLS * 1000


class Control:
    """The control API of a sandbox."""

    def __init__(self, about: dict[str, str], pool: httpcore.ConnectionPool) -> None:
        self._url = about["url"]
        self._pool = pool

    def ask(self, method: str, path: str, document: object = None) -> dict[str, list[dict[str, object]]]:
        """One request and its document."""
        answer = self._pool.request(
            method,
            self._url + path,
            headers={"Content-Type": "application/json"},
            content=json.dumps(document).encode() if document else None,
        )
        assert answer.status < 300, answer.content
        found: dict[str, list[dict[str, object]]] = json.loads(answer.content)
        return found

    def subscribe(self, port: str) -> None:
        """A subscription to inbound texts at the receiver."""
        endpoint = f"http://127.0.0.1:{port.strip()}/postback/token"
        self.ask("POST", "/control/subscriptions", {"endpoint": endpoint, "trigger_event": "INBOUND_TEXT_FINISHED"})

    def send_texts(self, number: int, message: str) -> None:
        """So many texts, and wait until the last postback is answered."""
        for _ in range(number):
            self.ask("POST", "/control/texts", {"from": "18185550101", "to": "18185550102", "message": message})
        while any(
            found["state"] != "answered" for found in self.ask("GET", "/control/postbacks?limit=10")["postbacks"]
        ):
            time.sleep(0.01)


def postbacks_per_second(subscriptions: int) -> float:
    """Postbacks answered per second, with the log on, from the first text to the last answer."""
    with running_sandbox() as (about, _), running("-c", RECEIVER) as (port, _), httpcore.ConnectionPool() as pool:
        control = Control(about, pool)
        for _ in range(subscriptions):
            control.subscribe(port)
        started = time.perf_counter()
        control.send_texts(TEXTS // subscriptions, "Hello, World!")
        elapsed = time.perf_counter() - started
        log = control.ask("GET", "/control/postbacks")["postbacks"]
        assert len(log) == TEXTS
        assert all(postback["state"] == "answered" for postback in log)
    return TEXTS / elapsed


def memory() -> list[float]:
    """MB that the sandbox has taken at its start and after each of some floods, all alike."""
    with running_sandbox() as (about, process), running("-c", RECEIVER) as (port, _), httpcore.ConnectionPool() as pool:
        control, sizes = Control(about, pool), [process.memory_info().rss / 2**20]
        control.subscribe(port)
        soap = about["url"] + "/api/1.1/soap12/subscription"
        for _ in range(FLOODS):
            control.send_texts(6000, "x" * 5000)
            for _ in range(2500):
                assert pool.request("POST", soap, content=b"<" * 60_000).status == 401
            with smtplib.SMTP("127.0.0.1", int(about["smtp_port"])) as smtp:
                for _ in range(150):
                    smtp.sendmail(
                        "a@example.com", ["b@example.com"], b"Subject: x\r\n\r\n" + (b"x" * 98 + b"\r\n") * 10_000
                    )
            control.ask("GET", "/mailbox/threads")
            sizes.append(process.memory_info().rss / 2**20)
    return sizes


def start_of_object() -> float:
    """Milliseconds until `Sandbox()` answers, in a process that has imported it."""
    program = (
        "import time\nfrom sandbox import Sandbox\nt = time.perf_counter()\n"
        "with Sandbox():\n    print((time.perf_counter() - t) * 1000, flush=True)\n"
    )
    with running("-c", program) as (line, _):
        return float(line)


def start_of_command() -> float:
    """Milliseconds from nothing to the first line of `python -m sandbox --json`, as it is installed without test tools.

    Those bring trio, which httpcore imports wherever it finds it: 150 ms that nobody else waits for.
    """
    program = (
        "import runpy, sys\nsys.modules['trio'] = None\n"
        "sys.argv = ['sandbox', '--port', '0', '--smtp-port', '0', '--json']\n"
        "runpy.run_module('sandbox', run_name='__main__', alter_sys=True)\n"
    )
    started = time.perf_counter()
    with running("-c", program) as (line, _):
        assert json.loads(line)["url"]
        return (time.perf_counter() - started) * 1000


def median(measure: Callable[[], float]) -> float:
    """The median of the repetitions."""
    return statistics.median(measure() for _ in range(REPETITIONS))


def report() -> list[tuple[str, str, str]]:
    """What, target, measured."""
    shares = [soap_share() for _ in range(REPETITIONS)]
    share, whole = (statistics.median(column) for column in zip(*shares, strict=True))
    rates = {number: median(partial(postbacks_per_second, number)) for number in (1, 10)}
    start, *sizes = memory()
    return [
        ("CPU of a CreateSubscription", "≤ 0.5 ms", f"{share:.2f} ms of the {whole:.2f} ms that it takes through zeep"),
        ("postbacks to 1 subscription, log on", "≥ 500/s", f"{rates[1]:.0f}/s"),
        ("postbacks to 10 subscriptions, log on", "≥ 500/s", f"{rates[10]:.0f}/s"),
        ("start of `Sandbox()`", "< 300 ms", f"{median(start_of_object):.0f} ms"),
        ("start of `python -m sandbox`, from nothing", "", f"{median(start_of_command):.0f} ms"),
        ("memory at the start", "", f"{start:.0f} MB"),
        ("memory after each of several floods", "bounded", ", ".join(f"{size:.0f}" for size in sizes) + " MB"),
    ]


def main() -> None:
    """Measure, print and write."""
    lines = [
        "# The sandbox in figures",
        "Written by `python -m bench.sandbox`: medians of five runs; sandbox, receiver and load on one machine.",
        "A flood is 6,000 postbacks of 10 KB, 2,500 SOAP requests of 60 KB and 150 mails of 1 MB.",
        "",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "| | target | measured |",
        "|---|---|---|",
        *(f"| {what} | {target} | {measured} |" for what, target, measured in report()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
