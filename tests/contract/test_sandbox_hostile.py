"""Whatever is thrown at a sandbox: it answers, says what is wrong, and keeps its memory and connections bounded."""

import contextlib
import json
import smtplib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox import Sandbox, http_server
from sandbox.emulated import MAX_REQUEST
from sandbox.http_server import MAX_HEAD
from sandbox.smtp_server import MAX_RECIPIENTS
from tests.contract.sandbox_peers import DATA, SERVICE, SOAP_11, SOAP_12, fault_of, post_soap

JSON = {"Content-Type": "application/json"}
QUERY = "<svc:QuerySubscriptions/>"


@pytest.fixture(scope="module")
def victim() -> Iterator[Sandbox]:
    """A sandbox that is not reset between examples."""
    with Sandbox() as sandbox:
        yield sandbox


def connect(sandbox: Sandbox) -> socket.socket:
    """A plain connection to its HTTP port."""
    return socket.create_connection(("127.0.0.1", int(sandbox.url.rpartition(":")[2])), timeout=10)


def ended(connection: socket.socket) -> bool:
    """Whether the other side has hung up."""
    try:
        return connection.recv(1000) == b""
    except ConnectionError:
        return True


# SOAP

ELEMENTS = ["GetSubscription", "CreateSubscription", "Id", "Subscription", "Endpoint", "Enabled", "x"]
content = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_characters="<&", exclude_categories=["Cc"]), max_size=20),
    lambda inner: st.tuples(
        st.sampled_from(ELEMENTS), st.sampled_from(["svc", "data"]), st.lists(inner, max_size=3)
    ).map(lambda node: f"<{node[1]}:{node[0]}>{''.join(node[2])}</{node[1]}:{node[0]}>"),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content, st.sampled_from([SOAP_11, SOAP_12]))
