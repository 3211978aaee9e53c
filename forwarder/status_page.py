"""The status page: what one sees at a glance, drawn here, without scripts and without a whole number."""

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2

from forwarder.health import LATE_SECONDS, Vitals
from forwarder.ledger import Entry, Quarantined
from forwarder.numbers import mask

FOLDER: Final = Path(__file__).parent / "page"
SHOWN: Final = 20
"""Most recent deliveries."""
SHOWN_FAILED: Final = 8
"""Most dead deliveries, and most postbacks of the quarantine."""

_WIDTH: Final = 1000
_TOP: Final = 20
_BOTTOM: Final = 200


@dataclass(frozen=True, slots=True)
class Span:
    """How far back the chart looks and how much time a bar stands for, both in seconds."""

    name: str
    label: str
    words: str
    seconds: int
    step: int
    ticks: int
    clock: str


SPANS: Final = (
    Span("hour", "Hour", "last hour", 3600, 60, 6, "%H:%M"),
    Span("day", "Day", "last 24 h", 86_400, 1800, 6, "%H:%M"),
    Span("week", "Week", "last 7 days", 604_800, 4 * 3600, 7, "%d %b"),
)


def span_named(name: str) -> Span:
    """The span of that name; a day, if there is none."""
    return next((span for span in SPANS if span.name == name), SPANS[1])


@dataclass(frozen=True, slots=True)
class Headline:
    """The one sentence for somebody who looks for a second."""

    tone: str
    title: str
    detail: str


def headline(vitals: Vitals) -> Headline:
    """What matters most."""
    totals = vitals.totals
    waiting = f"{totals.waiting} {_deliveries(totals.waiting)} waiting" if totals else ""
    if totals and totals.deferred:
        waiting += f", {totals.deferred} of them refused for now and tried again later"
    if vitals.database or totals is None:
        return Headline("bad", "Nothing can be stored", f"{vitals.database}. CallFire is told to send again.")
    if vitals.mail_server:
        detail = f"{vitals.mail_server}. Nothing is lost: {waiting}, and all goes out when it takes mail again."
        return Headline("bad", "The mail server takes no mail", detail)
    if vitals.trouble:
        return Headline("bad", "Deliveries are late", f"{vitals.trouble}; {waiting}.")
    if totals.dead or totals.quarantined:
        parts = [f"{totals.dead} {_deliveries(totals.dead)} failed for good"] if totals.dead else []
        if totals.quarantined:
            parts.append(f"{totals.quarantined} postback{'s' * (totals.quarantined != 1)} could not be read")
        return Headline("wait", "Something needs you", f"{' and '.join(parts)}. All else flows.")
    return Headline("good", "Everything flows", waiting + "." if totals.waiting else "No delivery is waiting.")


def _deliveries(count: int) -> str:
    return "delivery" if count == 1 else "deliveries"


def chart(span: Span, slots: Sequence[dict[str, int]], since: float) -> dict[str, Any]:
    """The flow as bars: positions in an image 1000 wide, and what is written beside them."""
    received = [slot.get("received", 0) for slot in slots]
    sent = [slot.get("sent", 0) for slot in slots]
    failed = [slot.get("dead", 0) + slot.get("quarantined", 0) for slot in slots]
    top = nice_ceiling(max([*received, *sent, *failed], default=0))
    step = _WIDTH / max(len(slots), 1)
    return {
        "name": span.name,
        "span": span.words,
        "received": sum(received),
        "sent": sum(sent),
        "failed": sum(failed),
        "step": round(step, 2),
        "grid": [{"y": _y(value, top), "label": value} for value in (top, top // 2 if top > 1 else 0, 0) if value],
        "slots": [
            {
                "x": round(place * step, 2),
                "title": f"{_clock(since + place * span.step, '%d %b %H:%M')}: {received[place]} texts received, "
                f"{sent[place]} mails sent, {failed[place]} dead or unreadable",
                "bars": [
                    _bar(kind, place * step + offset * step, step * width, value, top)
                    for kind, offset, width, value in (
                        ("received", 0.08, 0.4, received[place]),
                        ("sent", 0.5, 0.4, sent[place]),
                        ("failed", 0.36, 0.26, failed[place]),
                    )
                    if value
                ],
            }
            for place in range(len(slots))
        ],
        "ticks": [
            {
                "x": round(tick * _WIDTH / span.ticks, 1),
                "anchor": {0: "start", span.ticks: "end"}.get(tick, "middle"),
                "label": "now" if tick == span.ticks else _clock(since + tick * span.seconds / span.ticks, span.clock),
            }
            for tick in range(span.ticks + 1)
        ],
    }


def nice_ceiling(value: int) -> int:
    """The round number at the top of the chart: 4, 10, 20, 50, 100 and so on."""
    if value <= 4:  # noqa: PLR2004 - the smallest chart
        return 4
    power: int = 10 ** int(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)


def _bar(kind: str, x: float, width: float, value: int, top: int) -> dict[str, Any]:
    y = _y(value, top)
    return {"kind": kind, "x": round(x, 2), "width": round(width, 2), "y": y, "height": round(_BOTTOM - y, 2)}


def _y(value: int, top: int) -> float:
    """Where a value is drawn; the smallest is still seen."""
    height = (_BOTTOM - _TOP) * value / top
    return round(_BOTTOM - max(height, 2.0), 2)


def duration(seconds: float) -> str:
    """About how long: `12 s`, `4 min`, `3 h`, `5 d`."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _clock(seconds: float, form: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "mask": mask,
        "duration": duration,
        "grouped": "{:,}".format,
        "moment": lambda seconds: _clock(seconds, "%d %b %Y %H:%M:%S UTC"),
        "ago": lambda seconds: f"{duration(time.time() - seconds)} ago",
        "until": lambda seconds: "now" if seconds <= time.time() else f"in {duration(seconds - time.time())}",
    }
    return environment


class StatusPage:
    """Draws the page from what is known."""

    def __init__(self) -> None:
        self._template = _environment().get_template("status.html")

    def draw(  # noqa: PLR0913 - a page shows this many things
        self,
        vitals: Vitals,
        span: Span,
        slots: Sequence[dict[str, int]],
        since: float,
        *,
        dead: Sequence[Entry],
        quarantined: Sequence[Quarantined],
        recent: Sequence[Entry],
        token: str,
        notice: str | None,
    ) -> str:
        """The page as HTML."""
        totals = vitals.totals
        return self._template.render(
            vitals=vitals,
            totals=totals,
            headline=headline(vitals),
            late=(vitals.oldest_age or 0) > LATE_SECONDS,
            chart=chart(span, slots, since),
            spans=SPANS,
            dead=dead,
            quarantined=quarantined,
            more=(totals.dead + totals.quarantined - len(dead) - len(quarantined)) if totals else 0,
            recent=recent,
            token=token,
            notice=notice,
            host=socket.gethostname(),
            now=vitals.at,
        )
