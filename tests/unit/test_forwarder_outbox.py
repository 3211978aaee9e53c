"""The outbox on real databases: what a turn leaves behind, whose deliveries are whose, what happens when it cannot."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from forwarder.errors import StartError, Unavailable, Unstorable
from forwarder.outbox import LEASE_SECONDS, LONGEST_WAIT, Delivery, Outbox, Posting, Quarantined, Result, Turn, connect
from forwarder.schema import State, deliveries, quarantine, texts, workers
from tests.forwarder_kit import PostgreSQL, inbound, open_outbox, posting, states

OFFICE = "office@example.com"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of its own for each test, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'outbox.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.database()


@pytest.fixture
def outbox(url: str) -> Iterator[Outbox]:
    """An outbox in use."""
    outbox = open_outbox(url)
    yield outbox
    outbox.close()


@pytest.fixture
def shared(postgresql: PostgreSQL) -> Iterator[tuple[Outbox, Outbox]]:
    """Two forwarders' views of one outbox."""
    url = postgresql.database()
    both = open_outbox(url), open_outbox(url)
    yield both
    for outbox in both:
        outbox.close()


def _sent(delivery: Delivery, state: State = State.SENT, next_at: float = 0.0) -> Result:
    return Result(delivery, state, 1, next_at, "250 OK")


def test_what_comes_in_goes_straight_into_hands_that_have_room(outbox: Outbox) -> None:
    """As many as there is room for are claimed in the transaction that stores them; the rest is queued."""
    outcome = outbox.turn(Turn([posting(inbound(1)), posting(inbound(2)), posting(inbound(3))], room=2))
    assert [delivery.text.id for delivery in outcome.claimed] == [1, 2]
    assert outcome.behind
    assert states(outbox) == {(1, OFFICE): "sending", (2, OFFICE): "sending", (3, OFFICE): "queued"}


def test_a_text_is_stored_once_whatever_batch_it_comes_in(outbox: Outbox) -> None:
    """Repeats in one batch, in a later one and among new texts make no second delivery and are counted."""
    outbox.turn(Turn([posting(inbound(1)), posting(inbound(1, subscription_id="2"))], room=9))
    outcome = outbox.turn(Turn([posting(inbound(2)), posting(inbound(1)), posting(inbound(3), inbound(3))], room=9))
    assert [delivery.text.id for delivery in outcome.claimed] == [2, 3]
    assert outcome.counts["received"] == 2
    assert outcome.counts["duplicate"] == 2
    assert set(states(outbox)) == {(1, OFFICE), (2, OFFICE), (3, OFFICE)}


def test_a_recipient_named_twice_gets_one_mail(outbox: Outbox) -> None:
    """Whatever a route says, a text goes to an address once."""
    outcome = outbox.turn(Turn([posting(inbound(1), recipients=(OFFICE, "b@example.com", OFFICE))], room=9))
    assert len(outcome.claimed) == 2


def test_a_text_without_recipients_is_stored_and_goes_nowhere(outbox: Outbox) -> None:
    """A route that drops it leaves the text, so that a repeat is one."""
    outcome = outbox.turn(Turn([posting(inbound(1), recipients=())], room=9))
    assert outcome.claimed == []
    assert outbox.turn(Turn([posting(inbound(1))], room=9)).claimed == []


def test_deliveries_are_claimed_in_the_order_of_creation(outbox: Outbox) -> None:
    """Order is by Created, not by arrival, and a time nobody can read counts as the arrival's."""
    late = inbound(1, created="2024-01-01T00:00:02Z")
    early = inbound(2, created="2024-01-01T00:00:01Z")
    odd = inbound(3, created="yesterday")
    outbox.turn(Turn([posting(odd), posting(late), posting(early)]))
    outcome = outbox.turn(Turn(room=9, look=True))
    assert [delivery.text.id for delivery in outcome.claimed] == [2, 1, 3]
    assert not outcome.behind


def test_a_claim_brings_back_all_that_was_stored(outbox: Outbox) -> None:
    """What is sent after a restart is what came in, character by character; the raw bytes stay where they are."""
    text = inbound(7, "Grüße 👋 \u202eabc\x01\n" * 50, recovered=True)
    outbox.turn(Turn([posting(text, received_at=1000.5)]))
    (delivery,) = outbox.turn(Turn(room=1, look=True)).claimed
    assert delivery.text == inbound(7, text.message, recovered=True, raw=b"")
    assert (delivery.received_at, delivery.queued_at, delivery.attempts) == (1000.5, 1000.5, 0)


def test_results_are_written_down(outbox: Outbox) -> None:
    """Sent, dead and queued for later each stand with attempts and answer, and only the last is claimed again."""
    claimed = outbox.turn(Turn([posting(inbound(1), inbound(2), inbound(3))], room=9)).claimed
    wanted = [State.SENT, State.DEAD, State.QUEUED]
    results = [_sent(delivery, state, 5.0) for delivery, state in zip(claimed, wanted, strict=True)]
    outcome = outbox.turn(Turn(results=results))
    assert outcome.counts == {"sent": 1, "dead": 1, "retried": 1}
    assert list(states(outbox).values()) == ["sent", "dead", "queued"]
    (again,) = outbox.turn(Turn(room=9, look=True)).claimed
    assert (again.text.id, again.attempts) == (3, 1)


