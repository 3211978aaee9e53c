"""What can go wrong between a program and CallFire, in words for the person who reads them.

One class per thing that a caller does about it. A message is one short paragraph: what was tried, what CallFire said,
what to do. It must never hold a secret: whoever raises one with text from outside passes it through `redaction.redact`.
"""

# ruff: noqa: N818 - names that say what happened (`NotFound`) read better where they are raised and caught

from typing import ClassVar


class ProviderError(Exception):
    """Base of everything this package raises on purpose.

    Attributes:
        advice: what the reader can do about it; a class of its own for each cause has its own.
    """

    without_traceback: ClassVar[bool] = True
    """To be shown as its message alone, wherever it ends up."""
    advice: ClassVar[str] = ""

    def __init__(self, said: str = "", advice: str | None = None) -> None:
        """Keep what happened (`said`) apart from what to do, so that a caller can put its own words around them."""
        self.said = said
        self.what_to_do = self.advice if advice is None else advice
        super().__init__(" ".join(part for part in (said, self.what_to_do) if part))


class InvalidSettings(ProviderError):
    """The configuration of the provider cannot be used; every mistake is listed, by name."""


class InvalidArguments(ProviderError):
    """The arguments of a subscription cannot be used; every mistake is listed, by property."""


class DuplicateDeclaration(ProviderError):
    """Two resources of one program declare the same subscription."""

    advice = "CallFire would post each event twice: keep one of the two, or give them different filters."


class AlreadyExists(ProviderError):
    """An identical subscription is live on the account and the resource says `adopt=False`."""

    advice = "Import it, delete it, or leave `adopt` at its default to take it over."


class CallFireError(ProviderError):
    """CallFire could not be asked, refused, or answered something unusable."""


class Temporary(CallFireError):
    """The same call may succeed in a moment, so it is repeated until `callfire:timeout` is over."""

    advice = (
        "It was tried until the time limit (callfire:timeout) was over. Run the command again when CallFire answers."
    )


class Unreachable(Temporary):
    """No connection: refused, reset, or cut before the whole answer was there."""

    advice = (
        "It was tried until the time limit (callfire:timeout) was over. "
        "Check the network, a proxy in between, and callfire:url."
    )


class TimedOut(Temporary):
    """CallFire did not answer in time."""

    advice = "Run the command again, or give CallFire more time with callfire:timeout (seconds)."


class Unavailable(Temporary):
    """CallFire said that it is not available: HTTP 429, 502, 503 or 504, or the fault UNAVAILABLE or TIMEOUT."""


class Unsettled(Temporary):
    """The account changes faster than it can be listed, so nobody can say what is on it."""

    advice = "Another program is creating or deleting subscriptions there. Run the command again when it is done."


class UnknownHost(CallFireError):
    """The name in callfire:url does not resolve."""

    advice = "Check the spelling of callfire:url (or CALLFIRE_URL) and this machine's DNS."


class TlsRefused(CallFireError):
    """No trusted TLS connection."""

    advice = (
        "If a proxy inspects TLS here, point REQUESTS_CA_BUNDLE at its certificate authority; "
        "otherwise check callfire:url and this machine's clock."
    )


class PasswordRefused(CallFireError):
    """HTTP 401: the API login or the password is wrong."""

    advice = (
        "Check callfire:login and callfire:password (those of the API, not of the web site). `pulumi destroy` and "
        "`pulumi refresh` use those of the last `up` unless CALLFIRE_PASSWORD is set or --run-program is given."
    )


class Forbidden(CallFireError):
    """HTTP 403 or the fault FORBIDDEN: the credentials are right and may not do this."""

    advice = "Ask the owner of the CallFire account to allow this API login to manage subscriptions."


class NotFound(CallFireError):
    """CallFire says that there is no such subscription."""

    advice = "It was deleted outside Pulumi: run `pulumi refresh`, then `pulumi up`."


class BadRequest(CallFireError):
    """CallFire finds the request itself wrong."""

    advice = "Correct the arguments that it names."


class LimitReached(CallFireError):
    """The account holds as many subscriptions as CallFire allows."""

    advice = (
        "CallFire allows 10,000 subscriptions in an account. See what they are with `python -m provider list`, "
        "and delete those that nobody needs with `python -m provider sweep`."
    )


class UnexpectedAnswer(CallFireError):
    """An answer that is not CallFire's: a web page, a redirect, XML that cannot be read."""

    advice = "Check that callfire:url is the base address of CallFire (https://www.callfire.com) or of a sandbox."