def test_any_body_of_an_envelope_gets_an_answer_or_a_fault(victim: Sandbox, content: str, envelope: str) -> None:
    """Never a server error of another kind."""
    answer = post_soap(victim, content, envelope=envelope)
    assert answer.status_code in {200, 500}
    assert answer.status_code == 200 or fault_of(answer)[0] in {"BAD_REQUEST", "NOT_FOUND", "NOT_IMPLEMENTED"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_are_a_fault(victim: Sandbox, body: bytes) -> None:
    """With the reason."""
    address = f"{victim.url}/api/1.1/soap12/subscription"
    answer = requests.post(address, data=body, auth=(victim.login, victim.password), timeout=10)
    assert (answer.status_code, fault_of(answer)[0]) == (500, "BAD_REQUEST")


ATTACKS = {
    "entities in entities": (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
        + "]><e>&j;</e>"
    ),
    "a file of this machine": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><e>&a;</e>',
    "a document from elsewhere": '<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd"><e/>',
    "elements in elements": "<a>" * 20_000,
    "attributes": "<e " + " ".join(f'a{number}=""' for number in range(5000)) + "/>",
    "another encoding": '<?xml version="1.0" encoding="UTF-7"?><e/>',
    "UTF-16 without an end": "\ufeff<e>",
    "a million digits": f'<s:Envelope xmlns:s="{SOAP_12}" xmlns:svc="{SERVICE}"><s:Body><svc:GetSubscription><svc:Id>'
    f"{'9' * 60_000}</svc:Id></svc:GetSubscription></s:Body></s:Envelope>",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_on_the_parser_is_a_fault(victim: Sandbox, attack: str) -> None:
    """Nothing is expanded, read or fetched."""
    body = ATTACKS[attack].encode("utf-16" if "16" in attack else "utf-8")
    address = f"{victim.url}/api/1.1/soap12/subscription"
    answer = requests.post(address, data=body, auth=(victim.login, victim.password), timeout=10)
    assert fault_of(answer)[0] == "BAD_REQUEST"
    assert "root:" not in answer.text
    assert len(answer.content) < 200_000


def test_a_field_is_read_whole_around_comments_and_sections(sandbox: Sandbox) -> None:
    """As any XML parser reads it."""
    endpoint = "http://h/<!-- not this -->a<?nor this?>b<![CDATA[?c&d]]>"
    fields = f"<data:Endpoint>{endpoint}</data:Endpoint><data:TriggerEvent>INBOUND_TEXT_FINISHED</data:TriggerEvent>"
    create = f"<svc:CreateSubscription><data:Subscription>{fields}</data:Subscription></svc:CreateSubscription>"
    assert post_soap(sandbox, create).status_code == 200
    assert sandbox.subscriptions()[0]["endpoint"] == "http://h/ab?c&d"
    assert DATA in sandbox.request_log()[0]["request"]


def test_a_huge_request_is_refused_without_being_kept(sandbox: Sandbox) -> None:
    """With a length or in chunks."""
    address = f"{sandbox.url}/api/1.1/soap12/subscription"
    assert requests.post(address, data=b"x" * (MAX_REQUEST + 1), timeout=10).status_code == 413
    assert requests.post(address, data=iter([b"x" * 1000] * 10_000), timeout=10).status_code == 413
    assert sandbox.request_log() == []


# HTTP


def test_an_endless_head_ends_the_connection(sandbox: Sandbox) -> None:
    """Before it takes memory."""
    with connect(sandbox) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\n")
            for _ in range(10 * MAX_HEAD // 1000):
                connection.sendall(b"X: " + b"x" * 995 + b"\r\n")
        assert ended(connection)


def test_requests_are_not_taken_in_advance(sandbox: Sandbox) -> None:
    """A second one before the answer to the first is refused."""
    sandbox.trouble("soap-hang")
    request = b"POST /api/1.1/soap12/subscription HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    with connect(sandbox) as connection:
        connection.sendall(request * 1000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert requests.get(f"{sandbox.url}/healthz", timeout=10).ok


def test_connections_are_bounded_and_come_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the most is dropped; the others live."""
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 10)
    with Sandbox() as sandbox:
        with contextlib.ExitStack() as stack:
            many = [stack.enter_context(connect(sandbox)) for _ in range(15)]
            deadline = time.monotonic() + 10
            while len(alive := [connection for connection in many if not _dropped(connection)]) > 10:
                assert time.monotonic() < deadline
            alive[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert alive[0].recv(100).startswith(b"HTTP/1.1 200 ")
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(requests.ConnectionError):
                assert requests.get(f"{sandbox.url}/healthz", timeout=10).ok
                break
            assert time.monotonic() < deadline


def _dropped(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    finally:
        connection.settimeout(10)


HEAD = b"POST /api/1.1/soap12/subscription HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + b"\r\nx"], ids=["nothing", "half a head", "half a body"])
def test_a_client_that_takes_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """Whether it says nothing, half a head or half a body."""
    monkeypatch.setattr(http_server, "REQUEST_TIME", 0.2)
    with Sandbox() as sandbox, connect(sandbox) as connection:
        connection.sendall(sent)
        assert ended(connection)
        assert requests.get(f"{sandbox.url}/healthz", timeout=10).ok


def test_who_has_gone_away_is_waited_for_no_longer(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of a body, of a wait, of a stream or of a call that hangs; and it is no error of the sandbox."""
    sandbox.trouble("soap-hang")
    head = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\nx"
    for request in (
        b"POST /control/texts HTTP/1.1\r\n" + head % 50,
        b"POST /api/1.1/soap12/subscription HTTP/1.1\r\n" + head % 50,
        b"POST /api/1.1/soap12/subscription HTTP/1.1\r\n" + head % 1,
        b"GET /mailbox/messages/wait?timeout=100 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /control/changes HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ):
        with connect(sandbox) as connection:
            connection.sendall(request)
            assert requests.get(f"{sandbox.url}/healthz", timeout=10).ok
    deadline = time.monotonic() + 10
    while not sandbox.request_log() or any(_interested(sandbox)):
        assert time.monotonic() < deadline
    assert [call["trouble"] for call in sandbox.request_log()] == ["soap-hang"]
    assert caplog.records == []


def _interested(sandbox: Sandbox) -> tuple[int, int]:
    """How many wait for something and how many listen to changes."""
    return sandbox._do(lambda simulation: (len(simulation.feed._waiters), len(simulation.feed._listeners)))


# The control API

documents = st.dictionaries(
    st.sampled_from(
        ["from", "to", "message", "id", "inbound", "created", "account", "batch_id", "\ud800", "kind", "x"]
    ),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["18185550101", "2012-09-24T05:02:35Z", "\ud800", 2**63]),
        st.lists(st.integers(), max_size=2),
    ),
    max_size=5,
)
PATHS = ["texts", "calls", "campaigns", "accounts", "subscriptions", "trouble", "seed"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), documents)
def test_any_document_is_taken_or_refused_with_a_reason(victim: Sandbox, path: str, document: dict[str, Any]) -> None:
    """In JSON, never as a server error."""
    answer = requests.post(f"{victim.url}/control/{path}", data=json.dumps(document), headers=JSON, timeout=10)
    assert answer.status_code in {201, 400, 404, 503}
    assert answer.status_code == 201 or len(answer.json()["error"]) > 5


@pytest.mark.parametrize(
    ("method", "path", "body", "problem"),
    [
        ("POST", "control/texts", b"{", "the body is not JSON"),
        ("POST", "control/texts", b"[]", "the body must be a JSON object"),
        ("POST", "control/texts", b"[" * 100_000, "the body is not JSON"),
        ("POST", "control/texts", b'"' + b"x" * 5_000_000, "the body has more than 4194304 bytes"),
        (
            "POST",
            "control/texts",
            b'{"from": "1", "to": "2", "message": "\\u0000"}',
            "only characters that XML can carry",
        ),
        ("POST", "control/seed", b'{"ids": {"text": "x"}}', "ids: text must be a whole number above 0"),
        ("POST", "control/seed", b'{"ids": {"text": 9223372036854775807}}', "must be at most"),
        ("PATCH", "control/subscriptions/1", b"{}", "no subscription 1 in any account"),
        ("PATCH", "control/quirks", b'{"dedupe_request_ids": "no"}', "must be true or false"),
        ("DELETE", "control/trouble/x", b"", "an id must be a whole number above 0, not 'x'"),
        ("POST", "control/postbacks/" + "9" * 5000 + "/resend", b"", "an id must be a whole number above 0"),
        ("GET", "control/events?limit=inf", b"", "limit must be a number, 0 or more, not 'inf'"),
        ("GET", "mailbox/messages/wait?after=-1", b"", "after must be a number, 0 or more, not '-1'"),
        ("GET", "mailbox/messages/wait?timeout=0.01", b"", "a mail after id 0 did not come within 0.01 s"),
        ("GET", "mailbox/messages/latest", b"", "the mailbox is empty"),
        ("GET", "mailbox/messages/7/raw", b"", "no mail 7 in the mailbox"),
    ],
)
def test_what_is_wrong_is_said(sandbox: Sandbox, method: str, path: str, body: bytes, problem: str) -> None:
    """By field and value, with what would be right."""
    answer = requests.request(method, f"{sandbox.url}/{path}", data=body, headers=JSON, timeout=10)
    assert answer.status_code in {400, 404}
    assert problem in answer.json()["error"]


def test_a_form_of_a_web_page_is_no_document(sandbox: Sandbox) -> None:
    """A browser sends JSON to another site only after asking, so nothing else is taken."""
    answer = requests.post(f"{sandbox.url}/control/reset", data=b"{}", headers={"Origin": "null"}, timeout=10)
    assert answer.status_code == 403
    answer = requests.post(f"{sandbox.url}/control/texts", data={"from": "1"}, timeout=10)
    assert "send JSON" in answer.json()["error"]


# Mail

LINE = b"word " * 190
MAILS = {
    "a subject of a megabyte": b"Subject: " + b"\r\n ".join([LINE] * 1000) + b"\r\n\r\nx",
    "thousands of recipients": b"To: " + b",\r\n ".join([b'"some one" <a@example.com>'] * 10_000) + b"\r\n\r\nx",
    "references": b"References: " + b"\r\n ".join([b"<a@x> " * 150] * 1000) + b"\r\n\r\nx",
    "headers": b"".join(b"X-%d: x\r\n" % number for number in range(20_000)) + b"\r\nx",
    "parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 50_000,
    "parts in parts": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (number, number) for number in range(5000)
    ),
    "parameters": b"Content-Type: text/plain;\r\n"
    + b"".join(b' a%d="x";\r\n' % number for number in range(9000))
    + b"\r\nx",
    "no UTF-8": b"Subject: \xff\r\nFrom: \xff <\xe9@x>\r\nContent-Type: text/plain; charset=\xff\r\n\r\n\xff\xfe",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", MAILS)
def test_any_mail_is_kept_and_shown(sandbox: Sandbox, kind: str) -> None:
    """As far as it can be read without holding up everybody else; whole in its raw form."""
    with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=30) as smtp:
        smtp.sendmail("a@example.com", ["b@example.com"], MAILS[kind])
    mail = requests.get(f"{sandbox.url}/mailbox/messages/latest", timeout=10).json()
    threads = requests.get(f"{sandbox.url}/mailbox/threads", timeout=10).json()["threads"]
    raw = requests.get(f"{sandbox.url}/mailbox/messages/{mail['id']}/raw", timeout=10).content
    assert [message["id"] for message in threads[0]["messages"]] == [mail["id"]]
    assert raw.startswith(MAILS[kind].rstrip(b"\r\n")[:1000])
    assert len(raw) >= len(MAILS[kind].rstrip(b"\r\n"))


def test_a_mail_has_so_many_recipients(sandbox: Sandbox) -> None:
    """One more is put off, as mail servers do."""
    with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=10) as smtp:
        smtp.ehlo()
        smtp.mail("a@example.com")
        answers = [smtp.rcpt(f"{number}@example.com")[0] for number in range(MAX_RECIPIENTS + 1)]
        assert answers == [250] * MAX_RECIPIENTS + [452]


