"""The soak of bench/soak.py in short: everything is killed under load, and nothing is lost."""

from bench import soak
from tests.forwarder_kit import PostgreSQL


def _is_good(result: soak.Result) -> None:
    assert (result.lost, result.unexplained) == (0, 0), result
    assert result.accepted > 0
    assert result.queued is None or result.queued >= soak.QUEUED


def test_kill_9_under_load_loses_nothing_on_sqlite() -> None:
    """At least 1,000 deliveries wait; what comes twice was under way, with the same Message-ID."""
    _is_good(soak.killed(None, 2))


def test_kill_9_under_load_loses_nothing_on_postgresql(postgresql: PostgreSQL) -> None:
    """The same with two forwarders on one database."""
    _is_good(soak.killed(postgresql, 1, database_too=False))
