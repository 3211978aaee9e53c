"""Which difference between what is and what is declared means what: nothing, an update, or a replacement.

Pure. Only declared fields count; what CallFire adds by itself is no difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from provider import canonical
from provider.declaration import is_unknown
from provider.remote import FILTER_WIRE_NAMES, Properties


class Change(Enum):
    """What Pulumi does about a difference."""

    NOTHING = "nothing"
    UPDATE = "update"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Rule:
    """What follows when a property is given another value, and when it is taken away."""

    changed: Change
    taken_away: Change
    default: Any = None
    """What CallFire does when the property is absent: an absent one is equal to it."""


RULES: Final[Mapping[str, Rule]] = {
    "endpoint": Rule(Change.UPDATE, Change.UPDATE),
    "notification_format": Rule(Change.UPDATE, Change.UPDATE, default="XML"),
    "trigger_event": Rule(Change.UPDATE, Change.REPLACE),
    "enabled": Rule(Change.UPDATE, Change.UPDATE, default=True),
    "non_strict_ssl": Rule(Change.UPDATE, Change.UPDATE, default=False),
    "filter.broadcast_id": Rule(Change.UPDATE, Change.REPLACE),
    "filter.batch_id": Rule(Change.UPDATE, Change.REPLACE),
    "filter.from_number": Rule(Change.UPDATE, Change.REPLACE),
    "filter.to_number": Rule(Change.UPDATE, Change.REPLACE),
    "filter.inbound": Rule(Change.UPDATE, Change.REPLACE),
}
"""Whether CallFire clears what an update leaves out is unknown, so taking that away makes a new subscription."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The properties that differ, by what is done about them; `filter.to_number` stands for a field of the filter."""

    updates: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    changes: Properties = field(default_factory=dict, repr=False)
    """What an update sends: each changed property with its new value, and a changed filter whole."""

    def __bool__(self) -> bool:
        """Whether there is any difference."""
        return bool(self.updates or self.replaces)


def compare(olds: Mapping[str, Any], news: Mapping[str, Any]) -> Difference:
    """Compare what is (`olds`) with the canonical properties that are declared (`news`)."""
    before, after = _flatten(olds), _flatten(news)
    if is_unknown(news.get("filter")):
        after |= {name: news["filter"] for name in RULES if name.startswith("filter.")}
    found: dict[Change, list[str]] = {change: [] for change in Change}
    for name, rule in RULES.items():
        found[_judge(rule, before.get(name), after.get(name))].append(name)
    differing = [name.partition(".")[0] for name in found[Change.UPDATE]]
    return Difference(
        tuple(found[Change.UPDATE]),
        tuple(found[Change.REPLACE]),
        {name: _new_value(name, news) for name in dict.fromkeys(differing)},
    )


def _judge(rule: Rule, old: Any, new: Any) -> Change:
    if is_unknown(new):
        return rule.changed
    if (rule.default if old is None else old) == (rule.default if new is None else new):
        return Change.NOTHING
    return rule.taken_away if new is None else rule.changed


def _new_value(name: str, news: Mapping[str, Any]) -> Any:
    value = news.get(name)
    return RULES[name].default if value is None and name in RULES else value


def _flatten(properties: Mapping[str, Any]) -> Properties:
    flat = {name: _canonical(name, properties.get(name)) for name in RULES if "." not in name}
    filter_ = properties.get("filter")
    if isinstance(filter_, Mapping):
        flat |= {f"filter.{name}": _canonical(name, filter_.get(name)) for name in FILTER_WIRE_NAMES}
    return flat


_SPELLINGS: Final = {
    "endpoint": canonical.endpoint,
    "notification_format": canonical.notification_format,
    "trigger_event": canonical.trigger_event,
    "broadcast_id": canonical.record_id,
    "batch_id": canonical.record_id,
    "from_number": canonical.number,
    "to_number": canonical.number,
}


def _canonical(name: str, value: Any) -> Any:
    """Spell a value canonically whatever wrote it: an older version of this provider, an import file, CallFire."""
    spell = _SPELLINGS.get(name)
    return canonical.lenient(spell, value) if spell and value is not None and not is_unknown(value) else value
