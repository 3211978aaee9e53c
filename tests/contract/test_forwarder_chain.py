"""A real forwarder between real HTTP and a real mail server: what comes in, what goes out, how it starts and stops."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forwarder_kit import (
    TOKEN,
    MailSink,
    RunningForwarder,
    environment,
    http,
    mail_sink,
    running,
    sample,
    text_postback,
)


@pytest.fixture(scope="module")
def sink() -> Iterator[MailSink]:
    """A well-behaved mail server."""
    with mail_sink() as server:
        yield server


@pytest.fixture(scope="module")
def forwarder(tmp_path_factory: pytest.TempPathFactory, sink: MailSink) -> Iterator[RunningForwarder]:
    """A forwarder that hands its mails to `sink`."""
    with running(environment(tmp_path_factory.mktemp("state"), sink.port)) as process:
        yield process


@pytest.mark.parametrize(
    ("name", "texts", "ignored"),
    [
        ("call-inbound.xml", 0, 1),
        ("campaign-finished.inferred.xml", 0, 1),
        ("text-inbound-oneline.xml", 1, 0),
        ("text-inbound.as-documented-malformed.xml", 1, 0),
        ("text-inbound.json", 1, 0),
        ("text-inbound.soap.inferred.xml", 0, 1),
        ("text-inbound.xml", 1, 0),
        ("text-outbound.xml", 0, 1),
    ],
)
def test_every_documented_postback_has_its_outcome(
    forwarder: RunningForwarder, name: str, texts: int, ignored: int
) -> None:
    """Texts are taken, calls, campaigns and outbound texts are ignored, all with 200."""
    answer = forwarder.post(sample(name), "application/json" if name.endswith("json") else "text/xml; charset=UTF-8")
    assert answer.status == 200
    assert answer.json == {"status": "ok", "texts": texts, "ignored": ignored, "quarantined": 0}


def test_the_mail_is_the_tutorials_to_the_letter(forwarder: RunningForwarder, sink: MailSink) -> None:
    """Subject and four lines with the numbers and the time as CallFire sent them, and the headers of a conversation."""
    forwarder.post(sample("text-inbound.xml"))
    forwarder.post(text_postback(5707328002))
    sink.wait_for(4)
    mails = {mail.text_id: mail for mail in sink.mails}
    first, second = mails[5707328001].parsed, mails[5707328002].parsed
    assert first["Subject"] == "18186469991 received a new SMS from 18185551212"
    assert mails[5707328001].content.partition(b"\r\n\r\n")[2] == (
        b"From: 18185551212\r\n  To: 18186469991\r\nTime: 2012-09-24T05:02:35Z\r\nText: Hello, World!\r\n"
    )
    assert first["From"] == "+1 818-555-1212 via CallFire <texts@example.com>"
    assert first["To"] == "office@example.com"
    assert first["Message-ID"] == "<text-5707328001@example.com>"
    assert first["In-Reply-To"] == first["References"] == second["References"]
    assert "18185551212" not in first["References"]
    assert first["Auto-Submitted"] == "auto-generated"
    assert first["X-CallFire-Subscription-Id"] == "19001"


def test_a_text_is_mailed_once_however_often_it_is_posted(forwarder: RunningForwarder, sink: MailSink) -> None:
    """The key is Text/@id: repeats, also through another subscription, are acknowledged and change nothing."""
    for _ in range(3):
        assert forwarder.post(text_postback(77)).status == 200
    assert forwarder.post(text_postback(77).replace(b"19001", b"19002")).status == 200
    forwarder.post(text_postback(78))
    while not any(mail.text_id == 78 for mail in sink.mails):
        sink.wait_for(len(sink.mails) + 1)
    assert sink.times()[77, "office@example.com"] == 1


def test_a_wrong_token_learns_nothing(forwarder: RunningForwarder) -> None:
    """A wrong token, a missing one and a path that never was are one and the same 404."""
    answers = [
        forwarder.post(text_postback(1), token="f" * 32),
        http(f"{forwarder.url}/postback/{TOKEN}x", text_postback(1)),
        http(f"{forwarder.url}/postback/", text_postback(1)),
        http(f"{forwarder.url}/nothing"),
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(404, b'{"status": "not found"}')}


def test_healthz_says_who_it_is(forwarder: RunningForwarder) -> None:
    """Whoever started it can tell it from any other server on that port."""
    assert http(f"{forwarder.url}/healthz").json == {
        "service": "callfire-forwarder",
        "status": "ok",
        "pid": forwarder.process.pid,
    }
    assert forwarder.get("/readyz").json["ready"] is True


def _fails(settings: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "forwarder"], env=settings, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_keeps_it_from_starting_is_said_in_one_sentence(
    forwarder: RunningForwarder, sink: MailSink, tmp_path: Path
) -> None:
    """A port in use, a state folder in use and one that cannot be written each name what to do."""
    port = forwarder.url.rpartition(":")[2]
    said = _fails(environment(tmp_path, sink.port, port=port))
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in said
    assert "FORWARDER_PORT" in said
    said = _fails(environment(Path(forwarder.environment["FORWARDER_STATE_DIR"]), sink.port))
    assert f"another forwarder (process {forwarder.process.pid}) uses the state folder" in said
    said = _fails(environment(Path("/proc/nowhere"), sink.port))
    assert "the state folder /proc/nowhere cannot be written" in said
    assert len(said.splitlines()) == 1


def test_all_settings_that_are_wrong_are_named_at_once(tmp_path: Path) -> None:
    """One run is enough to learn everything; no secret is repeated."""
    wrong = environment(tmp_path, 25, port="http", tokens="short-secret", smtp_security="ssl", mial_to="x@example.com")
    del wrong["FORWARDER_MAIL_FROM"]
    said = _fails(wrong)
    for name in ("PORT", "TOKENS", "SMTP_SECURITY", "MIAL_TO", "MAIL_FROM"):
        assert f"forwarder: FORWARDER_{name}" in said
    assert "did you mean FORWARDER_MAIL_TO?" in said
    assert "short-secret" not in said


def test_a_kill_between_200_and_delivery_loses_nothing(tmp_path: Path) -> None:
    """What was answered 200 is mailed once by the next forwarder on the same folder."""
    with mail_sink() as sink:
        sink.stop()
        settings = environment(tmp_path, sink.port)
        with running(settings) as forwarder:
            assert [forwarder.post(text_postback(text_id)).status for text_id in range(1, 21)] == [200] * 20
            forwarder.kill()
        sink.start()
        with running(settings) as forwarder:
            sink.wait_for(20)
            assert forwarder.stop() == 0
        assert sink.times() == {(text_id, "office@example.com"): 1 for text_id in range(1, 21)}


def test_sigterm_drains_and_exits_0(tmp_path: Path) -> None:
    """What is under way ends, what is not stays, and the process says goodbye."""
    with mail_sink() as sink, running(environment(tmp_path, sink.port)) as forwarder:
        for text_id in range(1, 51):
            forwarder.post(text_postback(text_id))
        assert forwarder.stop() == 0
        assert "forwarder.stopped" in forwarder.lines[-2]
        delivered = len(sink.mails)
        with running(forwarder.environment):
            sink.wait_for(50)
        assert delivered <= 50
        assert set(sink.times().values()) == {1}
