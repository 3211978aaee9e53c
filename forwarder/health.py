"""How a running forwarder is: what `/readyz`, the heartbeat and the status page tell, found out in one place."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from forwarder.errors import Unavailable
from forwarder.ledger import Ledger, Totals
from forwarder.outbox import Outbox
from forwarder.schema import token_use

LATE_SECONDS: Final = 1800.0
"""A delivery that is due for longer than this is late, and deliveries no longer flow."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """How it is at one moment; times are seconds since the epoch."""

    at: float
    database: str | None
    """Why nothing can be written down, if so."""
    mail_server: str | None
    """Why no mail can be handed over, if so."""
    last_contact: float | None
    """When the mail server last took something, or let us log in."""
    totals: Totals | None
    """None if the database cannot even be read."""
    tokens: tuple[float | None, ...]
    """When each token was last used, by its place in FORWARDER_TOKENS."""

    @property
    def oldest_age(self) -> float | None:
        """For how long the oldest delivery has been due, in seconds; None if none is."""
        oldest = self.totals and self.totals.oldest_at
        return max(0.0, self.at - oldest) if oldest else None

    @property
    def trouble(self) -> str | None:
        """Why deliveries don't flow; None if they do."""
        if self.database:
            return self.database
        if self.mail_server:
            return self.mail_server
        if self.oldest_age is not None and self.oldest_age > LATE_SECONDS:
            return f"a delivery has been waiting for {self.oldest_age / 60:.0f} minutes"
        return None

    def as_json(self) -> dict[str, Any]:
        """What `/readyz` answers."""
        return {
            "ready": self.database is None,
            "database": self.database or "ok",
            "mail_server": self.mail_server or "ok",
            "last_smtp_contact_at": self.last_contact,
            "oldest_delivery_age_seconds": self.oldest_age,
            "deferred_deliveries": self.totals.deferred if self.totals else None,
            "tokens": [{"last_used_at": used_at} for used_at in self.tokens],
        }


class Health:
    """Looks at one running forwarder. Everything here may take as long as the database does: not in the event loop."""

    def __init__(
        self,
        outbox: Outbox,
        tokens: "TokenUse",
        doubtful: Callable[[], bool],
        mail_trouble: Callable[[], str | None],
        last_contact: Callable[[], float | None],
    ) -> None:
        self._outbox = outbox
        self._ledger = Ledger(outbox)
        self._tokens = tokens
        self._doubtful = doubtful
        self._mail_trouble = mail_trouble
        self._last_contact = last_contact

    def check(self) -> Vitals:
        """How it is now."""
        database, totals = None, None
        try:
            self._outbox.check_writable(thoroughly=self._doubtful())
            totals = self._ledger.totals()
        except Unavailable as error:
            database = str(error)
        return Vitals(
            self._outbox.clock(),
            database,
            self._mail_trouble(),
            self._last_contact(),
            totals,
            self._tokens.last_used(),
        )


class TokenUse:
    """Remembers beyond a restart, and for all forwarders on one outbox, when each token was last used.

    An old token can be taken away once nobody uses it any more; a restart must not make it look unused.
    """

    def __init__(self, outbox: Outbox, tokens: Sequence[str], used_at: list[float | None]) -> None:
        key = outbox.secret("tokens")
        self._names = [hmac.digest(key, token.encode(), hashlib.sha256).hex() for token in tokens]
        self._used_at = used_at
        self._outbox = outbox
        self._saved: list[float | None] = [None] * len(tokens)

    def last_used(self) -> tuple[float | None, ...]:
        """When each token was last used anywhere, by its place; here, if the database cannot be read."""
        try:
            with self._outbox.reading() as connection:
                rows = connection.execute(sa.select(token_use).where(token_use.c.token.in_(self._names)))
                known = {row.token: row.used_at for row in rows}
        except Unavailable:
            known = {}
        return tuple(
            max((time for time in (known.get(name), used_at) if time is not None), default=None)
            for name, used_at in zip(self._names, self._used_at, strict=True)
        )

    def save(self) -> None:
        """Write down what is new. Raises Unavailable."""
        current = list(self._used_at)
        rows = [
            {"token": name, "used_at": used_at}
            for name, used_at, saved in zip(self._names, current, self._saved, strict=True)
            if used_at is not None and used_at != saved
        ]
        if rows:
            with self._outbox.transaction() as connection:
                self._outbox.insert_or_enlarge(connection, token_use, rows, "used_at")
        self._saved = current
