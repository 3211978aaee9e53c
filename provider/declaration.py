"""What a program may declare: the pydantic model behind `SubscriptionArgs`, and every rule that spans two fields.

Pure. A value that Pulumi does not know yet (during a preview) is left alone, and so are the rules that depend on it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pulumi.output import Unknown
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from provider import canonical
from provider.remote import FILTER_WIRE_NAMES, WIRE_NAMES, Properties
from provider.settings import is_private_host


def is_unknown(value: object) -> bool:
    """Whether a preview does not know this value yet."""
    return isinstance(value, Unknown)


def _leave_unknown_alone(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return value if value is None or is_unknown(value) else validate(value)


def _canonical(canonicalise: Callable[[object], str]) -> BeforeValidator:
    return BeforeValidator(canonicalise)


_Known = WrapValidator(_leave_unknown_alone)
_Number = Annotated[str, _canonical(canonical.number), _Known]
_Id = Annotated[str, _canonical(canonical.record_id), _Known]
_Flag = Annotated[bool, _Known]


class FilterDeclaration(BaseModel):
    """Which events a subscription is for; a field left out filters nothing."""

    model_config = ConfigDict(extra="forbid")

    broadcast_id: _Id | None = None
    batch_id: _Id | None = None
    from_number: _Number | None = None
    to_number: _Number | None = None
    inbound: _Flag | None = None


class SubscriptionDeclaration(BaseModel):
    """One subscription, as `SubscriptionArgs` describes it, field by field."""

    model_config = ConfigDict(extra="forbid")

    endpoint: Annotated[str, _canonical(canonical.endpoint), _Known]
    notification_format: Annotated[str, _canonical(canonical.notification_format), _Known] | None = None
    trigger_event: Annotated[str, _canonical(canonical.trigger_event), _Known] | None = None
    enabled: _Flag | None = None
    non_strict_ssl: _Flag | None = None
    filter: Annotated[FilterDeclaration, _Known] | None = None
    adopt: _Flag | None = None


UNKNOWN: Final = Unknown()


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake: the property that it is in, and a reason that reads after its name."""

    property: str
    reason: str


@dataclass(slots=True)
class Checked:
    """The canonical properties, and what is wrong or questionable about them."""

    properties: Properties
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(properties: Mapping[str, Any], api_version: str) -> Checked:
    """Normalise the properties of one subscription and find all its mistakes at once.

    A broken field is treated as unknown while the other rules are applied, so that one mistake hides no other.
    """
    given = {name: value for name, value in properties.items() if value is not None}
    problems: list[Problem] = []
    if "endpoint" not in given:
        problems.append(Problem("endpoint", "is missing: say where CallFire posts the events"))
        given["endpoint"] = UNKNOWN
    try:
        declaration = SubscriptionDeclaration.model_validate(given)
    except ValidationError as error:
        problems += [_problem(e["loc"], e["type"], e["msg"]) for e in error.errors(include_input=False)]
        declaration = SubscriptionDeclaration.model_validate(_without_broken(given, error))
    canonical_properties = _dump(declaration)
    problems += _contradictions(canonical_properties, api_version)
    return Checked(canonical_properties, problems, _warnings(canonical_properties))


def check_filter(filter_: Mapping[str, Any], trigger_event: object) -> tuple[Properties, list[Problem]]:
    """Normalise what subscriptions are looked for by; the same rules, without those about an endpoint."""
    given = {"filter": dict(filter_), "trigger_event": trigger_event, "endpoint": UNKNOWN}
    checked = check(given, api_version="any")
    return checked.properties, checked.problems


