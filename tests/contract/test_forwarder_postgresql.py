"""Several forwarders behind a load balancer, on one real PostgreSQL server."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.forwarder_kit import (
    MailSink,
    PostgreSQL,
    RunningForwarder,
    cut,
    environment,
    mail_sink,
    running,
    text_postback,
)


@pytest.fixture
def sink() -> Iterator[MailSink]:
    """A mail server that takes everything until told otherwise."""
    with mail_sink() as server:
        yield server


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgreSQL]:
    """A server that only this module stops."""
    server = PostgreSQL()
    yield server
    server.close()


def _settings(url: str, folder: Path, sink: MailSink) -> dict[str, str]:
    return environment(folder, sink.port) | {"FORWARDER_DATABASE_URL": url}


def _count(url: str, state: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM delivery WHERE state = %s", (state,)).fetchone()
        assert row
        return int(row[0])


def _wait(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # nobody announces it


@pytest.fixture
def two(
    own_server: PostgreSQL, sink: MailSink, tmp_path: Path
) -> Iterator[tuple[str, RunningForwarder, RunningForwarder]]:
    """Two forwarders on one database, and its URL."""
    url = own_server.database()
    with (
        running(_settings(url, tmp_path / "one", sink)) as one,
        running(_settings(url, tmp_path / "two", sink)) as other,
    ):
        yield url, one, other


def test_a_text_posted_at_both_is_mailed_once(
    two: tuple[str, RunningForwarder, RunningForwarder], sink: MailSink
) -> None:
    """Whichever gets it first; both acknowledge it."""
    _, *both = two
    for n in range(1, 41):
        for forwarder in both if n % 2 else reversed(both):
            assert forwarder.post(text_postback(n)).status == 200
    sink.wait_for(40)
    both[0].post(text_postback(41))
    sink.wait_for(41)
    assert set(sink.times().values()) == {1}


def test_a_lost_forwarders_deliveries_are_taken_over(
    two: tuple[str, RunningForwarder, RunningForwarder], sink: MailSink
) -> None:
    """What it had in hand when it was killed goes to the other once its lease is over, and arrives once."""
    url, one, other = two
    sink.on_data = lambda _mail, server: cut(server)
    for n in range(1, 31):
        assert one.post(text_postback(n)).status == 200
    one.kill()
    sink.mails.clear()
    sink.on_data = lambda _mail, _server: None
    with psycopg.connect(url) as connection:  # its lease ends now, and not in half a minute
        row = connection.execute("SELECT count(*) FROM worker").fetchone()
        assert row == (2,)
        connection.execute("UPDATE worker SET alive_until = 0")
    _wait(lambda: _count(url, "sent") == 30, 60)
    assert {n for n, _ in sink.times()} == set(range(1, 31))
    assert set(sink.times().values()) == {1}
    assert other.process.poll() is None


def test_a_forwarder_that_stops_hands_over_at_once(
    two: tuple[str, RunningForwarder, RunningForwarder], sink: MailSink
) -> None:
    """What it had not begun is the other's within seconds, not after a lease."""
    url, one, _ = two
    sink.stop()
    for n in range(1, 21):
        one.post(text_postback(n))
    assert one.stop() == 0
    assert _count(url, "sending") <= 1
    sink.start()
    _wait(lambda: _count(url, "sent") == 20)
    assert set(sink.times().values()) == {1}


def test_a_database_that_is_restarted_loses_nothing(
    own_server: PostgreSQL, two: tuple[str, RunningForwarder, RunningForwarder], sink: MailSink
) -> None:
    """503 with a time to come again while it is away; what was answered 200 is mailed, and work goes on by itself."""
    url, one, other = two
    assert [one.post(text_postback(n)).status for n in range(1, 11)] == [200] * 10
    own_server.stop()
    refused = one.post(text_postback(11))
    assert refused.status == 503
    assert "retry-after" in refused.headers
    own_server.start()
    _wait(lambda: all(forwarder.post(text_postback(11)).status == 200 for forwarder in (one, other)))
    _wait(lambda: _count(url, "sent") == 11)
    assert {n for n, _ in sink.times()} == set(range(1, 12))
