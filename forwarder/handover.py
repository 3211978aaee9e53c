"""One conversation with the mail server, apart from the deliveries: does it take us, or just this one mail?"""

import ssl
from dataclasses import replace
from typing import Final

from forwarder.errors import MailServerUnavailable
from forwarder.smtp import ConnectionLostError, Envelope, MailServer, Reply, SmtpConnection

PATIENCE: Final = 30.0
"""Seconds for a connection, and for each reply: a server may look up the name of who connects before it says a word."""


async def log_in(server: MailServer, context: ssl.SSLContext | None) -> None:
    """Connect, log in if there is a password, and hang up. Raises MailServerUnavailable with what to do about it."""
    connection = await SmtpConnection.open(replace(server, timeout=PATIENCE), context)
    await connection.close()


async def hand_over(server: MailServer, context: ssl.SSLContext | None, envelope: Envelope) -> Reply:
    """Send one mail over a connection of its own; returns what the server said. Raises MailServerUnavailable."""
    connection = await SmtpConnection.open(replace(server, timeout=PATIENCE), context)
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
