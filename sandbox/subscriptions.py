"""What a CallFire subscription is and which events it wants: pure values, no HTTP, no storage."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum


class NotificationFormat(StrEnum):
    """In which form a subscription's postbacks arrive."""

    XML = "XML"
    JSON = "JSON"
    SOAP = "SOAP"
    EMAIL = "EMAIL"
    LEGACY = "LEGACY"


class TriggerEvent(StrEnum):
    """What a subscription is told about."""

    UNDEFINED_EVENT = "UNDEFINED_EVENT"
    """How API 1.1 shows a subscription made through 1.0, which knows no trigger: it is told about everything."""
    INBOUND_CALL_FINISHED = "INBOUND_CALL_FINISHED"
    INBOUND_TEXT_FINISHED = "INBOUND_TEXT_FINISHED"
    OUTBOUND_CALL_FINISHED = "OUTBOUND_CALL_FINISHED"
    OUTBOUND_TEXT_FINISHED = "OUTBOUND_TEXT_FINISHED"
    CAMPAIGN_STARTED = "CAMPAIGN_STARTED"
    CAMPAIGN_STOPPED = "CAMPAIGN_STOPPED"
    CAMPAIGN_FINISHED = "CAMPAIGN_FINISHED"


@dataclass(frozen=True, slots=True)
class SubscriptionFilter:
    """The conditions that an event must meet besides the trigger; those left out are met by every event."""

    broadcast_id: int | None = None
    batch_id: int | None = None
    from_number: str | None = None
    to_number: str | None = None
    inbound: bool | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the filters and triggers look at in an event; None where such an event has no such thing."""

    trigger: TriggerEvent
    from_number: str | None = None
    to_number: str | None = None
    broadcast_id: int | None = None
    batch_id: int | None = None
    inbound: bool | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """One subscription of an account, in the fields of CONTRACT.md section 2."""

    id: int
    endpoint: str
    enabled: bool = True
    notification_format: NotificationFormat = NotificationFormat.XML
    trigger_event: TriggerEvent = TriggerEvent.UNDEFINED_EVENT
    non_strict_ssl: bool | None = None
    expires_at: int | None = None
    filter: SubscriptionFilter = field(default_factory=SubscriptionFilter)

    def wants(self, event: Facts) -> bool:
        """Whether CallFire would tell this subscription about the event."""
        everything = self.trigger_event is TriggerEvent.UNDEFINED_EVENT
        return self.enabled and (everything or self.trigger_event is event.trigger) and _passes(self.filter, event)

    def as_json(self) -> dict[str, object]:
        """All fields under this project's names; ids are strings, as JavaScript cannot hold every xs:long."""
        document = asdict(self)
        document["id"] = str(self.id)
        return document


def _passes(wanted: SubscriptionFilter, event: Facts) -> bool:
    pairs = (
        (wanted.broadcast_id, event.broadcast_id),
        (wanted.batch_id, event.batch_id),
        (_digits(wanted.from_number), _digits(event.from_number)),
        (_digits(wanted.to_number), _digits(event.to_number)),
        (wanted.inbound, event.inbound),
    )
    return all(want is None or want == have for want, have in pairs)


def _digits(number: str | None) -> str | None:
    """A number as CallFire compares it: +1818… and 1818… are the same."""
    return None if number is None else number.removeprefix("+").upper()
