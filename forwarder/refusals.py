"""Why a mail server could not be used: what happened, and what a person can do about it, by the names of the settings.

Where the server said something, its own words stand first. No secret is told.
"""

import os
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Final

import aiosmtplib

_PORT: Final = "FORWARDER_SMTP_PORT (usually 587 for starttls, 465 for tls) and FORWARDER_SMTP_SECURITY"
_REACH: Final = "that this machine may connect there"
_OTHER_NAME: Final = frozenset({62, 64})
"""OpenSSL's codes for a certificate that belongs to another name or address."""
_PERMANENT: Final = 500


def explain(error: BaseException, patience: float) -> str:
    """Say why connecting, TLS or the log-in failed; `patience` is how many seconds an answer had."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused ({cause.verify_message.rstrip('.')}); {_certificate_advice(cause)}"
        if isinstance(cause, aiosmtplib.SMTPResponseException):
            return f"{cause.code} {' '.join(cause.message.split())}; {_answer_advice(cause)}"
    return _without_a_word(causes, patience)


def _without_a_word(causes: Sequence[BaseException], patience: float) -> str:
    """What the server showed by what it did not say."""
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return f"no answer within {patience:g} s; check FORWARDER_SMTP_HOST, {_PORT}, and {_REACH}"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"it does not speak TLS there ({_words(causes)}); check {_PORT}"
    words = _words(causes)
    if not isinstance(causes[0], OSError):  # what the library says of an open connection; else a host may be in it
        if "auth" in words.lower():
            return f"it offers no log-in with a password there; check {_PORT}, or set no FORWARDER_SMTP_USERNAME"
        if "STARTTLS" in words:
            return f"it does not offer STARTTLS, so nothing was sent; check {_PORT}"
    return f"{words}; check FORWARDER_SMTP_HOST and FORWARDER_SMTP_PORT, and {_REACH}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__


def _certificate_advice(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OTHER_NAME:
        return "set FORWARDER_SMTP_HOST to a name that stands in it"
    return "nothing was sent; it must be valid, and this machine's trust store must know who signed it"


def _answer_advice(error: aiosmtplib.SMTPResponseException) -> str:
    if isinstance(error, aiosmtplib.SMTPAuthenticationError) and error.code >= _PERMANENT:
        return "check FORWARDER_SMTP_USERNAME and FORWARDER_SMTP_PASSWORD"
    return "the mail server's log, or whoever runs it, can say why"


def _words(causes: Sequence[BaseException]) -> str:
    """The system's own words where there are any, else the library's; of several tries, the first's."""
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return (cause.reason or str(cause)).replace("_", " ").lower()
        if isinstance(cause, OSError) and cause.errno:
            return str(cause.strerror if isinstance(cause, socket.gaierror) else os.strerror(cause.errno)).lower()
        number = re.search(r"\[Errno (\d+)\]", str(cause))  # asyncio gathers the tries at several addresses in one text
        if number:
            return os.strerror(int(number[1])).lower()
    return " ".join(str(causes[0]).split()).rstrip(".") or type(causes[0]).__name__
