"""How fast the sandbox is: its share of a SOAP call, its postbacks per second, its start. Run by `make bench`.

Sandbox, receiver and load run as processes of their own on this machine; figures are medians over the repetitions.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpcore
import psutil
import requests
import zeep

REPETITIONS = 5
CALLS = 1000
TEXTS = 1500
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
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
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


def postbacks_per_second(subscriptions: int) -> float:
    """Postbacks answered per second, with the log on, from the first text to the last answer."""
    with running_sandbox() as (about, _), running("-c", RECEIVER) as (port, _), httpcore.ConnectionPool() as pool:

        def ask(method: str, path: str, document: object = None) -> dict[str, list[dict[str, object]]]:
            answer = pool.request(
                method,
                about["url"] + path,
                headers={"Content-Type": "application/json"},
                content=json.dumps(document).encode() if document else None,
            )
            assert answer.status < 300, answer.content
            found: dict[str, list[dict[str, object]]] = json.loads(answer.content)
            return found

        endpoint = f"http://127.0.0.1:{port.strip()}/postback/token"
        for _ in range(subscriptions):
            ask("POST", "/control/subscriptions", {"endpoint": endpoint, "trigger_event": "INBOUND_TEXT_FINISHED"})
        text = {"from": "18185550101", "to": "18185550102", "message": "Hello, World!"}
        started = time.perf_counter()
        for _ in range(TEXTS // subscriptions):
            ask("POST", "/control/texts", text)
        while any(
            postback["state"] != "answered" for postback in ask("GET", "/control/postbacks?limit=10")["postbacks"]
        ):
            time.sleep(0.01)
        elapsed = time.perf_counter() - started
        log = ask("GET", "/control/postbacks")["postbacks"]
        assert len(log) == TEXTS
        assert all(postback["state"] == "answered" for postback in log)
    return TEXTS / elapsed


def start_of_object() -> float:
    """Milliseconds until `Sandbox()` answers, in a process that has imported it."""
    program = (
        "import time\nfrom sandbox import Sandbox\nt = time.perf_counter()\n"
        "with Sandbox():\n    print((time.perf_counter() - t) * 1000, flush=True)\n"
    )
    with running("-c", program) as (line, _):
        return float(line)


def start_of_command() -> float:
    """Milliseconds from nothing to the first line of `python -m sandbox --json`."""
    started = time.perf_counter()
    with running_sandbox():
        return (time.perf_counter() - started) * 1000


def median(measure: Callable[[], float]) -> float:
    """The median of the repetitions."""
    return statistics.median(measure() for _ in range(REPETITIONS))


def main() -> None:
    """Measure and print."""
    shares = [soap_share() for _ in range(REPETITIONS)]
    share, whole = (statistics.median(column) for column in zip(*shares, strict=True))
    print(f"{'sandbox':32}{'target':>12}{'measured':>12}")
    print(f"{'CPU per SOAP call':32}{'<= 0.5 ms':>12}{share:9.2f} ms   of {whole:.2f} ms through zeep")
    for subscriptions in (1, 10):
        rate = median(lambda subscriptions=subscriptions: postbacks_per_second(subscriptions))  # type: ignore[misc]
        print(f"{f'postbacks, {subscriptions} subscription(s)':32}{'>= 500/s':>12}{rate:10.0f}/s")
    print(f"{'start of Sandbox()':32}{'< 300 ms':>12}{median(start_of_object):9.0f} ms")
    print(f"{'start of python -m sandbox':32}{'':>12}{median(start_of_command):9.0f} ms")


if __name__ == "__main__":
    main()
