"""Postbacks on their way to real endpoints: who gets which, what the log knows, and what holds up no other."""

import contextlib
import queue
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sandbox import Sandbox, WaitTimeoutError, postbacks
from sandbox.accounts import MAX_SUBSCRIPTIONS
from sandbox.errors import BusyError, NotFoundError
from sandbox.postbacks import MAX_ANSWER, MAX_SENDING
from sandbox.pytest_plugin import PostbackEndpoint
from tests.contract.sandbox_peers import INBOUND_TEXT

OFFICE, ANN = "18185550199", "18185550101"


@pytest.fixture
def hanging() -> Iterator[str]:
    """The URL of an endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/postback"


def subscribe(sandbox: Sandbox, endpoint: str, **fields: object) -> str:
    """A subscription to inbound texts; its id."""
    ident: str = sandbox.create_subscription(endpoint=endpoint, **{"trigger_event": INBOUND_TEXT} | fields)["id"]
    return ident


def test_filters_decide_who_is_told(sandbox: Sandbox) -> None:
    """By number and by direction, with every condition of a filter met."""
    wanted = subscribe(sandbox, "http://127.0.0.1:1/", filter={"to_number": OFFICE, "from_number": ANN})
    subscribe(sandbox, "http://127.0.0.1:1/", filter={"to_number": "18185550198"})
    subscribe(sandbox, "http://127.0.0.1:1/", filter={"inbound": False})
    subscribe(sandbox, "http://127.0.0.1:1/", enabled=False)
    text = sandbox.send_text("Hello", ANN, OFFICE)
    assert len(text["postbacks"]) == 1
    assert sandbox.wait_for_postback()["subscription_id"] == wanted


def test_the_log_knows_request_answer_and_time(sandbox: Sandbox, postback_endpoint: PostbackEndpoint) -> None:
    """With every header of both, and what went wrong where there was no answer."""
    subscribe(sandbox, postback_endpoint.url)
    postback_endpoint.status = 418
    sandbox.send_text("Hello")
    found = sandbox.wait_for_postback()
    received = postback_endpoint.take()
    assert (found["state"], found["answer"]["status"], found["error"]) == ("answered", 418, None)
    assert found["request"] == {"headers": received.headers, "body": received.body.decode()}
    assert found["answer"]["headers"]["Content-Length"] == "0"
    assert found["duration"] > 0
    assert found["queued"] <= found["sent"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}/"
    sandbox.change_subscription(found["subscription_id"], endpoint=closed)
    sandbox.send_text("Hello")
    failed = sandbox.wait_for_postback(found["id"])
    assert (failed["state"], failed["answer"]["status"]) == ("failed", None)
    assert failed["error"].startswith("ConnectError")


def test_a_postback_is_resent_to_where_it_went(sandbox: Sandbox, postback_endpoint: PostbackEndpoint) -> None:
    """Byte for byte, though the subscription is gone; an unknown one is refused."""
    ident = subscribe(sandbox, postback_endpoint.url)
    sandbox.send_text("Hello")
    first = sandbox.wait_for_postback()
    sandbox.delete_subscription(ident)
    again = sandbox.resend(first["id"])
    assert again["resend_of"] == first["id"]
    assert postback_endpoint.take().body == postback_endpoint.take().body
    with pytest.raises(NotFoundError, match="no postback 99 in the log"):
        sandbox.resend(99)


def test_an_endpoint_that_hangs_holds_up_no_other(
    sandbox: Sandbox, hanging: str, postback_endpoint: PostbackEndpoint
) -> None:
    """Its own postbacks wait behind each other; a reset drops them."""
    subscribe(sandbox, hanging)
    subscribe(sandbox, postback_endpoint.url)
    for number in range(5):
        sandbox.send_text(f"number {number}")
    for _ in range(5):
        postback_endpoint.take()
    states = [found["state"] for found in sandbox.postbacks() if found["endpoint"] == hanging]
    assert states == ["sending", "waiting", "waiting", "waiting", "waiting"]
    sandbox.reset()
    assert sandbox.postbacks() == []


def test_an_answer_that_does_not_come_is_given_up(hanging: str) -> None:
    """After the timeout, which can be set; the next postback is tried then."""
    with Sandbox(postback_timeout=0.1) as sandbox:
        subscribe(sandbox, hanging)
        sandbox.send_text("one")
        sandbox.send_text("two")
        second = sandbox.wait_for_postback(after=1)
        assert [found["error"] for found in sandbox.postbacks()] == ["no answer within 0.1 s"] * 2
        assert second["id"] == 2


def test_no_more_than_so_many_are_under_way(sandbox: Sandbox, hanging: str) -> None:
    """However many subscriptions there are, so that files do not run out."""
    fields = {"endpoint": hanging, "trigger_event": INBOUND_TEXT}
    sandbox.plant({"subscriptions": [fields] * (MAX_SENDING + 50)})
    sandbox.send_text("Hello")
    states = [found["state"] for found in sandbox.postbacks()]
    while states.count("sending") < MAX_SENDING:
        states = [found["state"] for found in sandbox.postbacks()]
    assert states.count("waiting") == 50


def test_too_many_waiting_postbacks_are_refused_at_the_event(
    sandbox: Sandbox, hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is recorded then, and the error says what to do."""
    assert postbacks.MAX_WAITING > MAX_SUBSCRIPTIONS, "an event for every subscription of an account must fit"
    monkeypatch.setattr(postbacks, "MAX_WAITING", 50)
    sandbox.plant({"subscriptions": [{"endpoint": hanging, "trigger_event": INBOUND_TEXT}] * 20})
    for number in range(3):  # of the first, all are under way
        sandbox.send_text(f"number {number}")
    with pytest.raises(BusyError, match="40 postbacks wait to be sent; try again when the endpoints have caught up"):
        sandbox.send_text("one more")
    assert len(sandbox.postbacks()) == 60
    sandbox.reset()
    assert sandbox.send_text("after a reset")["postbacks"] == []