def test_a_delivery_that_is_not_due_waits(outbox: Outbox) -> None:
    """A look says when the next one is due, and does not claim it before."""
    (delivery,) = outbox.turn(Turn([posting(inbound(1))], room=1)).claimed
    due = time.time() + 60
    outbox.turn(Turn(results=[_sent(delivery, State.QUEUED, due)]))
    outcome = outbox.turn(Turn(room=1, look=True))
    assert outcome.claimed == []
    assert outcome.next_due == pytest.approx(due)


def test_a_clock_that_was_wrong_delays_nothing_for_long(outbox: Outbox) -> None:
    """What is due later than any back-off was queued by a clock ahead of its time, and goes at the next renewal."""
    claimed = outbox.turn(Turn([posting(inbound(1), inbound(2))], room=2)).claimed
    ahead, soon = time.time() + LONGEST_WAIT + 60, time.time() + 60
    results = [_sent(d, State.QUEUED, at) for d, at in zip(claimed, (ahead, soon), strict=True)]
    outbox.turn(Turn(results=results))
    assert outbox.renew()
    assert [delivery.text.id for delivery in outbox.turn(Turn(room=9, look=True)).claimed] == [1]


def test_a_quarantined_body_is_kept_to_the_byte(outbox: Outbox) -> None:
    """Body and reason stand in the list, whatever characters they hold."""
    body = bytes(range(256))
    odd = Quarantined("no \x00 half \ud800", "text/x\x00ml", body)
    assert outbox.turn(Turn([Posting(1.0, quarantined=(odd,))])).counts["quarantined"] == 1
    with outbox.reading() as connection:
        (row,) = connection.execute(sa.select(quarantine)).all()
    assert bytes(row.body) == body
    assert row.reason == "no \ufffd half \ufffd"


def test_an_answer_with_any_characters_can_be_written_down(outbox: Outbox) -> None:
    """A mail server that answers NUL does not stop the outbox."""
    (delivery,) = outbox.turn(Turn([posting(inbound(1))], room=1)).claimed
    outbox.turn(Turn(results=[Result(delivery, State.DEAD, 1, 0.0, "550 \x00\ud800")]))
    assert states(outbox) == {(1, OFFICE): "dead"}


def test_what_can_never_be_stored_is_told_apart_from_a_database_that_is_away(outbox: Outbox) -> None:
    """A value the database refuses raises Unstorable and leaves nothing, so that the rest can be stored without it."""
    huge = inbound(2**63)
    with pytest.raises(Unstorable):
        outbox.turn(Turn([posting(inbound(1)), posting(huge)]))
    assert states(outbox) == {}


def test_a_lost_forwarders_deliveries_are_queued_again_at_the_next_start(url: str) -> None:
    """With SQLite at once, because the lock proves that it is gone; with PostgreSQL when its lease is over."""
    lost = open_outbox(url)
    lost.turn(Turn([posting(inbound(1))], room=1))
    lost.close()
    late = Outbox(connect(url))
    if url.startswith("postgresql"):
        assert late.register() == 0
        with late.transaction() as connection:
            connection.execute(sa.update(workers).values(alive_until=workers.c.alive_until - LEASE_SECONDS - 1))
    assert late.register() == 1
    assert states(late) == {(1, OFFICE): "queued"}
    late.close()


def test_unregister_gives_back_what_is_in_hand(outbox: Outbox) -> None:
    """A forwarder that stops in order keeps nobody waiting."""
    outbox.turn(Turn([posting(inbound(1))], room=1))
    outbox.unregister()
    assert states(outbox) == {(1, OFFICE): "queued"}


def test_two_forwarders_never_claim_the_same(shared: tuple[Outbox, Outbox]) -> None:
    """What one has locked or claimed the other passes over, without waiting."""
    one, other = shared
    one.turn(Turn([posting(*(inbound(n) for n in range(1, 101)))]))
    with one.transaction() as connection:
        connection.execute(sa.select(deliveries).limit(40).with_for_update())
        got = other.turn(Turn(room=500, look=True)).claimed
    rest = one.turn(Turn(room=500, look=True)).claimed
    assert (len(got), len(rest)) == (60, 40)
    assert not {d.key for d in got} & {d.key for d in rest}


def test_the_same_text_at_two_forwarders_is_delivered_by_one(shared: tuple[Outbox, Outbox]) -> None:
    """The second to commit sees that it is known and does not claim it."""
    one, other = shared
    assert len(one.turn(Turn([posting(inbound(1), inbound(2))], room=9)).claimed) == 2
    assert [d.text.id for d in other.turn(Turn([posting(inbound(2), inbound(3))], room=9)).claimed] == [3]


