"""From the outbox to a real mail server: every refusal, hang and cut ends where it should, and concerns nobody else."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from aiosmtpd.smtp import SMTP
from hypothesis import given
from hypothesis import strategies as st

from forwarder.commits import BUSY, RETRY_SECONDS
from forwarder.errors import Unavailable
from forwarder.outbox import Delivery, Outbox, Outcome, Result, Turn
from forwarder.schema import State, deliveries, quarantine
from forwarder.sender import IN_HAND, MOST_IN_HAND, Backoff, Queue, Sender
from forwarder.smtp import Envelope, MailServer, Security
from tests.forwarder_kit import Engine, Mail, MailSink, cut, engine, inbound, mail_sink, open_outbox, posting, states

OFFICE = "office@example.com"


@pytest.fixture
def sink() -> Iterator[MailSink]:
    """A mail server that takes everything until told otherwise."""
    with mail_sink() as server:
        yield server


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An outbox in use."""
    outbox = open_outbox(f"sqlite:///{tmp_path / 'outbox.db'}")
    yield outbox
    outbox.close()


def _run(outbox: Outbox, sink: MailSink, use: Callable[[Engine], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with engine(outbox, sink.port, **options) as running:
            await use(running)

    asyncio.run(main())


def _row(outbox: Outbox, text_id: int, recipient: str = OFFICE) -> Any:
    with outbox.reading() as connection:
        return connection.execute(
            sa.select(deliveries).where(deliveries.c.text_id == text_id, deliveries.c.recipient == recipient)
        ).one()


def _all(outbox: Outbox, state: str) -> Callable[[], bool]:
    return lambda: set(states(outbox).values()) == {state}


def test_one_refused_recipient_of_three_is_dead_and_the_others_have_their_mail(outbox: Outbox, sink: MailSink) -> None:
    """550 is final, for that delivery alone, and its reason stands in the list."""
    sink.on_rcpt = {"no@example.com": "550 5.1.1 no such user"}.get

    async def use(running: Engine) -> None:
        everybody = ("a@example.com", "no@example.com", "b@example.com")
        await running.commits.store(posting(*(inbound(n) for n in range(1, 11)), recipients=everybody))
        await running.until(lambda: sorted(set(states(outbox).values())) == ["dead", "sent"])

    _run(outbox, sink, use)
    assert sink.times() == {(n, f"{who}@example.com"): 1 for n in range(1, 11) for who in "ab"}
    assert _row(outbox, 1, "no@example.com").answer == "550 5.1.1 no such user"
    assert _row(outbox, 1, "no@example.com").attempts == 1


def test_greylisting_is_simply_tried_again(outbox: Outbox, sink: MailSink) -> None:
    """451 at first, 250 later: one mail, and the attempts are counted."""
    seen: set[str] = set()

    def on_rcpt(address: str) -> str | None:
        known = address in seen
        seen.add(address)
        return None if known else "451 4.7.1 greylisted"

    sink.on_rcpt = on_rcpt

    async def use(running: Engine) -> None:
        await running.commits.store(posting(inbound(1), recipients=(OFFICE, "b@example.com")))
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use)
    assert sorted(sink.times().values()) == [1, 1]
    assert _row(outbox, 1).attempts == 2


def test_a_mail_server_that_is_away_uses_nothing_up(outbox: Outbox, sink: MailSink) -> None:
    """What could not be handed over is as it was; when the server is back everything goes, once."""
    sink.stop()

    async def use(running: Engine) -> None:
        for n in range(1, 31):
            await running.commits.store(posting(inbound(n)))
        await running.until(lambda: running.sender.trouble is not None)
        assert "mail server 127.0.0.1" in (running.sender.trouble or "")
        await asyncio.get_running_loop().run_in_executor(None, sink.start)
        await running.until(_all(outbox, "sent"))
        assert running.sender.trouble is None

    _run(outbox, sink, use)
    assert set(sink.times().values()) == {1}
    assert _row(outbox, 1).attempts == 1


def test_a_hang_holds_up_nothing_but_its_connection(outbox: Outbox, sink: MailSink) -> None:
    """While the server thinks about one mail, the others are delivered; the one is tried again after the time-out."""
    thinking, others = threading.Event(), threading.Event()

    def on_data(mail: Mail, _server: SMTP) -> str | None:
        if mail.text_id == 1 and not thinking.is_set():
            thinking.set()
            others.wait(20)
        return None

    sink.on_data = on_data

    async def use(running: Engine) -> None:
        await running.commits.store(posting(inbound(1)))
        await running.until(thinking.is_set)
        await running.commits.store(posting(*(inbound(n, from_number=str(n)) for n in range(2, 40))))
        await running.until(lambda: len(sink.mails) >= 38)
        assert states(outbox)[1, OFFICE] == "sending"
        others.set()
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use, patience=0.5)
    assert {count for key, count in sink.times().items() if key[0] != 1} == {1}


