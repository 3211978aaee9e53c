"""Trouble on demand, as the client, the endpoint and the sender of mail meet with it."""

import queue
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import zeep
from lxml import etree

from sandbox import Sandbox
from sandbox.pytest_plugin import PostbackEndpoint
from tests.contract.sandbox_peers import INBOUND_TEXT, SOAP_12, fault_of, post_soap, soap_service

QUERY = "<svc:QuerySubscriptions/>"
CREATE = (
    "<svc:CreateSubscription><data:Subscription><data:Endpoint>http://h/</data:Endpoint>"
    f"<data:TriggerEvent>{INBOUND_TEXT}</data:TriggerEvent></data:Subscription></svc:CreateSubscription>"
)


@pytest.fixture
def texts(sandbox: Sandbox, postback_endpoint: PostbackEndpoint) -> Callable[[str], Any]:
    """Sends a text to one XML subscription."""
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event=INBOUND_TEXT)
    return sandbox.send_text


@pytest.fixture
def smtp(sandbox: Sandbox) -> Iterator[smtplib.SMTP]:
    """A connection to the mailbox that has said hello."""
    connection = smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=10)
    connection.ehlo()
    yield connection
    connection.close()


def message_of(body: bytes) -> str | None:
    """The message of a text's postback."""
    found: str | None = etree.fromstring(body).findtext(".//{http://api.callfire.com/data}Message")
    return found


# SOAP


def test_a_refused_password_is_401_and_changes_nothing(sandbox: Sandbox) -> None:
    """Though the password is right; the next call goes through."""
    sandbox.trouble("soap-401")
    assert post_soap(sandbox, CREATE).status_code == 401
    assert sandbox.subscriptions() == []
    assert post_soap(sandbox, CREATE).status_code == 200


def test_a_fault_says_what_it_was_told_to_say(sandbox: Sandbox) -> None:
    """Code and message, or no detail at all; for one operation only."""
    sandbox.trouble("soap-fault", operation="CreateSubscription", fault="UNAVAILABLE", message="closed on Sundays")
    sandbox.trouble("soap-fault", operation="CreateSubscription", detail=False)
    assert post_soap(sandbox, QUERY).status_code == 200
    answer = post_soap(sandbox, CREATE)
    assert fault_of(answer) == ("UNAVAILABLE", "closed on Sundays")
    assert etree.fromstring(answer.content).findtext(f".//{{{SOAP_12}}}Value") == "soap:Receiver"
    assert fault_of(post_soap(sandbox, CREATE)) == (None, None)
    assert sandbox.subscriptions() == []


def test_503_is_an_html_page(sandbox: Sandbox) -> None:
    """As from a load balancer; zeep loses its status, which is why it is worth trying (contract, section 9)."""
    sandbox.trouble("soap-503", times=2)
    answer = post_soap(sandbox, CREATE)
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "text/html; charset=utf-8")
    with soap_service(sandbox) as service, pytest.raises(zeep.exceptions.Fault, match="Unknown fault"):
        service.QuerySubscriptions()
    assert sandbox.subscriptions() == []


def test_a_slow_call_is_carried_out_in_the_end(sandbox: Sandbox) -> None:
    """Not before its time."""
    sandbox.trouble("soap-slow", seconds=0.3)
    started = time.monotonic()
    assert post_soap(sandbox, CREATE).status_code == 200
    assert time.monotonic() - started >= 0.3
    assert len(sandbox.subscriptions()) == 1


def test_a_hanging_call_is_never_answered(sandbox: Sandbox) -> None:
    """The client's patience ends first; nothing was done. Or the connection is dropped after a time."""
    sandbox.trouble("soap-hang")
    url, auth = f"{sandbox.url}/api/1.1/soap12/subscription", (sandbox.login, sandbox.password)
    with pytest.raises(requests.ReadTimeout):
        requests.post(url, data=CREATE, auth=auth, timeout=0.3)
    sandbox.trouble("soap-hang", seconds=0.1)
    with pytest.raises(requests.ConnectionError):
        post_soap(sandbox, CREATE)
    assert sandbox.subscriptions() == []


def test_a_dropped_call_was_carried_out(sandbox: Sandbox) -> None:
    """The client cannot know; with a RequestId it can ask again without making a second one."""
    create = CREATE.replace("<data:Subscription>", "<svc:RequestId>urn:1</svc:RequestId><data:Subscription>")
    sandbox.trouble("soap-drop", operation="CreateSubscription")
    with pytest.raises(requests.ConnectionError):
        post_soap(sandbox, create)
    assert len(sandbox.subscriptions()) == 1
    assert post_soap(sandbox, create).status_code == 200
    assert len(sandbox.subscriptions()) == 1
    assert [(call["status"], call["trouble"]) for call in sandbox.request_log()] == [(None, "soap-drop"), (200, None)]


# Postbacks


def test_a_postback_comes_twice(sandbox: Sandbox, texts: Any, postback_endpoint: PostbackEndpoint) -> None:
    """Byte for byte the same; the next one comes once."""
    sandbox.trouble("postback-twice")
    texts("one")
    texts("two")
    bodies = [postback_endpoint.take().body for _ in range(3)]
    assert bodies[0] == bodies[1]
    assert [message_of(body) for body in bodies] == ["one", "one", "two"]