def test_who_was_taken_for_lost_learns_it_at_the_renewal(shared: tuple[Outbox, Outbox]) -> None:
    """A renewal after the lease says so, and reconciling tells what is somebody else's by now."""
    slow, other = shared
    claimed = slow.turn(Turn([posting(inbound(1), inbound(2))], room=9)).claimed
    assert slow.renew()
    with other.transaction() as connection:
        connection.execute(sa.update(workers).where(workers.c.id == slow.worker).values(alive_until=0.0))
    assert other.renew()
    assert [d.text.id for d in other.turn(Turn(room=1, look=True)).claimed] == [1]
    assert not slow.renew()
    assert slow.reconcile([d.key for d in claimed]) == {(1, OFFICE), (2, OFFICE)}
    assert states(other)[1, OFFICE] == "sending"


def test_what_is_ours_and_not_in_hand_is_queued_by_reconciling(outbox: Outbox) -> None:
    """A commit that succeeded although its answer was lost leaves no delivery behind."""
    outbox.turn(Turn([posting(inbound(1), inbound(2))], room=9))
    assert outbox.reconcile([(1, OFFICE)]) == set()
    assert states(outbox) == {(1, OFFICE): "sending", (2, OFFICE): "queued"}


def test_a_result_counts_only_while_the_delivery_is_ours_unless_it_was_sent(shared: tuple[Outbox, Outbox]) -> None:
    """What another has taken over is not put back into the queue; but a mail that went out is sent, whoever owns it."""
    slow, other = shared
    first, second = slow.turn(Turn([posting(inbound(1), inbound(2))], room=9)).claimed
    with other.transaction() as connection:
        connection.execute(sa.update(deliveries).values(owner=other.worker))
    slow.turn(Turn(results=[_sent(first, State.QUEUED), _sent(second, State.SENT)]))
    assert states(other) == {(1, OFFICE): "sending", (2, OFFICE): "sent"}


def test_a_second_forwarder_on_one_sqlite_file_does_not_start(tmp_path: Path) -> None:
    """Whichever state folders they use; the sentence names the process that has it."""
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    outbox = open_outbox(url)
    with pytest.raises(StartError, match=r"another forwarder \(process \d+\) uses the outbox"):
        Outbox(connect(url)).register()
    outbox.close()
    again = open_outbox(url)
    again.close()


def test_a_database_in_another_encoding_is_refused(postgresql: PostgreSQL) -> None:
    """One that cannot hold every text would break at the first emoji."""
    url = postgresql.database("ENCODING 'LATIN1'", "TEMPLATE template0", "LOCALE 'C'")
    outbox = Outbox(connect(url))
    with pytest.raises(StartError, match="encoding is LATIN1"):
        outbox.migrate()
    outbox.close()


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_file_that_was_deleted_or_replaced_takes_nothing_more(tmp_path: Path, what: str) -> None:
    """What would be written into a file without a name would be lost; the file put back goes on."""
    path = tmp_path / "outbox.db"
    outbox = open_outbox(f"sqlite:///{path}")
    aside = path.rename(tmp_path / "aside")
    if what == "replaced":
        path.write_bytes(b"")
    with pytest.raises(Unavailable, match="moved, deleted or replaced"):
        outbox.turn(Turn([posting(inbound(1))]))
    aside.rename(path)
    outbox.turn(Turn([posting(inbound(1))]))
    outbox.close()


def test_a_full_disk_stores_nothing_and_the_next_turn_may(tmp_path: Path) -> None:
    """The turn that does not fit is undone as a whole."""
    outbox = open_outbox(f"sqlite:///{tmp_path / 'outbox.db'}")
    with outbox.transaction() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(Unavailable, match="full"):
        outbox.turn(Turn([posting(inbound(n, "x" * 1600)) for n in range(1, 50)], room=9))
    assert states(outbox) == {}
    assert len(outbox.turn(Turn([posting(inbound(1))], room=9)).claimed) == 1
    outbox.close()


def test_a_redacting_route_leaves_no_text_once_all_is_sent(outbox: Outbox) -> None:
    """While one recipient waits the message stays; with the last it goes, body and raw."""
    came = posting(inbound(1, "secret"), recipients=(OFFICE, "b@example.com"))
    came = replace(came, texts=(replace(came.texts[0], redact=True),))
    first, second = outbox.turn(Turn([came], room=9)).claimed

    def message() -> object:
        with outbox.reading() as connection:
            return connection.scalar(sa.select(texts.c.message))

    outbox.turn(Turn(results=[_sent(first)]))
    assert message() == "secret"
    outbox.turn(Turn(results=[_sent(second)]))
    assert message() is None


def test_the_key_of_threads_is_made_once(outbox: Outbox) -> None:
    """Conversations keep their ids from start to start."""
    assert outbox.secret("threads") == outbox.secret("threads")
    assert len(outbox.secret("threads")) == 32
    assert outbox.secret("threads") != outbox.secret("other")