def test_a_connection_cut_after_the_content_is_tried_again_with_the_same_id(outbox: Outbox, sink: MailSink) -> None:
    """Whether it arrived nobody knows, so it goes again, and a mailbox can tell that it is the same mail."""
    tried: set[int] = set()
    seen: list[str] = []

    def on_data(mail: Mail, server: SMTP) -> str | None:
        seen.append(mail.parsed["Message-ID"])
        if mail.text_id not in tried:
            tried.add(mail.text_id)
            cut(server)
        return None

    sink.on_data = on_data

    async def use(running: Engine) -> None:
        await running.commits.store(posting(*(inbound(n, from_number=str(n)) for n in range(1, 9))))
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use)
    assert sorted(set(seen)) == sorted(f"<text-{n}@example.com>" for n in range(1, 9))
    assert all(1 <= seen.count(each) <= 2 for each in seen)


def test_a_recipient_at_whom_the_server_hangs_up_holds_up_nobody(outbox: Outbox, sink: MailSink) -> None:
    """A mail that breaks every connection waits longer and longer; the others pass it."""

    def on_rcpt(address: str) -> str | None:
        if address == "bad@example.com":
            for transport in list(sink._transports):
                transport.abort()
        return None

    sink.on_rcpt = on_rcpt

    async def use(running: Engine) -> None:
        await running.commits.store(posting(inbound(1), recipients=("bad@example.com",)))
        await running.commits.store(posting(*(inbound(n, from_number=str(n)) for n in range(2, 12))))
        await running.until(lambda: sum(state == "sent" for state in states(outbox).values()) == 10)

    _run(outbox, sink, use, backoff=Backoff(0.2, 60.0))
    assert (1, "bad@example.com") not in sink.times()
    assert {n for n, _ in sink.times()} == set(range(2, 12))


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_refusal_counts_though_the_server_hangs_up_after_it(outbox: Outbox, pipelining: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """It is final at the first attempt, and the mail server is not taken for being away."""
    with mail_sink(pipelining=pipelining) as sink:
        sink.hangs_up = True
        sink.on_rcpt = {"no@example.com": "550 5.1.1 no such user"}.get

        async def use(running: Engine) -> None:
            await running.commits.store(posting(inbound(1), recipients=("no@example.com",)))
            await running.commits.store(posting(*(inbound(n, from_number=str(n)) for n in range(2, 6))))
            await running.until(lambda: sorted(set(states(outbox).values())) == ["dead", "sent"])
            assert running.sender.trouble is None

        _run(outbox, sink, use, connections=1)
        assert set(sink.times().values()) == {1}
    row = _row(outbox, 1, "no@example.com")
    assert (row.answer, row.attempts) == ("550 5.1.1 no such user", 1)


def test_a_server_that_refuses_everybody_is_not_hammered(outbox: Outbox, sink: MailSink) -> None:
    """421 to every mail: all wait, and one connection at a time tries again."""
    sink.on_rcpt = lambda _: "421 4.3.2 too busy"

    async def use(running: Engine) -> None:
        await running.commits.store(posting(*(inbound(n, from_number=str(n)) for n in range(1, 101))))
        await running.until(lambda: running.sender.trouble is not None)
        assert running.sender.trouble
        assert "421 4.3.2 too busy" in running.sender.trouble
        await asyncio.sleep(0.4)  # time enough for hundreds of connections
        assert sink.connections <= 8
        sink.on_rcpt = lambda _: None
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use)


def test_a_limit_on_mails_uses_nothing_up_and_keeps_the_order(outbox: Outbox, sink: MailSink) -> None:
    """A server that has had enough for now says so to the sender: nobody's mail is to blame, and all of them wait."""
    limit = 5
    sink.on_mail = lambda: "450 4.7.1 too much mail from you" if len(sink.mails) >= limit else None

    async def use(running: Engine) -> None:
        nonlocal limit
        await running.commits.store(posting(*(inbound(n) for n in range(1, 21))))
        await running.until(lambda: "450 4.7.1 too much mail from you" in (running.sender.trouble or ""))
        assert len(sink.mails) == 5
        limit = 20
        await running.until(_all(outbox, "sent"))
        assert running.sender.trouble is None

    _run(outbox, sink, use)
    assert [mail.text_id for mail in sink.mails] == list(range(1, 21))
    assert {_row(outbox, n).attempts for n in range(1, 21)} == {1}


