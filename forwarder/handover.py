"""One conversation with the mail server, apart from the deliveries: does it take us, or just this one mail?"""

import ssl
from dataclasses import replace

import aiosmtplib

from forwarder.errors import MailServerUnavailable
from forwarder.smtp import ConnectionLostError, Envelope, MailServer, Reply, Security, SmtpConnection


async def log_in(server: MailServer, context: ssl.SSLContext | None, seconds: float = 20.0) -> None:
    """Connect, log in if there is a password, and hang up. Raises MailServerUnavailable with what to do about it."""
    connection = await _connect(server, context, seconds)
    await connection.close()


async def hand_over(
    server: MailServer, context: ssl.SSLContext | None, envelope: Envelope, seconds: float = 20.0
) -> Reply:
    """Send one mail over a connection of its own; returns what the server said. Raises MailServerUnavailable."""
    connection = await _connect(server, context, seconds)
    try:
        connection.offer(envelope)
        reply = await connection.answer_to_offer(envelope)
        if reply is None:
            connection.deliver(envelope)
            reply = await connection.outcome()
    except ConnectionLostError as error:
        raise MailServerUnavailable(f"mail server {server.host}:{server.port}: {error}") from error
    finally:
        await connection.close()
    return reply


async def _connect(server: MailServer, context: ssl.SSLContext | None, seconds: float) -> SmtpConnection:
    try:
        return await SmtpConnection.open(replace(server, timeout=seconds), context)
    except MailServerUnavailable as error:
        raise MailServerUnavailable(f"{error}; {_advice(error.__cause__, server)}") from error


def _advice(cause: BaseException | None, server: MailServer) -> str:
    """What a person can do about it, by the names of the settings."""
    words = str(cause)
    if isinstance(cause, aiosmtplib.SMTPAuthenticationError) or "AUTH" in words:
        return "check FORWARDER_SMTP_USERNAME and FORWARDER_SMTP_PASSWORD"
    if "CERTIFICATE_VERIFY_FAILED" in words or "certificate" in words:
        return "FORWARDER_SMTP_HOST must be a name in its certificate, and this machine must know who signed it"
    if "STARTTLS" in words or "WRONG_VERSION_NUMBER" in words or server.security is Security.TLS:
        return "check FORWARDER_SMTP_PORT (usually 587 for starttls, 465 for tls) and FORWARDER_SMTP_SECURITY"
    return "check FORWARDER_SMTP_HOST and FORWARDER_SMTP_PORT, and that this machine may connect there"
