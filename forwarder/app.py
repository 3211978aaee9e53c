"""How the parts are put together: the whole wiring of a running forwarder, from its settings to its sockets."""

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import uvloop

from forwarder.admin import AdminPages
from forwarder.alerts import Heartbeat, Notices, OperatorMail
from forwarder.commits import Commits
from forwarder.errors import ForwarderError, StartError, Unavailable
from forwarder.handover import hand_over, log_in
from forwarder.health import Health, TokenUse
from forwarder.ledger import Ledger
from forwarder.letters import Letters
from forwarder.mail import Letterhead
from forwarder.outbox import Outbox, Result, Routed, connect, lock_state_dir
from forwarder.postback import InboundText
from forwarder.receiver import Receiver
from forwarder.routes import Routes
from forwarder.sender import Sender
from forwarder.server import Server, inherited_sockets, listen, notify_systemd
from forwarder.settings import Settings
from forwarder.smtp import Envelope, Reply

DRAIN_SECONDS: Final = 8.0
"""How long mails under way may take to end when the forwarder stops."""
TOKEN_SECONDS: Final = 15.0
"""How often it is written down when tokens were used."""
FIRST_PURGE_SECONDS: Final = 60.0
"""How long after its start a forwarder has better things to do."""
PURGE_SECONDS: Final = 3600.0
"""How often what is old is forgotten."""

log: Final = logging.getLogger(__name__)


def router(routes: Routes) -> Callable[[InboundText], Routed]:
    """What becomes of a text, as it is stored: of one that is dropped unread, only that it was."""

    def route(text: InboundText) -> Routed:
        taken = routes.pick(text)
        kept = replace(text, message="", raw=b"") if taken.drop and taken.redact else text
        return Routed(kept, taken.name, taken.recipients.everyone, taken.redact)

    return route


class Forwarder:
    """One running forwarder."""

    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        self.settings = settings
        self.outbox = outbox
        self.ledger = Ledger(outbox)
        self.counts: Counter[str] = Counter()
        self._contact: float | None = None
        routes, tls = settings.all_routes, settings.mail_tls
        route = router(routes)
        letters = Letters(Letterhead(settings.mail_from, outbox.secret("threads")), routes, settings.contacts)
        self.sender = Sender(settings.mail_server, tls, letters.write, self._report, self._wake)
        self.commits = Commits(outbox, self.sender, self._count)
        tokens = [token.get_secret_value() for token in settings.tokens]
        self.receiver = Receiver(tokens, route, self.commits.store, time.time)
        self.token_use = TokenUse(outbox, tokens, self.receiver.token_used_at)
        self.health = Health(
            outbox, self.token_use, lambda: self.commits.doubtful, lambda: self.sender.trouble, self._last_contact
        )
        public = inherited_sockets() or [listen(settings.host, settings.port, "FORWARDER_PORT")]
        self.public = Server(self.receiver, *public, tls=settings.public_tls)
        pages = AdminPages(self.health, self.ledger, route, self.counts, self.receiver.answers)
        self.admin = Server(pages.app(), listen("127.0.0.1", settings.admin_port, "FORWARDER_ADMIN_PORT"))
        self.operator_mail = self._operator_mail()
        self._background: list[asyncio.Task[None]] = []

    def _operator_mail(self) -> OperatorMail | None:
        settings = self.settings
        if not settings.operator:
            return None

        async def send(mail: Envelope) -> Reply:
            return await hand_over(settings.mail_server, settings.mail_tls, mail)

        page = f"{self.admin.url}/ there"
        return OperatorMail(Notices(self.outbox), settings.mail_from, settings.operator, send, page)

    def _heartbeat(self, url: str) -> Heartbeat:
        async def contact() -> None:
            await log_in(self.settings.mail_server, self.settings.mail_tls)
            self._contact = time.time()

        return Heartbeat(url, self.health.check, contact)

    def _report(self, result: Result) -> None:
        self.commits.report(result)

    def _wake(self) -> None:
        self.commits.wake()

    def _count(self, counts: Counter[str]) -> None:
        self.counts.update(counts)
        if self.operator_mail and (counts["dead"] or counts["quarantined"]):
            self.operator_mail.notice()

    def _last_contact(self) -> float | None:
        return max((time for time in (self.sender.last_contact, self._contact) if time), default=None)

    async def run(self) -> None:
        """Serve until a signal asks to stop, then drain."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self.sender.start()
        committing = asyncio.create_task(self.commits.run())
        serving = [asyncio.create_task(server.run_until_stopped()) for server in (self.public, self.admin)]
        self._look_after_itself()
        log.info("forwarder.ready public=%s admin=%s", self.public.url, self.admin.url)
        notify_systemd("READY=1")
        await asyncio.wait([asyncio.create_task(stop.wait()), committing, *serving], return_when="FIRST_COMPLETED")
        notify_systemd("STOPPING=1")
        log.info("forwarder.stopping")
        self.commits.stop_claiming()
        self.public.should_exit = self.admin.should_exit = True
        await asyncio.gather(*serving, self.sender.stop(DRAIN_SECONDS), self._rest())
        await self.commits.stop()
        await committing
        log.info("forwarder.stopped")

    def _look_after_itself(self) -> None:
        """Start what goes on beside receiving and sending, and is never in their way."""
        url = self.settings.heartbeat_url
        tasks = [
            _every(TOKEN_SECONDS, TOKEN_SECONDS, self.token_use.save, "tokens.not_saved"),
            _every(FIRST_PURGE_SECONDS, PURGE_SECONDS, self._purge, "purge.failed"),
            *([self.operator_mail.run()] if self.operator_mail else []),
            *([self._heartbeat(url.get_secret_value()).run()] if url else []),
        ]
        self._background = [asyncio.create_task(task) for task in tasks]

    async def _rest(self) -> None:
        """Stop what `_look_after_itself` started."""
        self.ledger.stop_purging()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await _in_thread(self.token_use.save, "tokens.not_saved")

    def _purge(self) -> None:
        purged = self.ledger.purge(self.settings.keep_text_days, self.settings.keep_metadata_days)
        if purged.messages or purged.texts:
            log.info("purge.done messages=%s texts=%s", purged.messages, purged.texts)


async def _every(first: float, seconds: float, work: Callable[[], None], failure: str) -> None:
    """Do `work` in a thread, for the first time after so many seconds, and again and again."""
    await asyncio.sleep(first)
    while True:
        await _in_thread(work, failure)
        await asyncio.sleep(seconds)


async def _in_thread(work: Callable[[], None], failure: str) -> None:
    try:
        await asyncio.to_thread(work)
    except ForwarderError as error:
        log.warning("%s reason=%r", failure, str(error))
    except Exception:
        log.exception(failure)


def open_outbox(url: str) -> Outbox:
    """The outbox at `url`, in this release's version. Raises StartError."""
    outbox = Outbox(connect(url))
    try:
        outbox.migrate()
    except Unavailable as error:
        raise StartError(str(error)) from error
    return outbox


def serve(settings: Settings) -> None:
    """Run a forwarder until it is told to stop. Raises StartError if it cannot start."""
    lock = lock_state_dir(settings.state_dir)
    try:
        outbox = open_outbox(settings.outbox_url)
        try:
            lost = outbox.register()
            if lost:
                log.warning("outbox.taken_over deliveries=%s", lost)
            uvloop.run(_run(settings, outbox))
        except Unavailable as error:
            raise StartError(str(error)) from error
        finally:
            outbox.close()
    finally:
        lock.close()


async def _run(settings: Settings, outbox: Outbox) -> None:
    await Forwarder(settings, outbox).run()