def test_a_conversation_arrives_in_the_order_of_creation(outbox: Outbox, sink: MailSink) -> None:
    """However the texts came in, and over however many connections they go."""
    wave = [inbound(100 - n, created=f"2024-01-01T00:{n // 60:02}:{n % 60:02}Z") for n in range(60)]
    sink.stop()

    async def use(running: Engine) -> None:
        for text in reversed(wave):
            await running.commits.store(posting(text, inbound(1000 + text.id, from_number=str(text.id))))
        await asyncio.get_running_loop().run_in_executor(None, sink.start)
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use)
    assert [mail.text_id for mail in sink.mails if mail.text_id < 1000] == [text.id for text in wave]


def test_a_mail_that_cannot_be_made_is_dead_and_the_next_goes(outbox: Outbox, sink: MailSink) -> None:
    """A template that fails on one text is said of that text."""

    def compose(delivery: Delivery) -> Envelope:
        if delivery.text.id % 3 == 0:
            raise ZeroDivisionError("in the template")
        return Envelope("texts@example.com", OFFICE, b"X-CallFire-Text-Id: %d\r\n\r\n" % delivery.text.id)

    async def use(running: Engine) -> None:
        await running.commits.store(posting(*(inbound(n) for n in range(1, 10))))
        await running.until(lambda: sorted(set(states(outbox).values())) == ["dead", "sent"])

    _run(outbox, sink, use, compose=compose)
    assert sorted(n for n, _ in sink.times()) == [1, 2, 4, 5, 7, 8]
    assert _row(outbox, 3).answer == "554 the mail could not be made: in the template"


def test_a_backlog_larger_than_the_hands_is_delivered_whole(outbox: Outbox, sink: MailSink) -> None:
    """What does not fit stays on disk until there is room; nothing is left, nothing goes twice."""
    count = 2 * IN_HAND + 50
    outbox.turn(Turn([posting(*(inbound(n, from_number=str(n)) for n in range(1, count + 1)))]))
    largest = 0

    async def use(running: Engine) -> None:
        nonlocal largest

        def done() -> bool:
            nonlocal largest
            largest = max(largest, running.sender.queue.size)
            return len(sink.mails) >= count

        await running.until(done, 60)
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use)
    assert set(sink.times().values()) == {1}
    assert largest <= IN_HAND


def test_a_conversation_of_very_many_does_not_keep_out_the_others(outbox: Outbox, sink: MailSink) -> None:
    """More texts of one pair than fit in the hands, and its connection hangs: another conversation is served."""
    release = threading.Event()

    def on_data(mail: Mail, _: SMTP) -> None:
        if mail.text_id <= 2 * IN_HAND:
            release.wait(20)

    sink.on_data = on_data
    outbox.turn(Turn([posting(*(inbound(n) for n in range(1, 2 * IN_HAND + 1)))]))

    async def use(running: Engine) -> None:
        await running.until(lambda: running.sender.queue.size >= 2 * IN_HAND)
        await running.commits.store(posting(inbound(9999, from_number="other")))
        await running.until(lambda: any(mail.text_id == 9999 for mail in sink.mails))
        release.set()

    _run(outbox, sink, use)
    assert MOST_IN_HAND > 2 * IN_HAND


def test_nothing_is_sent_while_its_fate_cannot_be_written_down(tmp_path: Path, sink: MailSink) -> None:
    """With the outbox gone a mail would be repeated; it waits, postbacks are refused, and all goes when it is back."""
    path = tmp_path / "outbox.db"
    outbox = open_outbox(f"sqlite:///{path}")
    refused = "451 later"
    sink.on_rcpt = lambda _: refused or None

    async def use(running: Engine) -> None:
        nonlocal refused
        await running.commits.store(posting(inbound(1)))
        await running.until(lambda: _row(outbox, 1).attempts > 0)
        path.rename(tmp_path / "aside")
        with pytest.raises(Unavailable, match="moved, deleted or replaced"):
            await running.commits.store(posting(inbound(2)))
        refused = ""
        await asyncio.sleep(RETRY_SECONDS / 2)  # the back-off of the first is over by now
        assert sink.mails == []
        (tmp_path / "aside").rename(path)
        await running.until(_all(outbox, "sent"))
        await running.commits.store(posting(inbound(2)))
        await running.until(lambda: len(sink.mails) == 2)

    _run(outbox, sink, use, backoff=Backoff(0.05, 0.1))
    outbox.close()
    assert set(sink.times().values()) == {1}


