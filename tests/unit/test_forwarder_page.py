"""The status page's sentences and its drawing, without a browser."""

import time

import pytest

from forwarder.health import LATE_SECONDS, Vitals
from forwarder.ledger import Totals
from forwarder.status_page import SPANS, Span, chart, duration, headline, nice_ceiling

NOTHING = Totals(0, 0, 0, 0, 0, None)


def _vitals(totals: Totals | None = NOTHING, database: str | None = None, mail_server: str | None = None) -> Vitals:
    return Vitals(time.time(), database, mail_server, None, totals, ())


@pytest.mark.parametrize(
    ("vitals", "tone", "title"),
    [
        (_vitals(), "good", "Everything flows"),
        (_vitals(Totals(0, 0, 1, 0, 0, None)), "wait", "Something needs you"),
        (_vitals(Totals(1, 0, 0, 0, 1, None)), "good", "Everything flows"),
        (_vitals(Totals(1, 0, 1, 1, 0, time.time() - LATE_SECONDS - 1)), "bad", "Deliveries are late"),
        (_vitals(Totals(1, 0, 1, 1, 0, 0.0), mail_server="gone"), "bad", "The mail server takes no mail"),
        (_vitals(None, database="disk full", mail_server="gone"), "bad", "Nothing can be stored"),
    ],
)
def test_the_worst_is_said_first(vitals: Vitals, tone: str, title: str) -> None:
    """One sentence, and what is worse hides what is less bad."""
    found = headline(vitals)
    assert (found.tone, found.title) == (tone, title)


@pytest.mark.parametrize("span", SPANS)
def test_the_chart_fits_its_image(span: Span) -> None:
    """Every bar stands inside, the highest value is the highest bar, and nothing is drawn for nothing."""
    count = span.seconds // span.step
    slots = [{"received": place, "sent": place, "dead": place % 2} for place in range(count)]
    found = chart(span, slots, 0.0)
    bars = [bar for slot in found["slots"] for bar in slot["bars"]]
    assert found["sent"] == sum(range(count))
    assert not found["slots"][0]["bars"]
    assert min(bar["y"] for bar in bars) >= 20
    assert max(bar["x"] + bar["width"] for bar in bars) <= 1000
    assert all(bar["height"] >= 2 and bar["y"] + bar["height"] == pytest.approx(200, abs=0.02) for bar in bars)


@pytest.mark.parametrize("slots", [[], [{}] * 48])
def test_the_chart_of_nothing_is_empty(slots: list[dict[str, int]]) -> None:
    """Before the first text, and while the database is away."""
    found = chart(SPANS[1], slots, 0.0)
    assert (found["sent"], [slot["bars"] for slot in found["slots"] if slot["bars"]]) == (0, [])


@pytest.mark.parametrize(
    ("value", "top"), [(0, 4), (4, 4), (5, 5), (6, 10), (39, 50), (100, 100), (101, 200), (999, 1000)]
)
def test_the_top_of_the_chart_is_a_round_number(value: int, top: int) -> None:
    """The next of 4, 5, 10, 20, 50, 100 and so on."""
    assert nice_ceiling(value) == top


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86_400 * 3, "3 d")]
)
def test_a_duration_is_one_figure(seconds: float, words: str) -> None:
    """In the largest unit that it fills."""
    assert duration(seconds) == words