def _dump(declaration: SubscriptionDeclaration) -> Properties:
    filter_ = declaration.filter
    if isinstance(filter_, FilterDeclaration):
        dumped: Any = {name: v for name in FILTER_WIRE_NAMES if (v := getattr(filter_, name)) is not None}
    else:
        dumped = filter_
    values: Properties = {
        "endpoint": declaration.endpoint,
        "notification_format": "XML" if declaration.notification_format is None else declaration.notification_format,
        "trigger_event": declaration.trigger_event,
        "enabled": True if declaration.enabled is None else declaration.enabled,
        "non_strict_ssl": declaration.non_strict_ssl,
        "filter": dumped or None,
        "adopt": True if declaration.adopt is None else declaration.adopt,
    }
    return {name: value for name, value in values.items() if value is not None}


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> Problem:
    path = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        names = FILTER_WIRE_NAMES if len(location) > 1 else [*WIRE_NAMES, "adopt"]
        return Problem(path, "is not a property of a subscription; there are " + ", ".join(names))
    if kind.startswith("bool"):
        return Problem(path, "must be true or false")
    if kind.startswith(("model", "dict")):
        return Problem(path, "must hold fields: " + ", ".join(FILTER_WIRE_NAMES))
    return Problem(path, message.removeprefix("Value error, "))


def _without_broken(given: Properties, error: ValidationError) -> Properties:
    remaining = dict(given)
    for problem in error.errors(include_input=False):
        top, *below = (str(part) for part in problem["loc"])
        extra = problem["type"] == "extra_forbidden"
        if not below:
            remaining[top] = UNKNOWN
            if extra:
                del remaining[top]
        else:
            remaining[top] = {k: v for k, v in remaining[top].items() if k != below[0]}
            if not extra:
                remaining[top][below[0]] = UNKNOWN
    return remaining


def _contradictions(properties: Properties, api_version: str) -> list[Problem]:
    endpoint = _known(properties.get("endpoint"))
    format_ = _known(properties.get("notification_format"))
    problems: list[Problem] = []
    if endpoint is not None and format_ is not None:
        if format_ == "EMAIL" and not canonical.is_email(endpoint):
            problems.append(Problem("endpoint", "must be an email address, because notification_format is EMAIL"))
        if format_ != "EMAIL" and canonical.is_email(endpoint):
            problems.append(Problem("notification_format", "must be EMAIL, because endpoint is an email address"))
    if endpoint is not None and properties.get("non_strict_ssl") is True and not endpoint.startswith("https://"):
        problems.append(Problem("non_strict_ssl", "is for https:// endpoints only; leave it out"))
    return problems + _of_version(properties, api_version)


def _contradictions_1_1(properties: Properties) -> list[Problem]:
    if "trigger_event" in properties:
        return []
    return [
        Problem("trigger_event", "is missing: CallFire API 1.1 requires one of " + ", ".join(canonical.TRIGGER_EVENTS))
    ]


def _contradictions_1_0(properties: Properties) -> list[Problem]:
    problems: list[Problem] = []
    if "trigger_event" in properties:
        problems.append(
            Problem(
                "trigger_event",
                "does not exist in CallFire API 1.0, which posts every kind of event: "
                "say trigger_event=None, or use callfire:apiVersion 1.1",
            )
        )
    if _known(properties.get("notification_format")) == "LEGACY":
        problems.append(Problem("notification_format", "LEGACY does not exist in CallFire API 1.0"))
    filter_ = _known(properties.get("filter")) or {}
    for name in ("from_number", "to_number"):
        value = _known(filter_.get(name))
        if value is not None and not value.removeprefix("+").isdigit():
            problems.append(Problem(f"filter.{name}", "must be digits in CallFire API 1.0, which knows no keywords"))
    return problems


def _of_version(properties: Properties, api_version: str) -> list[Problem]:
    if api_version == "1.0":
        return _contradictions_1_0(properties)
    return _contradictions_1_1(properties) if api_version == "1.1" else []


def _warnings(properties: Properties) -> list[str]:
    endpoint = _known(properties.get("endpoint"))
    if endpoint is None or not endpoint.startswith("http://"):
        return []
    host = urlsplit(endpoint).hostname or ""
    if is_private_host(host):
        return []
    return [f"The endpoint at {host} is plain http: texts, and the token in its URL, cross the internet unprotected."]


def _known(value: Any) -> Any:
    return None if is_unknown(value) else value


def is_known(properties: Mapping[str, Any]) -> bool:
    """Whether no property, and no field of the filter, is still unknown."""
    filter_ = properties.get("filter") or {}
    values = [*properties.values(), *(filter_.values() if isinstance(filter_, Mapping) else ())]
    return not any(is_unknown(value) for value in values)