class _Doubtful(Outbox):
    """An outbox whose next commits succeed and seem not to."""

    doubts = 0

    def turn(self, work: Turn) -> Outcome:
        outcome = super().turn(work)
        if self.doubts and work.postings:
            self.doubts -= 1
            raise Unavailable("the connection broke during COMMIT")
        return outcome


def test_a_commit_that_seemed_to_fail_is_delivered_once(tmp_path: Path, sink: MailSink) -> None:
    """The sender got an error and posts again; what the first commit left in nobody's hands is found and sent."""
    from forwarder.outbox import connect  # noqa: PLC0415 - only here

    outbox = _Doubtful(connect(f"sqlite:///{tmp_path / 'outbox.db'}"))
    outbox.migrate()
    outbox.register()
    outbox.doubts = 1

    async def use(running: Engine) -> None:
        with pytest.raises(Unavailable):
            await running.commits.store(posting(inbound(1)))
        await running.until(_all(outbox, "sent"))
        await running.commits.store(posting(inbound(1)))
        await running.commits.store(posting(inbound(2)))
        await running.until(lambda: len(sink.mails) == 2)

    _run(outbox, sink, use)
    outbox.close()
    assert set(sink.times().values()) == {1}


def test_what_can_never_be_stored_is_quarantined_and_holds_up_nothing(outbox: Outbox, sink: MailSink) -> None:
    """One impossible value in a batch: the others are stored and sent, the one is kept raw with the reason."""

    async def use(running: Engine) -> None:
        bad = inbound(2**63, raw=b"<impossible/>")
        await asyncio.gather(*(running.commits.store(posting(text)) for text in (inbound(1), bad, inbound(2))))
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use)
    assert {n for n, _ in sink.times()} == {1, 2}
    with outbox.reading() as connection:
        (row,) = connection.execute(sa.select(quarantine)).all()
    assert bytes(row.body) == b"<impossible/>"
    assert row.reason.startswith("could not be stored: ")


def test_what_others_have_taken_over_is_not_sent(outbox: Outbox, sink: MailSink) -> None:
    """After a lease that ended, only what is still ours goes out."""
    hold = threading.Event()

    def on_data(_mail: Mail, _server: SMTP) -> None:
        hold.wait(20)

    sink.on_data = on_data

    async def use(running: Engine) -> None:
        await running.commits.store(posting(*(inbound(n) for n in range(1, 4))))
        await running.until(lambda: bool(sink.connections))
        with outbox.transaction() as connection:
            connection.exec_driver_sql("UPDATE delivery SET owner = 'another' WHERE text_id = 3")
            connection.exec_driver_sql("DELETE FROM worker")
            connection.exec_driver_sql("INSERT INTO worker VALUES ('another', 9e9)")
        running.commits._renew_at = 0.0
        await running.commits.store(posting(inbound(4)))
        hold.set()
        await running.until(lambda: len(sink.mails) == 3)
        await running.until(lambda: sorted(states(outbox).values()) == ["sending", "sent", "sent", "sent"])

    _run(outbox, sink, use)
    assert {n for n, _ in sink.times()} == {1, 2, 4}


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("lost", [True, False])
def test_a_mail_that_has_begun_is_not_sent_while_all_is_held(sink: MailSink, announced: bool, lost: bool) -> None:  # noqa: FBT001 - parameters of the test
    """Announced behind one that takes long, or taking long itself: it waits, and is sent after if it is still ours."""
    release, waiting = threading.Event(), threading.Event()

    def wait(which: bool) -> None:  # noqa: FBT001 - as above
        if which:
            waiting.set()
            assert release.wait(20)

    def on_rcpt(address: str) -> None:
        wait(not announced and address == "2@example.com")

    def on_data(mail: Mail, _server: SMTP) -> None:
        wait(announced and mail.text_id == 1)

    sink.on_rcpt, sink.on_data = on_rcpt, on_data
    done: list[Result] = []

    def compose(delivery: Delivery) -> Envelope:
        return Envelope("texts@example.com", delivery.recipient, b"X-CallFire-Text-Id: %d\r\n\r\n" % delivery.text.id)

    async def main() -> None:
        server = MailServer("127.0.0.1", sink.port, Security.NONE)
        sender = Sender(server, None, compose, done.append, lambda: None, connections=1)
        sender.start()
        sender.take([Delivery(inbound(n), "default", f"{n}@example.com", 0, 1.0, 1.0) for n in (1, 2)])
        await asyncio.get_running_loop().run_in_executor(None, waiting.wait, 20)
        sender.hold()
        release.set()
        await _until(lambda: sink.connections_lost == 1)
        assert [result.delivery.text.id for result in done] == [1]
        assert sender.in_hand() == {(2, "2@example.com")}
        if lost:
            sender.let_go({(2, "2@example.com")})
        sender.go_on()
        await _until(lambda: not sender.in_hand())
        await sender.stop(2.0)

    asyncio.run(main())
    assert [mail.text_id for mail in sink.mails] == ([1] if lost else [1, 2])


