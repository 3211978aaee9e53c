"""Tells somebody when it stops: a heartbeat that falls silent, and a mail about what needs a person.

Neither is ever in the way of deliveries. The mail goes over a connection of its own, never through the outbox, so an
alert that cannot be sent is tried again later and is no reason for another alert.
"""

import asyncio
import hashlib
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid
from typing import Final

import httpx
import sqlalchemy as sa

from forwarder.errors import ForwarderError, MailServerUnavailable, Unavailable
from forwarder.health import Vitals
from forwarder.ledger import Entry, Ledger, Quarantined
from forwarder.mail import MAX_LINE
from forwarder.numbers import mask
from forwarder.outbox import Outbox
from forwarder.schema import alert
from forwarder.smtp import Envelope, Reply

BEAT_SECONDS: Final = 60.0
"""How often the heartbeat is sent."""
CONTACT_SECONDS: Final = 300.0
"""How old the last contact with the mail server may be before the heartbeat makes a new one."""
BUNDLE_SECONDS: Final = 5.0
"""How long what happens is gathered before it is told."""
LOOK_SECONDS: Final = 60.0
"""How often an unsent alert is tried again, and how soon what happened on other machines is seen."""
PAUSE_SECONDS: Final = 3600.0
"""Least time between two alerts."""
SKEW_SECONDS: Final = 60.0
"""How far two forwarders' clocks may differ; an alert from later than that was written by a clock that was wrong."""
SHOWN: Final = 20
"""Most deliveries and postbacks that one alert names."""

_OPERATOR: Final = "operator"
_POLICY: Final = SMTP.clone(max_line_length=MAX_LINE)

log: Final = logging.getLogger(__name__)


class Heartbeat:
    """Fetches a URL again and again, as long as deliveries flow."""

    def __init__(
        self,
        url: str,
        check: Callable[[], Vitals],
        log_in: Callable[[], Awaitable[None]],
    ) -> None:
        self._url = url
        self._check = check
        self._log_in = log_in
        self._silent: str | None = None

    async def run(self) -> None:
        """Beat until cancelled."""
        async with httpx.AsyncClient(timeout=10.0, follow_redirects=True) as client:
            while True:
                try:
                    await self.beat(client)
                except Exception:
                    log.exception("heartbeat.failed")
                await asyncio.sleep(BEAT_SECONDS)

    async def beat(self, client: httpx.AsyncClient) -> None:
        """Fetch the URL, unless there is trouble; never raises for what may happen, and never tells the URL."""
        trouble = await self._trouble()
        if trouble:
            if trouble != self._silent:
                log.warning("heartbeat.withheld reason=%r", trouble)
            self._silent = trouble
            return
        try:
            (await client.get(self._url)).raise_for_status()
        except httpx.HTTPStatusError as error:
            log.warning("heartbeat.failed status=%s", error.response.status_code)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            log.warning("heartbeat.failed error=%s", type(error).__name__)
        else:
            if self._silent:
                log.info("heartbeat.resumed")
            self._silent = None

    async def _trouble(self) -> str | None:
        """Why deliveries don't flow; a mail server that has not been heard of for long is asked."""
        vitals = await asyncio.to_thread(self._check)
        if vitals.trouble is None and vitals.at - (vitals.last_contact or 0.0) > CONTACT_SECONDS:
            try:
                await self._log_in()
            except MailServerUnavailable as error:
                return str(error)
        return vitals.trouble


@dataclass(frozen=True, slots=True)
class News:
    """What has happened since the operator was last told."""

    dead: Sequence[Entry]
    quarantined: Sequence[Quarantined]
    names: Collection[str]
    """By what all that needs a person is remembered, told before or not."""
    all_dead: int
    all_quarantined: int
    last_sent_at: float
    """When the alert before was sent."""


class Notices:
    """What the operator has been told, kept in the outbox: a restart tells nothing twice, nor do two forwarders.

    It is remembered one by one, not up to a time: clocks differ, and are put right.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._ledger = Ledger(outbox)

    def claim(self) -> News | None:
        """What is to be told now, by whoever calls; None if there is nothing, or if it is too soon.

        It counts as told only after `told`: what a forwarder dies with is told by the next, when the hour is over.
        """
        now = self._outbox.clock()
        sent_at = self._last()
        if -SKEW_SECONDS <= now - sent_at < PAUSE_SECONDS:
            return None
        news = self._untold(sent_at)
        if news is None:
            return None
        with self._outbox.transaction() as connection:
            self._outbox.insert_missing(connection, alert, {"name": _OPERATOR, "sent_at": 0.0, "told_until": 0.0})
            mine = connection.execute(
                sa.update(alert).where(alert.c.name == _OPERATOR, alert.c.sent_at == sent_at).values(sent_at=now)
            ).rowcount
        return news if mine else None

    def told(self, news: News) -> None:
        """It has been told, and is never told again; what needs nobody any more is forgotten."""
        now = self._outbox.clock()
        with self._outbox.transaction() as connection:
            connection.execute(sa.delete(alert).where(alert.c.name != _OPERATOR))
            for name in news.names:
                self._outbox.insert_missing(connection, alert, {"name": name, "sent_at": now, "told_until": 0.0})

    def give_back(self, news: News) -> None:
        """It could not be told: somebody tries again later."""
        with self._outbox.transaction() as connection:
            connection.execute(sa.update(alert).where(alert.c.name == _OPERATOR).values(sent_at=news.last_sent_at))

    def _last(self) -> float:
        with self._outbox.reading() as connection:
            return connection.scalar(sa.select(alert.c.sent_at).where(alert.c.name == _OPERATOR)) or 0.0

    def _untold(self, sent_at: float) -> News | None:
        dead = {_name("dead", each.text_id, each.recipient, each.changed_at): each for each in self._ledger.dead()}
        unread = {_name("quarantined", each.id): each for each in self._ledger.quarantined()}
        with self._outbox.reading() as connection:
            told = set(connection.scalars(sa.select(alert.c.name)))
        names = {*dead, *unread}
        if names <= told:
            return None
        totals = self._ledger.totals()
        return News(
            [each for name, each in dead.items() if name not in told],
            [each for name, each in unread.items() if name not in told],
            names,
            totals.dead,
            totals.quarantined,
            sent_at,
        )


def _name(*what: object) -> str:
    """A short name for one thing that needs a person; a delivery that died again is another."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