def test_mail_connections_are_bounded(sandbox: Sandbox) -> None:
    """The next is turned away with 421, and a mail gets through once one is free."""
    with contextlib.ExitStack() as stack:
        greetings = []
        for _ in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", sandbox.smtp_port), timeout=10))
            greetings.append(connection.recv(3))
        assert greetings == [b"220"] * 50 + [b"421"] * 10
    deadline = time.monotonic() + 10
    while True:
        with (
            contextlib.suppress(smtplib.SMTPException),
            smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=10) as smtp,
        ):
            smtp.sendmail("a@example.com", ["b@example.com"], b"Subject: x\r\n\r\nx")
            break
        assert time.monotonic() < deadline
    assert len(sandbox.mails()) == 1


# Many of everything


def test_thousands_of_events_are_all_posted(sandbox: Sandbox, postback_endpoint: Any) -> None:
    """In order; the log keeps the newest."""
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event="INBOUND_TEXT_FINISHED")
    for number in range(2000):
        sandbox.send_text(f"number {number}")
    bodies = [postback_endpoint.take().body for _ in range(2000)]
    assert all(f"<Message>number {number}</Message>".encode() in body for number, body in enumerate(bodies))
    sandbox.wait_for_postback(after=1999)
    assert [found["id"] for found in sandbox.postbacks()] == list(range(1, 2001))