def test_a_mail_that_others_took_over_while_it_began_is_not_sent(sink: MailSink) -> None:
    """The lease ended and was renewed while the server thought about the recipient: the mail is another's."""
    release, waiting = threading.Event(), threading.Event()

    def on_rcpt(_: str) -> None:
        waiting.set()
        assert release.wait(20)

    sink.on_rcpt = on_rcpt
    done: list[Result] = []

    async def main() -> None:
        server = MailServer("127.0.0.1", sink.port, Security.NONE)
        envelope = Envelope("texts@example.com", OFFICE, b"X-CallFire-Text-Id: 1\r\n\r\n")
        sender = Sender(server, None, lambda _: envelope, done.append, lambda: None)
        sender.start()
        delivery = Delivery(inbound(1), "default", OFFICE, 0, 1.0, 1.0)
        sender.take([delivery])
        await asyncio.get_running_loop().run_in_executor(None, waiting.wait, 20)
        sender.hold()
        sender.let_go({delivery.key})
        sender.go_on()
        release.set()
        await _until(lambda: not sender.in_hand())
        assert done == []
        sender.take([delivery])
        await _until(lambda: len(done) == 1)
        await sender.stop(2.0)

    asyncio.run(main())
    assert sink.times() == {(1, OFFICE): 1}


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.005)


def test_a_rush_of_postbacks_leaves_one_connection_at_work(outbox: Outbox, sink: MailSink) -> None:
    """A postback may come only once and a mail can wait; but mails never stop, and afterwards all connections work."""
    release = threading.Event()
    under_way = 0

    def on_data(_mail: Mail, _server: SMTP) -> str | None:
        nonlocal under_way
        under_way += 1
        release.wait(20)
        return None

    sink.on_data = on_data

    async def use(running: Engine) -> None:
        rush = (posting(inbound(n, from_number=str(n))) for n in range(1, 2 * BUSY + 1))
        await asyncio.gather(*(running.commits.store(each) for each in rush))
        running.sender.make_way(busy=True)
        await running.until(lambda: under_way >= 1)
        release.set()
        await running.until(lambda: len(sink.mails) >= BUSY)
        running.sender.make_way(busy=False)
        await running.until(_all(outbox, "sent"))

    _run(outbox, sink, use)
    assert set(sink.times().values()) == {1}


def test_only_one_connection_begins_while_making_way(sink: MailSink) -> None:
    """The others wait until the rush is over."""
    release = threading.Event()
    under_way: set[int] = set()

    def on_data(mail: Mail, _server: SMTP) -> str | None:
        under_way.add(mail.text_id)
        release.wait(20)
        return None

    def compose(delivery: Delivery) -> Envelope:
        return Envelope("texts@example.com", OFFICE, b"X-CallFire-Text-Id: %d\r\n\r\n" % delivery.text.id)

    sink.on_data = on_data
    done: list[Result] = []

    async def main() -> None:
        server = MailServer("127.0.0.1", sink.port, Security.NONE)
        sender = Sender(server, None, compose, done.append, lambda: None)
        sender.make_way(busy=True)
        sender.start()
        sender.take([Delivery(inbound(n, from_number=str(n)), "default", OFFICE, 0, 1.0, 1.0) for n in range(1, 9)])
        await _until(lambda: len(under_way) == 1)
        assert sink.connections == 1
        sender.make_way(busy=False)
        await _until(lambda: len(under_way) == 4)
        release.set()
        await _until(lambda: len(done) == 8)
        await sender.stop(2.0)

    asyncio.run(main())
    assert {result.state for result in done} == {State.SENT}


