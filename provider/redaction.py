"""Keep secrets out of every text that leaves the provider.

A password or an endpoint's token can come back inside a sentence of CallFire's, of a proxy's or of a library's. So the
rule is not to look where it could stand, but to replace it in the whole text, last thing before it is shown.
"""

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit
from xml.sax.saxutils import escape

HIDDEN = "[secret]"
SHORTEST_TOKEN = 8
"""Path segments shorter than this are words such as `postback`, not tokens."""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A string that shows itself only when asked for `value`."""

    value: str

    def __repr__(self) -> str:
        """Hide the value, also inside the repr of what holds it."""
        return HIDDEN

    __str__ = __repr__


def redact(text: str, *secrets: str) -> str:
    """Return `text` without any of the secrets, in whatever spelling an XML or URL library may have given them."""
    for spelling in sorted({s for secret in secrets for s in _spellings(secret)}, key=len, reverse=True):
        text = text.replace(spelling, HIDDEN)
    return text


def describe_endpoint(endpoint: object) -> str:
    """Name an endpoint without its token: `https://mail.example.com/…`, or `an email address`."""
    if not isinstance(endpoint, str):
        return "an endpoint not known yet"
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an endpoint"
    if host:
        return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}/…"
    return "an email address" if "@" in endpoint else "an endpoint"


def endpoint_secrets(endpoint: object) -> tuple[str, ...]:
    """Everything in an endpoint that may be secret: the whole, user and password, the tokens in path and query."""
    if not isinstance(endpoint, str) or not endpoint:
        return ()
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        return (endpoint,)
    if not parts.netloc:
        return (endpoint,)
    user_info = parts.netloc.rpartition("@")[0]
    segments = [segment for segment in parts.path.split("/") if len(segment) >= SHORTEST_TOKEN]
    return tuple(s for s in (endpoint, user_info, parts.query, parts.fragment, *segments) if len(s) > 1)


def _spellings(secret: str) -> set[str]:
    return {s for s in (secret, escape(secret), quote(secret), quote(secret, safe=""), unquote(secret)) if s}