def test_a_late_postback_is_overtaken(sandbox: Sandbox, texts: Any, postback_endpoint: PostbackEndpoint) -> None:
    """It comes after its time, and nothing is lost."""
    sandbox.trouble("postback-late", seconds=0.3)
    started = time.monotonic()
    texts("one")
    texts("two")
    assert [message_of(postback_endpoint.take().body) for _ in range(2)] == ["two", "one"]
    assert time.monotonic() - started >= 0.3


def test_two_postbacks_come_in_the_wrong_order(
    sandbox: Sandbox, texts: Any, postback_endpoint: PostbackEndpoint
) -> None:
    """The first waits for the second, however long that takes."""
    sandbox.trouble("postback-swapped")
    for message in ("one", "two", "three"):
        texts(message)
    assert [message_of(postback_endpoint.take().body) for _ in range(3)] == ["two", "one", "three"]


def test_a_malformed_postback_is_the_documented_one(
    sandbox: Sandbox, texts: Any, postback_endpoint: PostbackEndpoint
) -> None:
    """Its length is right, its XML is not."""
    sandbox.trouble("postback-malformed")
    texts("one")
    received = postback_endpoint.take()
    assert b"</Modified<FinalResult>" in received.body
    assert received.headers["Content-Length"] == str(len(received.body))


def test_a_postback_is_cut_off_in_the_middle(sandbox: Sandbox) -> None:
    """The endpoint sees a promised length, half of it, and the end of the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        sandbox.create_subscription(
            endpoint=f"http://127.0.0.1:{server.getsockname()[1]}/x", trigger_event=INBOUND_TEXT
        )
        sandbox.trouble("postback-cut")
        sandbox.send_text("one")
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    promised = int(head.lower().partition(b"content-length: ")[2].split()[0])
    assert 0 < len(body) < promised
    assert sandbox.wait_for_postback()["state"] == "failed"
    assert sandbox.wait_for_postback()["error"] == "cut off in the middle of the body"


def test_a_lost_postback_never_comes_but_can_be_resent(
    sandbox: Sandbox, texts: Any, postback_endpoint: PostbackEndpoint
) -> None:
    """The log knows it."""
    sandbox.trouble("postback-lost")
    lost = texts("one")["postbacks"][0]
    assert sandbox.wait_for_postback()["state"] == "lost"
    with pytest.raises(queue.Empty):
        postback_endpoint.take(timeout=0.2)
    again = sandbox.resend(lost)
    assert again["resend_of"] == lost
    assert message_of(postback_endpoint.take().body) == "one"


def test_the_same_seed_makes_the_same_trouble(
    sandbox: Sandbox, texts: Any, postback_endpoint: PostbackEndpoint
) -> None:
    """After a reset, with the same rules and texts, the same postbacks are lost."""

    def run() -> list[str]:
        sandbox.trouble("postback-lost", probability=0.5, seed=3)
        last = [texts(str(number))["postbacks"][0] for number in range(20)][-1]
        sandbox.wait_for_postback(last - 1)
        return [postback["state"] for postback in sandbox.postbacks()]

    first = run()
    sandbox.reset()
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event=INBOUND_TEXT)
    assert {state == "lost" for state in first} == {True, False}
    assert [state == "lost" for state in run()] == [state == "lost" for state in first]


# Mail


def test_a_mail_is_refused_for_now_or_for_good(sandbox: Sandbox, smtp: smtplib.SMTP) -> None:
    """451 and 550 after DATA; the third try is accepted on the same connection."""
    sandbox.trouble("mail-4xx")
    sandbox.trouble("mail-5xx")
    for code in (451, 550):
        with pytest.raises(smtplib.SMTPDataError) as refused:
            smtp.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nx")
        assert refused.value.smtp_code == code
    smtp.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nx")
    assert [mail["id"] for mail in sandbox.mails()] == [sandbox.wait_for_mail()["id"]]


def test_greylisting_refuses_the_first_try_alone(sandbox: Sandbox, smtp: smtplib.SMTP) -> None:
    """Of a sender and a recipient, until its time has come."""
    sandbox.trouble("mail-greylist", seconds=0.3, probability=1)
    smtp.mail("a@example.com")
    started = time.monotonic()
    answers = [smtp.rcpt("b@example.com")[0]]
    while answers[-1] == 450:
        answers.append(smtp.rcpt("b@example.com")[0])
    assert answers[0] == 450
    assert answers[-1] == 250
    assert time.monotonic() - started >= 0.3
    assert smtp.rcpt("c@example.com")[0] == 450


def test_who_was_greylisted_is_forgotten_with_the_trouble(sandbox: Sandbox, smtp: smtplib.SMTP) -> None:
    """So the next test meets with the same again, though its sender and recipient are the same."""
    smtp.mail("a@example.com")
    for _ in range(2):
        sandbox.trouble("mail-greylist", seconds=3600)
        assert smtp.rcpt("b@example.com")[0] == 450
        sandbox.clear_trouble()
        assert smtp.rcpt("b@example.com")[0] == 250


def test_the_mail_server_hangs_or_drops_the_connection(sandbox: Sandbox) -> None:
    """After a hang nothing is kept; after a drop the mail is there, though nobody said so."""
    for kind, kept in (("mail-hang", 0), ("mail-drop", 1)):
        sandbox.trouble(kind, **({"seconds": 0.1} if kind == "mail-hang" else {}))
        smtp = smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=10)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtp.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nx")
        assert len(sandbox.mails()) == kept