def test_after_a_stop_nothing_is_taken(outbox: Outbox, sink: MailSink) -> None:
    """A post that comes too late is refused, so that it is sent again, and what was not begun is given back."""
    sink.stop()
    running: list[Engine] = []

    async def main() -> None:
        async with engine(outbox, sink.port) as one:
            running.append(one)
            await one.commits.store(posting(inbound(1)))
        with pytest.raises(Unavailable, match="stopping"):
            await running[0].commits.store(posting(inbound(2)))

    asyncio.run(main())
    assert states(outbox) == {(1, OFFICE): "queued"}


def test_idle_connections_are_closed_and_opened_again(outbox: Outbox, sink: MailSink) -> None:
    """A server that hangs up between two mails costs nothing but a new connection."""

    async def use(running: Engine) -> None:
        for n in range(1, 6):
            await running.commits.store(posting(inbound(n)))
            await running.until(_all(outbox, "sent"))
            for transport in list(sink._transports):
                sink._loop.call_soon_threadsafe(transport.abort)

    _run(outbox, sink, use)
    assert set(sink.times().values()) == {1}
    assert all(_row(outbox, n).attempts == 1 for n in range(1, 6))


@pytest.mark.parametrize(("attempts", "low", "high"), [(1, 5, 10), (2, 10, 20), (5, 80, 160), (99, 7200, 14400)])
def test_the_back_off_grows_from_seconds_to_hours(attempts: int, low: float, high: float) -> None:
    """Doubling, with jitter between half and all of it."""
    backoff = Backoff()
    assert [backoff.delay(attempts, jitter) for jitter in (lambda: 0.0, lambda: 1.0)] == [low, high]


def test_a_delivery_is_given_up_after_days_and_attempts() -> None:
    """Five days are not enough when the mail server was away for them."""
    backoff = Backoff()
    assert not backoff.is_over(100, 5 * 86400 - 1)
    assert not backoff.is_over(1, 6 * 86400)
    assert backoff.is_over(10, 5 * 86400)


def test_a_delivery_that_is_too_old_is_dead(outbox: Outbox, sink: MailSink) -> None:
    """The last 4xx is the reason that stands in the list."""
    sink.on_rcpt = lambda _: "451 still not"

    async def use(running: Engine) -> None:
        await running.commits.store(posting(inbound(1)))
        await running.until(_all(outbox, "dead"))

    _run(outbox, sink, use, backoff=Backoff(0.001, 0.001, give_up_after=0.0, least=3))
    assert (_row(outbox, 1).attempts, _row(outbox, 1).answer) == (3, "451 still not")


@given(st.data())
def test_a_queue_loses_nothing_and_never_sends_two_of_a_conversation_at_once(data: st.DataObject) -> None:
    """Any order of putting, taking, putting back, finishing and forgetting."""
    queue, number = Queue(), 0
    waiting: set[int] = set()
    under_way: dict[int, Delivery] = {}
    for step in data.draw(st.lists(st.sampled_from(["put", "next", "next", "back", "done", "remove"]), max_size=60)):
        if step == "put":
            number += 1
            text = inbound(number, from_number=data.draw(st.sampled_from("ABC")), created=str(number % 7))
            queue.put([Delivery(text, "default", OFFICE, 0, float(number), float(number))])
            waiting.add(number)
        elif step == "next":
            delivery = queue.next()
            busy = {each.text.from_number for each in under_way.values()}
            free = [n for n in waiting if n]
            if delivery is None:
                assert not free or len(busy) > 0
                continue
            assert delivery.text.from_number not in busy
            waiting.remove(delivery.text.id)
            under_way[delivery.text.id] = delivery
        elif step == "remove" and waiting:
            gone = data.draw(st.sampled_from(sorted(waiting)))
            queue.remove([(gone, OFFICE)])
            waiting.remove(gone)
        elif under_way and step in {"back", "done"}:
            delivery = under_way.pop(next(iter(under_way)))
            if step == "back":
                queue.put_back(delivery)
                waiting.add(delivery.text.id)
            else:
                queue.done(delivery)
        assert queue.size == len(waiting) + len(under_way)
        assert queue.keys() == {(n, OFFICE) for n in (*waiting, *under_way)}