@pytest.mark.parametrize(
    ("endpoint", "error"),
    [
        ("http://127.0.0.1:1/naïve€", "ConnectError"),
        ("http://hé.invalid/", "ConnectError"),
        ("http://[::1/", "ValueError"),
        ("http://127.0.0.1:99999/", "ValueError"),
        ("http://127.0.0.1:-1/", "ValueError"),
        ("http://%00/", "ConnectError"),
    ],
)
def test_an_endpoint_that_makes_no_sense_fails_and_the_next_text_is_tried(
    sandbox: Sandbox, endpoint: str, error: str
) -> None:
    """Its lane goes on, and the log says why."""
    subscribe(sandbox, endpoint)
    for number in range(2):
        sandbox.send_text(f"number {number}")
        failed = sandbox.wait_for_postback(number)
        assert failed["state"] == "failed"
        assert failed["error"].startswith(error)


class Answers(BaseHTTPRequestHandler):
    """An endpoint whose answers a test writes byte by byte."""

    script: "queue.Queue[Callable[[Any], None]]"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.script.get(timeout=10)(self.wfile)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing: tests print enough."""


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[tuple[str, "queue.Queue[Callable[[Any], None]]"]]:
    """The URL of such an endpoint, with TLS if there is a context, and the queue of its answers."""
    script: queue.Queue[Callable[[Any], None]] = queue.Queue()
    server = HTTPServer(("127.0.0.1", 0), type("Scripted", (Answers,), {"script": script}), bind_and_activate=False)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a refused certificate is what is wanted
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.server_bind()
    server.server_activate()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}/postback", script
    server.shutdown()
    server.server_close()
    thread.join()


def test_of_a_large_answer_the_beginning_is_kept(sandbox: Sandbox) -> None:
    """The rest is never read, so an endpoint cannot fill the sandbox's memory."""
    with serving() as (url, script):
        subscribe(sandbox, url)

        def endless(stream: Any) -> None:
            stream.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with contextlib.suppress(OSError):  # hung up on
                for _ in range(100_000):
                    stream.write(b"x" * 1000)

        script.put(endless)
        sandbox.send_text("Hello")
        found = sandbox.wait_for_postback()
        assert (found["state"], len(found["answer"]["body"])) == ("answered", MAX_ANSWER)


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"nonsense\r\n\r\n", "RemoteProtocolError"), (b"", "RemoteProtocolError")],
    ids=["not HTTP", "nothing"],
)
def test_an_answer_that_is_none_is_a_failure(sandbox: Sandbox, answer: bytes, error: str) -> None:
    """The log says what was wrong with it."""
    with serving() as (url, script):
        subscribe(sandbox, url)
        script.put(lambda stream: stream.write(answer))
        sandbox.send_text("Hello")
        failed = sandbox.wait_for_postback()
        assert failed["state"] == "failed"
        assert failed["error"].startswith(error)


def test_a_certificate_is_checked_unless_the_subscription_says_otherwise(sandbox: Sandbox, tmp_path: Path) -> None:
    """NonStrictSsl, for endpoints that signed their own."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost")
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as (url, script):
        ident = subscribe(sandbox, url)
        sandbox.send_text("strict")
        refused = sandbox.wait_for_postback()
        assert refused["state"] == "failed"
        assert "CERTIFICATE_VERIFY_FAILED" in refused["error"]
        sandbox.change_subscription(ident, non_strict_ssl=True)
        script.put(lambda stream: stream.write(b"HTTP/1.1 204 No Content\r\n\r\n"))
        sandbox.send_text("lenient")
        assert sandbox.wait_for_postback(refused["id"])["answer"]["status"] == 204


@pytest.mark.parametrize("endpoint", ["ops@example.com", "mailto:ops@example.com", "MAILTO:ops@example.com"])
def test_an_endpoint_that_is_an_address_gets_mail(sandbox: Sandbox, endpoint: str) -> None:
    """However it is written, and in whatever format."""
    subscribe(sandbox, endpoint)
    sandbox.send_text("Hello")
    assert sandbox.wait_for_mail()["rcpt_to"] == ["ops@example.com"]


def test_waiting_for_what_does_not_come_ends(sandbox: Sandbox) -> None:
    """With an error that says what was waited for."""
    with pytest.raises(WaitTimeoutError, match=r"a postback after id 0 did not come within 0\.05 s"):
        sandbox.wait_for_postback(timeout=0.05)
    with pytest.raises(WaitTimeoutError, match=r"a mail after id 7 did not come within 0\.05 s"):
        sandbox.wait_for_mail(after=7, timeout=0.05)
