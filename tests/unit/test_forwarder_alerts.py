"""Alerts: a heartbeat that falls silent when it should, and an operator who is told once an hour at most."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx
import pytest

from forwarder.alerts import PAUSE_SECONDS, Heartbeat, News, Notices, OperatorMail, alert_mail
from forwarder.errors import MailServerUnavailable
from forwarder.handover import hand_over
from forwarder.health import LATE_SECONDS, Vitals
from forwarder.ledger import Ledger, Totals
from forwarder.outbox import Outbox, Posting, Quarantined, Result, Turn
from forwarder.schema import State
from forwarder.smtp import Envelope, MailServer, Reply, Security
from tests.forwarder_kit import PostgreSQL, Watcher, inbound, mail_sink, open_outbox, posting


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    """Who watches the heartbeat."""
    found = Watcher()
    yield found
    found.close()


def _vitals(**changes: Any) -> Vitals:
    now = time.time()
    values: dict[str, Any] = {
        "at": now, "database": None, "mail_server": None, "last_contact": now,
        "totals": Totals(0, 0, 0, 0, 0, None), "tokens": (),
    }  # fmt: skip
    return Vitals(**(values | changes))


def _beat(watcher: Watcher, vitals: Vitals, *, reachable: bool = True) -> int:
    """One beat; how often the server was asked to let us log in."""
    asked = 0

    async def log_in() -> None:
        nonlocal asked
        asked += 1
        if not reachable:
            raise MailServerUnavailable("mail server: 535 no")

    async def beat() -> None:
        async with httpx.AsyncClient() as client:
            await Heartbeat(watcher.url, lambda: vitals, log_in).beat(client)

    asyncio.run(beat())
    return asked


@pytest.mark.parametrize(
    "trouble",
    [
        {"database": "the database cannot be written: disk full"},
        {"mail_server": "mail server: connection refused"},
        {"totals": Totals(1, 0, 0, 0, 0, time.time() - LATE_SECONDS - 60)},
    ],
)
def test_the_heart_stops_when_deliveries_do(
    watcher: Watcher, trouble: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """A database, a mail server or a delivery that waits too long."""
    _beat(watcher, _vitals())
    assert watcher.paths == ["/ping/secret-uuid"]
    _beat(watcher, _vitals(**trouble))
    assert len(watcher.paths) == 1
    assert "heartbeat.withheld" in caplog.text


def test_a_quiet_mail_server_is_asked_before_the_heart_beats(watcher: Watcher) -> None:
    """Nobody wrote for long: an idle forwarder learns of a changed password before a text does."""
    assert _beat(watcher, _vitals()) == 0
    assert _beat(watcher, _vitals(last_contact=None)) == 1
    assert len(watcher.paths) == 2
    assert _beat(watcher, _vitals(last_contact=time.time() - 3600), reachable=False) == 1
    assert len(watcher.paths) == 2


def test_the_heartbeats_address_is_never_told(watcher: Watcher, caplog: pytest.LogCaptureFixture) -> None:
    """Neither when it refuses nor when it is gone; and deliveries don't mind."""
    caplog.set_level(logging.INFO, "forwarder")
    watcher.status = 500
    _beat(watcher, _vitals())
    watcher.close()
    _beat(watcher, _vitals())
    assert "heartbeat.failed status=500" in caplog.text
    assert "heartbeat.failed error=ConnectError" in caplog.text
    assert "secret-uuid" not in caplog.text


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of its own for each test, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'outbox.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.database()


class Operator:
    """Takes alerts, or does not."""

    def __init__(self, outbox: Outbox, *addresses: str) -> None:
        self.mails: list[Envelope] = []
        self.answer: Reply | None = Reply(250, "OK")
        self.mail = OperatorMail(
            Notices(outbox), "texts@example.com", addresses or ("ops@example.com",), self._take, "http://x/"
        )

    async def _take(self, envelope: Envelope) -> Reply:
        if self.answer is None:
            raise MailServerUnavailable("mail server: connection refused")
        self.mails.append(envelope)
        return self.answer

    def tell(self) -> int:
        """Let it look once; returns how many mails went out."""
        before = len(self.mails)
        asyncio.run(self.mail.tell())
        return len(self.mails) - before


def _die(outbox: Outbox, *text_ids: int) -> None:
    claimed = outbox.turn(Turn([posting(inbound(text_id)) for text_id in text_ids], room=99)).claimed
    now = outbox.clock()
    outbox.turn(Turn(results=[Result(delivery, State.DEAD, 1, now, "550 no such user") for delivery in claimed]))


def test_the_operator_is_told_once_an_hour_at_most(url: str) -> None:
    """What happens is bundled, told once, and what comes after waits for the hour; a restart tells nothing again."""
    now = [time.time()]
    outbox = open_outbox(url, clock=lambda: now[0])
    operator = Operator(outbox)
    assert operator.tell() == 0
    _die(outbox, 1, 2)
    assert operator.tell() == 1
    now[0] += 60
    _die(outbox, 3)
    outbox.turn(Turn([Posting(now[0], quarantined=(Quarantined("not XML", "text/xml", b"<private"),))]))
    assert Operator(outbox).tell() == 0
    now[0] += PAUSE_SECONDS
    again = Operator(outbox)
    assert (again.tell(), again.tell()) == (1, 0)
    words = message_from_bytes(again.mails[0].content, policy=policy.default)
    assert words["Subject"] == "callfire-mail: 1 delivery failed for good, 1 postback could not be read"
    now[0] += PAUSE_SECONDS
    assert Operator(outbox).tell() == 0
    outbox.close()


