"""The log of SOAP calls: what was asked of the emulated API and what it answered."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

from sandbox.journal import BoundedLog, Feed, Topic


@dataclass(slots=True, kw_only=True)
class Call:
    """One SOAP call in the log. `status` is None where the connection was dropped; `duration` is in seconds."""

    id: int
    operation: str
    version: str
    account: str | None
    status: int | None
    fault: str | None
    trouble: str | None
    request: str
    answer: str
    duration: float
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def size(self) -> int:
        """Roughly its bytes in memory."""
        return 1000 + len(self.request) + len(self.answer)

    def as_json(self) -> dict[str, object]:
        """The call as the control API shows it."""
        return {
            "id": self.id,
            "operation": self.operation,
            "version": self.version,
            "account": self.account,
            "status": self.status,
            "fault": self.fault,
            "trouble": self.trouble,
            "at": self.at.isoformat(),
            "duration": self.duration,
            "request": self.request,
            "answer": self.answer,
        }


class CallLog:
    """The SOAP calls that came in: the last of them in full, all of them counted by operation."""

    def __init__(self, feed: Feed) -> None:
        self.calls: BoundedLog[Call] = BoundedLog(max_entries=2000, max_bytes=32 * 1024 * 1024)
        self.counts: Counter[str] = Counter()
        self._feed = feed
        self._ids = count(1)

    def add(self, **fields: object) -> None:
        """Record a call."""
        call = Call(id=next(self._ids), **fields)  # type: ignore[arg-type]  # checked by the dataclass's callers
        self.calls.add(call)
        self.counts[call.operation] += 1
        self._feed.publish(Topic.REQUESTS)

    def clear(self) -> None:
        """Forget all calls and count from nought."""
        self.calls.clear()
        self.counts.clear()