class OperatorMail:
    """Writes to the operator what needs a person: bundled, and at most once an hour."""

    def __init__(  # noqa: PLR0913 - the wiring of app.py
        self,
        notices: Notices,
        sender: str,
        operators: Sequence[str],
        hand_over: Callable[[Envelope], Awaitable[Reply]],
        page: str,
        *,
        bundle_seconds: float = BUNDLE_SECONDS,
    ) -> None:
        self._notices = notices
        self._sender = sender
        self._operators = operators
        self._hand_over = hand_over
        self._page = page
        self._bundle_seconds = bundle_seconds
        self._something = asyncio.Event()

    def notice(self) -> None:
        """Something has just died or been quarantined here: no need to wait for the next look."""
        self._something.set()

    async def run(self) -> None:
        """Look and tell until cancelled."""
        while True:
            try:
                await self.tell()
            except Unavailable as error:
                log.error("alert.not_sent reason=%r", str(error))
            except Exception:
                log.exception("alert.failed")
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._something.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(self._bundle_seconds)
            self._something.clear()

    async def tell(self) -> None:
        """Send an alert if there is one to send. Raises Unavailable."""
        news = await asyncio.to_thread(self._notices.claim)
        if news is None:
            return
        content = alert_mail(news, self._sender, self._operators, self._page)
        try:
            reached = [await self._send(operator, content) for operator in self._operators]
        except asyncio.CancelledError:
            self._notices.give_back(news)
            raise
        if any(reached):
            await asyncio.to_thread(self._notices.told, news)
            log.info("alert.sent dead=%s quarantined=%s", len(news.dead), len(news.quarantined))
        else:
            await asyncio.to_thread(self._notices.give_back, news)

    async def _send(self, operator: str, content: bytes) -> bool:
        """Hand it over for one operator; False, and a line in the log, if it was not taken."""
        try:
            reply = await self._hand_over(Envelope(self._sender, operator, content))
        except ForwarderError as error:
            reason = str(error)
        else:
            if reply.accepted:
                return True
            reason = str(reply)
        log.error("alert.not_sent to=%s reason=%r", operator, reason)
        return False


def alert_mail(news: News, sender: str, operators: Sequence[str], page: str) -> bytes:
    """The mail about `news`: no message text, numbers masked, and what to do."""
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = f"callfire-mail <{sender}>"
    mail["To"] = ", ".join(operators)
    mail["Subject"] = f"callfire-mail: {_summary(len(news.dead), len(news.quarantined))}"
    mail["Date"] = formatdate(usegmt=True)
    mail["Message-ID"] = make_msgid("alert", sender.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(
        "\n".join([*_dead_lines(news), *_quarantine_lines(news), *_advice(news, page)]) + "\n", cte="quoted-printable"
    )
    return mail.as_bytes()


def _summary(dead: int, quarantined: int) -> str:
    parts = [f"{dead} deliver{'y' if dead == 1 else 'ies'} failed for good"] if dead else []
    if quarantined:
        parts.append(f"{quarantined} postback{'s' * (quarantined != 1)} could not be read")
    return ", ".join(parts)


def _dead_lines(news: News) -> list[str]:
    if not news.dead:
        return []
    lines = [f"{_summary(len(news.dead), 0)} ({news.all_dead} dead in all):", ""]
    for entry in news.dead[:SHOWN]:
        lines.append(
            f"  text {entry.text_id} from {mask(entry.from_number)} to {entry.recipient}, {_moment(entry.changed_at)}"
        )
        lines.append(f"    {entry.answer}")
    return [*lines, *_more(len(news.dead)), ""]


def _quarantine_lines(news: News) -> list[str]:
    if not news.quarantined:
        return []
    lines = [f"{_summary(0, len(news.quarantined))} ({news.all_quarantined} in quarantine in all):", ""]
    for each in news.quarantined[:SHOWN]:
        lines.append(f"  {each.id}, {_moment(each.received_at)}, {each.size} bytes")
        lines.append(f"    {each.reason[:300]}")
    return [*lines, *_more(len(news.quarantined)), ""]


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN} more"] if count > SHOWN else []


def _advice(news: News, page: str) -> list[str]:
    lines = [f"What to do, on {socket.gethostname()}:", ""]
    if news.dead:
        lines += [
            "  python -m forwarder dead list",
            "  python -m forwarder dead replay --all     when the reason is gone",
        ]
    if news.quarantined:
        lines += [
            "  python -m forwarder quarantine list",
            "  python -m forwarder quarantine show ID",
        ]
    return [*lines, "", f"or look at {page}", "", "The next mail like this comes in an hour at the earliest."]


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%d %b %Y %H:%M} UTC"
