"""How the parts are put together: the whole wiring of a running forwarder, from its settings to its sockets."""

import asyncio
import logging
import signal
import ssl
import time
from collections import Counter
from typing import Final

import uvloop

from forwarder.admin import admin_app
from forwarder.commits import Commits
from forwarder.errors import StartError, Unavailable
from forwarder.mail import Letterhead, compose_email, default_body, default_subject
from forwarder.outbox import Delivery, Outbox, Routed, connect, lock_state_dir
from forwarder.postback import InboundText
from forwarder.receiver import Receiver
from forwarder.sender import Sender
from forwarder.server import Server, inherited_sockets, listen, notify_systemd
from forwarder.settings import Settings
from forwarder.smtp import Envelope, MailServer, Security

DRAIN_SECONDS: Final = 8.0
"""How long mails under way may take to end when the forwarder stops."""

log: Final = logging.getLogger(__name__)


def database_url(settings: Settings) -> str:
    """Where the outbox is."""
    if settings.database_url:
        return settings.database_url.get_secret_value()
    return f"sqlite:///{settings.state_dir.resolve() / 'outbox.db'}"


def mail_server(settings: Settings) -> MailServer:
    """Where mails are handed over."""
    password = settings.smtp_password
    return MailServer(
        settings.smtp_host,
        settings.mail_server_port,
        settings.smtp_security,
        settings.smtp_username,
        password.get_secret_value() if password else None,
    )


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Verified certificates, unless there is no TLS at all."""
    return None if settings.smtp_security is Security.NONE else ssl.create_default_context()


class Forwarder:
    """One running forwarder."""

    def __init__(self, settings: Settings, outbox: Outbox) -> None:
        self.settings = settings
        self.outbox = outbox
        self.counts: Counter[str] = Counter()
        letterhead = Letterhead(settings.mail_from, outbox.secret("threads"))

        def route(text: InboundText) -> Routed:
            return Routed(text, "default", settings.mail_to)

        def compose(delivery: Delivery) -> Envelope:
            text = delivery.text
            content = compose_email(
                letterhead,
                text,
                delivery.received_at,
                to=", ".join(settings.mail_to),
                subject=default_subject(text),
                body=default_body(text),
            )
            return Envelope(settings.mail_from, delivery.recipient, content)

        self.sender = Sender(mail_server(settings), tls_context(settings), compose, self._report, self._wake)
        self.commits = Commits(outbox, self.sender, self.counts.update)
        tokens = [token.get_secret_value() for token in settings.tokens]
        self.receiver = Receiver(tokens, route, self.commits.store, time.time)
        public = inherited_sockets() or [listen(settings.host, settings.port, "FORWARDER_PORT")]
        self.public = Server(self.receiver, *public)
        admin = listen("127.0.0.1", settings.admin_port, "FORWARDER_ADMIN_PORT")
        self.admin = Server(admin_app(self.readiness), admin)

    def _report(self, *args: object) -> None:
        self.commits.report(*args)  # type: ignore[arg-type]

    def _wake(self) -> None:
        self.commits.wake()

    def readiness(self) -> dict[str, object]:
        """Can it take postbacks, and can it get rid of them?"""
        try:
            self.outbox.check_writable()
            database = "ok"
        except Unavailable as error:
            database = str(error)
        return {
            "ready": database == "ok",
            "database": database,
            "mail_server": self.sender.trouble or "ok",
            "last_mail_at": self.sender.last_contact,
        }

    async def run(self) -> None:
        """Serve until a signal asks to stop, then drain."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self.sender.start()
        committing = asyncio.create_task(self.commits.run())
        serving = [asyncio.create_task(server.run_until_stopped()) for server in (self.public, self.admin)]
        log.info("forwarder.ready public=http://%s admin=http://%s", self.public.address, self.admin.address)
        notify_systemd("READY=1")
        await asyncio.wait([asyncio.create_task(stop.wait()), committing, *serving], return_when="FIRST_COMPLETED")
        notify_systemd("STOPPING=1")
        log.info("forwarder.stopping")
        self.commits.stop_claiming()
        self.public.should_exit = self.admin.should_exit = True
        await asyncio.gather(*serving, self.sender.stop(DRAIN_SECONDS))
        await self.commits.stop()
        await committing
        log.info("forwarder.stopped")


def serve(settings: Settings) -> None:
    """Run a forwarder until it is told to stop. Raises StartError if it cannot start."""
    lock = lock_state_dir(settings.state_dir)
    try:
        outbox = Outbox(connect(database_url(settings)))
        try:
            outbox.migrate()
            lost = outbox.register()
        except Unavailable as error:
            raise StartError(str(error)) from error
        if lost:
            log.warning("outbox.taken_over deliveries=%s", lost)
        uvloop.run(_run(settings, outbox))
    finally:
        lock.close()


async def _run(settings: Settings, outbox: Outbox) -> None:
    await Forwarder(settings, outbox).run()