def test_an_alert_that_cannot_be_sent_is_no_reason_for_another(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again, and leaves nothing in the outbox."""
    outbox = open_outbox(url)
    _die(outbox, 1)
    operator = Operator(outbox)
    for answer in (None, Reply(550, "no such operator"), Reply(451, "later")):
        operator.answer = answer
        operator.tell()
        assert "alert.not_sent" in caplog.text
    operator.answer = Reply(250, "OK")
    assert (operator.tell(), operator.tell()) == (1, 0)
    outbox.close()


def test_an_alert_is_told_when_one_operator_has_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With no mail server none of two has it; when it is back, the one it refuses stands in the log."""
    outbox = open_outbox(f"sqlite:///{tmp_path / 'outbox.db'}")
    _die(outbox, 1)
    with mail_sink() as sink:
        server = MailServer("127.0.0.1", sink.port, Security.NONE)
        operators = ["a@example.com", "b@example.com"]
        mail = OperatorMail(
            Notices(outbox), "texts@example.com", operators, lambda mail: hand_over(server, None, mail), "http://x/"
        )
        sink.stop()
        asyncio.run(mail.tell())
        assert "alert.not_sent to=a@example.com" in caplog.text
        assert "alert.not_sent to=b@example.com" in caplog.text
        sink.start()
        sink.on_rcpt = {"a@example.com": "550 no such operator"}.get
        caplog.clear()
        asyncio.run(mail.tell())
        assert [taken.recipient for taken in sink.mails] == ["b@example.com"]
        assert "alert.not_sent to=a@example.com reason='550 no such operator'" in caplog.text
        assert Notices(outbox).claim() is None
    outbox.close()


def test_a_clock_that_is_put_right_keeps_nothing_from_the_operator(url: str) -> None:
    """What dies after a clock was a day ahead, or on a machine whose clock is behind, is told like all else."""
    now = [time.time() + 86_400]
    outbox = open_outbox(url, clock=lambda: now[0])
    operator = Operator(outbox)
    _die(outbox, 1)
    assert operator.tell() == 1
    now[0] -= 86_400
    _die(outbox, 2)
    assert operator.tell() == 1
    now[0] -= 30
    _die(outbox, 3)
    assert operator.tell() == 0
    now[0] += PAUSE_SECONDS + 30
    assert operator.tell() == 1
    subjects = [message_from_bytes(mail.content)["Subject"] for mail in operator.mails]
    assert subjects == ["callfire-mail: 1 delivery failed for good"] * 3
    now[0] += PAUSE_SECONDS
    assert operator.tell() == 0
    outbox.close()


def test_what_dies_again_is_told_again(url: str) -> None:
    """Whoever replayed it thought that the reason was gone."""
    now = [time.time()]
    outbox = open_outbox(url, clock=lambda: now[0])
    operator = Operator(outbox)
    _die(outbox, 1, 2)
    assert operator.tell() == 1
    now[0] += PAUSE_SECONDS
    Ledger(outbox).replay_dead([1])
    assert operator.tell() == 0
    (delivery,) = outbox.turn(Turn(room=1, look=True)).claimed
    outbox.turn(Turn(results=[Result(delivery, State.DEAD, 1, now[0], "550 no such user")]))
    assert (operator.tell(), operator.tell()) == (1, 0)
    outbox.close()


def test_what_a_forwarder_dies_with_is_told_by_the_next(url: str) -> None:
    """Killed between looking and sending, or stopped while it sends: nothing is taken for told."""
    now = [time.time()]
    outbox = open_outbox(url, clock=lambda: now[0])
    _die(outbox, 1)
    assert Notices(outbox).claim() is not None
    assert Operator(outbox).tell() == 0
    now[0] += PAUSE_SECONDS
    never = asyncio.Event()

    async def hang(_: Envelope) -> Reply:
        never.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def stop_while_sending() -> None:
        mail = OperatorMail(Notices(outbox), "texts@example.com", ["ops@example.com"], hang, "http://x/")
        telling = asyncio.create_task(mail.tell())
        await never.wait()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(stop_while_sending())
    assert Operator(outbox).tell() == 1
    outbox.close()


def test_of_two_forwarders_one_tells(postgresql: PostgreSQL) -> None:
    """They look at the same outbox at the same time."""
    url = postgresql.database()
    outboxes = [open_outbox(url) for _ in range(2)]
    _die(outboxes[0], 1)
    found: list[News | None] = []
    threads = [threading.Thread(target=lambda box=box: found.append(Notices(box).claim())) for box in outboxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(news is None for news in found) == [False, True]
    for outbox in outboxes:
        outbox.close()


def test_an_alert_tells_no_text_and_no_number(tmp_path: Path) -> None:
    """Masked numbers, reasons, and what to do; a long list is cut."""
    outbox = open_outbox(f"sqlite:///{tmp_path / 'outbox.db'}")
    _die(outbox, *range(1, 31))
    outbox.turn(Turn([Posting(outbox.clock(), quarantined=(Quarantined("not XML", "text/xml", b"<private"),))]))
    news = Notices(outbox).claim()
    assert news is not None
    mail = message_from_bytes(
        alert_mail(news, "texts@example.com", ["ops@example.com"], "http://x/"), policy=policy.default
    )
    body = mail.get_content()
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["X-CallFire-Text-Id"] is None
    assert "text 30 from •••1212 to office@example.com" in body
    assert "550 no such user" in body
    assert "and 10 more" in body
    assert "python -m forwarder dead replay --all" in body
    for private in ("18185551212", "Hello", "private"):
        assert private not in body
    outbox.close()
