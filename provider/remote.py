"""A subscription as the account holds it, and the three shapes it takes: CallFire's, the resource's, and its identity.

Pure: no SOAP, no Pulumi. Property names are those of the resource; every value is in its canonical form
(`canonical.py`) where it has one, and as CallFire spelled it where it has not, because an account holds what other
programs put there.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provider import canonical

Properties = dict[str, Any]
"""A resource's properties, as Pulumi hands them over: `endpoint`, `filter` …"""

Identity = tuple[str, str | None, tuple[tuple[str, Any], ...]]
"""Endpoint, trigger and filter: what makes CallFire post the same events to the same place."""

WIRE_NAMES = {
    "enabled": "Enabled",
    "non_strict_ssl": "NonStrictSsl",
    "endpoint": "Endpoint",
    "notification_format": "NotificationFormat",
    "trigger_event": "TriggerEvent",
    "filter": "SubscriptionFilter",
}
"""Property to element, in the order of CallFire's schema."""

FILTER_WIRE_NAMES = {
    "broadcast_id": "BroadcastId",
    "batch_id": "BatchId",
    "from_number": "FromNumber",
    "to_number": "ToNumber",
    "inbound": "Inbound",
}


@dataclass(frozen=True, slots=True)
class RemoteSubscription:
    """One subscription of the account.

    Attributes:
        id: CallFire's 64-bit id, as a string of digits.
        properties: those that CallFire holds, without the absent ones.
    """

    id: str
    properties: Properties = field(repr=False)

    @property
    def identity(self) -> Identity:
        """What it is found by when a resource looks for its own."""
        return identity(self.properties)

    def with_changes(self, changes: Mapping[str, Any]) -> "RemoteSubscription":
        """Return it as it is after an update."""
        return RemoteSubscription(self.id, {**self.properties, **changes})


@dataclass(frozen=True, slots=True)
class Page:
    """Up to 1000 subscriptions of the account, and how many there are in all."""

    total: int
    subscriptions: list[RemoteSubscription]


def new_request_id() -> str:
    """Return an id that no other request has."""
    return uuid.uuid4().urn


def identity(properties: Mapping[str, Any]) -> Identity:
    """Return the identity that canonical properties declare."""
    filter_ = properties.get("filter") or {}
    return (
        properties["endpoint"],
        properties.get("trigger_event"),
        tuple((name, filter_[name]) for name in FILTER_WIRE_NAMES if filter_.get(name) is not None),
    )


def to_wire(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return CallFire's elements for the given properties; the others are left out."""
    wire = {element: properties[name] for name, element in WIRE_NAMES.items() if properties.get(name) is not None}
    if "SubscriptionFilter" in wire:
        filter_ = wire["SubscriptionFilter"]
        wire["SubscriptionFilter"] = {
            element: filter_[name] for name, element in FILTER_WIRE_NAMES.items() if filter_.get(name) is not None
        }
    return wire


def from_wire(id_: int, wire: Mapping[str, Any]) -> RemoteSubscription:
    """Read CallFire's elements (the filter as a nested mapping) into canonical properties."""
    properties: Properties = {
        "enabled": wire.get("Enabled") is not False,
        "endpoint": canonical.lenient(canonical.endpoint, wire.get("Endpoint") or ""),
        "notification_format": (wire.get("NotificationFormat") or "XML").upper(),
    }
    if wire.get("NonStrictSsl") is not None:
        properties["non_strict_ssl"] = wire["NonStrictSsl"]
    if wire.get("TriggerEvent"):
        properties["trigger_event"] = wire["TriggerEvent"].upper()
    filter_ = _filter_from_wire(wire.get("SubscriptionFilter") or {})
    if filter_:
        properties["filter"] = filter_
    return RemoteSubscription(str(id_), properties)


def _filter_from_wire(wire: Mapping[str, Any]) -> Properties:
    filter_: Properties = {}
    for name, element in FILTER_WIRE_NAMES.items():
        value = wire.get(element)
        if value is None or value == "":
            continue
        if name.endswith("_id"):
            value = str(value)
        elif name.endswith("_number"):
            value = canonical.lenient(canonical.number, value)
        filter_[name] = value
    return filter_
