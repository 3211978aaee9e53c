"""What an operator asks of an outbox, on real databases: lists, replays, drops, purges."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from forwarder.app import router
from forwarder.health import TokenUse
from forwarder.ledger import BATCH, BODIES, DAY, Ledger, NotFoundError
from forwarder.outbox import Outbox, Posting, Quarantined, Result, Routed, Turn
from forwarder.routes import RouteFile, read_routes
from forwarder.schema import State, texts
from tests.forwarder_kit import PostgreSQL, inbound, open_outbox, posting, states, text_postback

OFFICE = "office@example.com"


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Now, until a test says otherwise."""
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    """An outbox in use, of either kind."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'outbox.db'}"
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.database()
    found = open_outbox(url, clock=clock)
    yield found
    found.close()


def _settle(outbox: Outbox, state: State, *text_ids: int, redact: bool = False, at: float | None = None) -> None:
    """Let texts come, and their deliveries end so."""
    now = outbox.clock() if at is None else at
    routed = [Posting(now, (Routed(inbound(text_id), "default", (OFFICE,), redact),)) for text_id in text_ids]
    claimed = outbox.turn(Turn(routed, room=len(text_ids))).claimed
    answer = "250 OK" if state is State.SENT else "550 no such user"
    outbox.turn(Turn(results=[Result(delivery, state, 3, now, answer) for delivery in claimed]))


def test_the_totals_are_what_is_not_sent(outbox: Outbox, clock: Clock) -> None:
    """Queued, in hand, dead and unreadable, and since when the oldest is due."""
    ledger = Ledger(outbox)
    assert (ledger.totals().waiting, ledger.totals().oldest_at) == (0, None)
    _settle(outbox, State.SENT, 1)
    _settle(outbox, State.DEAD, 2, 3)
    outbox.turn(Turn([Posting(clock.now, quarantined=(Quarantined("why", "text/xml", b"<"),))]))
    outbox.turn(Turn([posting(inbound(4), received_at=clock.now - 60), posting(inbound(5))], room=1))
    totals = ledger.totals()
    assert (totals.queued, totals.sending, totals.dead, totals.quarantined) == (1, 1, 2, 1)
    assert totals.oldest_at == pytest.approx(clock.now - 60)


def test_what_waits_for_its_next_attempt_is_not_late(outbox: Outbox, clock: Clock) -> None:
    """A full mailbox is its owner's matter; but what nobody tries though it is due is late from then on."""
    ledger, start = Ledger(outbox), clock.now
    (delivery,) = outbox.turn(Turn([posting(inbound(1), received_at=start)], room=1)).claimed
    outbox.turn(Turn(results=[Result(delivery, State.QUEUED, 9, start + 4 * 3600, "452 4.2.2 mailbox full")]))
    clock.now = start + 3 * 3600
    assert (ledger.totals().queued, ledger.totals().deferred, ledger.totals().oldest_at) == (1, 1, None)
    clock.now = start + 5 * 3600
    assert ledger.totals().deferred == 0
    assert ledger.totals().oldest_at == pytest.approx(start + 4 * 3600)
    outbox.turn(Turn(room=1, look=True))
    assert ledger.totals().sending == 1
    assert ledger.totals().oldest_at == pytest.approx(start + 4 * 3600)


def test_the_flow_is_counted_in_steps(outbox: Outbox, clock: Clock) -> None:
    """What happened is found in the step in which it happened."""
    clock.now = 1_000_000 * 60.0
    _settle(outbox, State.SENT, 1, 2)
    clock.now += 600
    _settle(outbox, State.DEAD, 3)
    slots = Ledger(outbox).flow(1_000_000 * 60.0, 300)
    assert [dict(slot) for slot in slots] == [{"received": 2, "sent": 2}, {}, {"received": 1, "dead": 1}]


def test_a_replay_starts_anew(outbox: Outbox, clock: Clock) -> None:
    """A dead delivery is queued as if it had just come: no attempts, and its days count from now."""
    ledger = Ledger(outbox)
    _settle(outbox, State.DEAD, 1, 2)
    clock.now += 6 * DAY
    assert ledger.replay_dead([1]) == 1
    assert states(outbox) == {(1, OFFICE): "queued", (2, OFFICE): "dead"}
    (delivery,) = outbox.turn(Turn(look=True, room=9)).claimed
    assert delivery.attempts == 0
    assert delivery.queued_at == pytest.approx(clock.now)
    assert delivery.text.message == "Hello, World!"
    assert ledger.replay_dead(None) == 1


