"""What can go wrong while a forwarder is put somewhere. Messages hold no secret: they end on the screen."""

import re
import sys
import traceback
from types import SimpleNamespace

# What the forwarder calls its settings, by the names that a stack's file has for them.
STACK_NAMES = {
    "FORWARDER_PORT": "forwarderPort",
    "FORWARDER_ADMIN_PORT": "forwarderAdminPort",
    "FORWARDER_MAIL_FROM": "mailFrom",
    "FORWARDER_MAIL_TO": "mailTo",
    "FORWARDER_SMTP_HOST": "smtpHost",
    "FORWARDER_SMTP_PORT": "smtpPort",
    "FORWARDER_SMTP_SECURITY": "smtpSecurity",
    "FORWARDER_SMTP_USERNAME": "smtpUsername",
    "FORWARDER_SMTP_PASSWORD": "smtpPassword",
    "FORWARDER_ROUTES": "routes",
    "FORWARDER_CONTACTS": "contacts",
    "FORWARDER_OPERATOR": "operator",
    "FORWARDER_HEARTBEAT_URL": "heartbeatUrl",
    "FORWARDER_DATABASE_URL": "databaseUrl",
}


class HostingError(Exception):
    """Base of this part's errors; the message says what happened, where, and what to do."""

    without_traceback = True


class NotHealthyError(HostingError):
    """A forwarder was started and did not become healthy; the message ends with its last words."""


class NotStoppedError(HostingError):
    """A forwarder can't be ended."""


def in_stack_names(said: str) -> str:
    """Return what a forwarder said with its settings called as in the stack's file, where they are set."""
    return re.sub(r"\bFORWARDER_[A-Z_]+", lambda found: STACK_NAMES.get(found[0], found[0]), said)


def show_errors_without_traceback() -> None:
    """Make the SDK's server of dynamic providers answer errors that say `without_traceback` with their message alone.

    It answers every exception with `traceback.format_exc()`, looked up in its own module, and has no other way out.
    Does nothing in any other process.
    """
    server = sys.modules["__main__"]
    if hasattr(server, "DynamicResourceProviderServicer") and getattr(server, "traceback", None) is traceback:
        server.traceback = SimpleNamespace(format_exc=format_exc)  # type: ignore[attr-defined] # the module's own import


def format_exc() -> str:
    """Return the error being handled, as a message where it says so, with its traceback otherwise."""
    error = sys.exc_info()[1]
    return str(error) if getattr(error, "without_traceback", False) else traceback.format_exc()