def test_what_is_not_dead_is_neither_replayed_nor_dropped(outbox: Outbox) -> None:
    """One wrong name, and nothing changes at all."""
    ledger = Ledger(outbox)
    _settle(outbox, State.DEAD, 1)
    _settle(outbox, State.SENT, 2)
    for change in (ledger.replay_dead, ledger.drop_dead):
        for which, recipient in (([1, 2], None), ([1], "other@example.com")):
            with pytest.raises(NotFoundError, match="nothing was changed"):
                change(which, recipient)
    with pytest.raises(NotFoundError):
        ledger.dead_text(2)
    assert states(outbox) == {(1, OFFICE): "dead", (2, OFFICE): "sent"}


def test_a_drop_is_for_good_and_still_known(outbox: Outbox) -> None:
    """The delivery is gone, the text is not accepted again."""
    ledger = Ledger(outbox)
    _settle(outbox, State.DEAD, 1, 2)
    assert ledger.drop_dead([1], OFFICE) == 1
    assert [entry.text_id for entry in ledger.dead()] == [2]
    assert outbox.turn(Turn([posting(inbound(1))])).counts["duplicate"] == 1


def test_everything_is_changed_a_part_at_a_time(outbox: Outbox, clock: Clock) -> None:
    """No transaction is so long that postbacks would wait for it, however much there is; and nothing is left over."""
    ledger, count = Ledger(outbox), 2 * BATCH + 1
    sizes: list[int] = []

    @sa.event.listens_for(outbox.engine, "after_cursor_execute")
    def _count(_connection: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith(("UPDATE delivery", "DELETE FROM quarantine")):
            sizes.append(cursor.rowcount)

    _settle(outbox, State.DEAD, *range(1, count + 1))
    assert ledger.replay_dead(None) == count
    unread = tuple(Quarantined("why", "text/xml", b"<") for _ in range(2 * BODIES + 1))
    outbox.turn(Turn([Posting(clock.now, quarantined=unread)]))
    assert ledger.drop_quarantined(None) == len(unread)
    assert sizes == [BATCH, BATCH, 1, BODIES, BODIES, 1]
    claimed = outbox.turn(Turn(room=count, look=True)).claimed
    outbox.turn(Turn(results=[Result(delivery, State.DEAD, 1, clock.now, "550 no") for delivery in claimed]))
    assert ledger.drop_dead(None) == count
    assert (ledger.totals().waiting, ledger.totals().dead, ledger.totals().quarantined) == (0, 0, 0)


def test_the_quarantine_is_read_again(outbox: Outbox) -> None:
    """What can be read by now is queued and leaves; what cannot stays with its reason; nothing is mailed twice."""
    ledger, route = Ledger(outbox), router(RouteFile().routes((OFFICE,)))
    bodies = (text_postback(1), b"<nope", text_postback(2))
    outbox.turn(Turn([Posting(0.0, quarantined=(Quarantined("old release", "text/xml", body),)) for body in bodies]))
    outbox.turn(Turn([posting(inbound(2))]))
    last, middle, first = ledger.quarantined()
    assert (first.reason, first.size, first.body) == ("old release", len(bodies[0]), b"")
    assert ledger.quarantined_body(first.id).body == bodies[0]
    found = ledger.replay_quarantined(None, route)
    assert (found.texts, found.left) == (2, 1)
    (left,) = ledger.quarantined()
    assert (left.id, left.reason[:15]) == (middle.id, "not well-formed")
    assert states(outbox) == {(1, OFFICE): "queued", (2, OFFICE): "queued"}
    with pytest.raises(NotFoundError):
        ledger.replay_quarantined([last.id], route)
    with pytest.raises(NotFoundError):
        ledger.drop_quarantined([middle.id, last.id])
    assert ledger.drop_quarantined(None) == 1


def test_a_purge_forgets_what_is_old_and_sent(outbox: Outbox, clock: Clock) -> None:
    """Messages first, all else later; what is queued, dead or in quarantine stays however old it is."""
    ledger, start = Ledger(outbox), clock.now
    _settle(outbox, State.SENT, *range(1, 1201))
    _settle(outbox, State.DEAD, 2000)
    outbox.turn(Turn([posting(inbound(2001), received_at=start), Posting(start, (Routed(inbound(2002), "spam", ()),))]))
    clock.now = start + 31 * DAY
    _settle(outbox, State.SENT, 3000)
    purged = ledger.purge(30, 365)
    assert (purged.messages, purged.texts) == (1201, 0)
    assert ledger.dead_text(2000).message == "Hello, World!"
    assert (ledger.purge(30, 365).messages, ledger.purge(30, 365).texts) == (0, 0)
    clock.now = start + 366 * DAY
    purged = ledger.purge(30, 365)
    assert (purged.messages, purged.texts) == (1, 1201)
    assert states(outbox) == {(2000, OFFICE): "dead", (2001, OFFICE): "queued", (3000, OFFICE): "sent"}
    assert sum(slot.get("received", 0) for slot in ledger.flow(start, DAY)) == 1


def test_what_a_route_redacts_is_gone_once_it_is_sent(outbox: Outbox) -> None:
    """The message leaves the database with its last delivery; a dead one keeps it for its replay."""
    _settle(outbox, State.SENT, 1, redact=True)
    _settle(outbox, State.DEAD, 2, redact=True)
    assert Ledger(outbox).purge(0, 365).messages == 0
    assert Ledger(outbox).dead_text(2).message == "Hello, World!"


def test_what_a_route_redacts_is_gone_once_the_rest_is_dropped(outbox: Outbox) -> None:
    """One mail was sent, the other is given up: nobody can need the message any more."""
    routed = Routed(inbound(1), "clinic", (OFFICE, "b@example.com"), redact=True)
    sent, dead = outbox.turn(Turn([Posting(outbox.clock(), (routed,))], room=2)).claimed
    now = outbox.clock()
    outbox.turn(Turn(results=[Result(sent, State.SENT, 1, now, "250 OK"), Result(dead, State.DEAD, 1, now, "550 no")]))
    _settle(outbox, State.DEAD, 2, redact=True)
    assert _raw(outbox, 1) == b"<raw/>"
    assert Ledger(outbox).drop_dead([1]) == 1
    assert (_raw(outbox, 1), _raw(outbox, 2)) == (None, b"<raw/>")
    assert Ledger(outbox).drop_dead(None) == 1
    assert _raw(outbox, 2) is None


def test_a_purge_redacts_what_two_forwarders_sent_at_one_moment(postgresql: PostgreSQL) -> None:
    """Neither sees the other's delivery as sent, so neither forgets the message; the next purge does."""
    url = postgresql.database()
    one, two = open_outbox(url), open_outbox(url)
    routed = Routed(inbound(1), "clinic", (OFFICE, "b@example.com"), redact=True)
    (first,) = one.turn(Turn([Posting(one.clock(), (routed,))], room=1)).claimed
    (second,) = two.turn(Turn(room=1, look=True)).claimed
    now = one.clock()
    with one.transaction() as connection:
        one._write_down(connection, [Result(first, State.SENT, 1, now, "250 OK")], Counter())
        two.turn(Turn(results=[Result(second, State.SENT, 1, now, "250 OK")]))
    assert _raw(one, 1) == b"<raw/>"
    assert Ledger(one).purge(30, 365).messages == 1
    assert _raw(one, 1) is None
    for outbox in (one, two):
        outbox.close()


def _raw(outbox: Outbox, text_id: int) -> bytes | None:
    with outbox.reading() as connection:
        found: bytes | None = connection.scalar(sa.select(texts.c.raw).where(texts.c.id == text_id))
        return found


def test_a_text_that_is_dropped_unread_is_never_stored(outbox: Outbox, tmp_path: Path) -> None:
    """Drop and redact together keep only that it came, so that it is not taken for new."""
    file = tmp_path / "routes.toml"
    file.write_text("[default]\ndrop = true\nredact = true\n")
    routed = router(read_routes(file).routes(()))(inbound(1, "private"))
    assert (routed.text.message, routed.text.raw, routed.recipients) == ("", b"", ())
    outbox.turn(Turn([Posting(0.0, (routed,))]))
    assert outbox.turn(Turn([Posting(0.0, (routed,))])).counts["duplicate"] == 1


def test_a_purge_ends_when_the_forwarder_stops(outbox: Outbox, clock: Clock) -> None:
    """It goes on next time."""
    _settle(outbox, State.SENT, 1)
    clock.now += 400 * DAY
    ledger = Ledger(outbox)
    ledger.stop_purging()
    assert ledger.purge(30, 365).messages == 0
    assert Ledger(outbox).purge(30, 365).texts == 1


def test_recent_deliveries_are_those_of_the_last_texts(outbox: Outbox, clock: Clock) -> None:
    """The last one first."""
    for text_id in (3, 1, 2):
        clock.now += 1
        _settle(outbox, State.SENT, text_id)
    assert [entry.text_id for entry in Ledger(outbox).recent(2)] == [2, 1]


def test_tokens_remember_their_use(outbox: Outbox) -> None:
    """Beyond a restart and for all forwarders, by token and not by place; no token stands in the database."""
    first = TokenUse(outbox, ["current-token", "former-token"], [None, 100.0])
    assert first.last_used() == (None, 100.0)
    first.save()
    TokenUse(outbox, ["former-token"], [90.0]).save()
    assert TokenUse(outbox, ["former-token", "new-token"], [None, 50.0]).last_used() == (100.0, 50.0)
    with outbox.reading() as connection:
        names = connection.exec_driver_sql("SELECT token FROM token_use").scalars().all()
    assert not [name for name in names if "token" in name]
