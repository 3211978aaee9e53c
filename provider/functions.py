"""Functions for programs: what is on the account, without declaring anything.

Each call asks CallFire, also during a preview. To keep a subscription in the state, use `Subscription.get`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pulumi

from provider.args import SubscriptionFilterArgs
from provider.errors import InvalidArguments, NotFound, ProviderError
from provider.redaction import redact
from provider.settings import Settings, read_settings

if TYPE_CHECKING:
    from provider.remote import RemoteSubscription


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionResult:
    """A subscription of the account, in the names of `SubscriptionArgs`.

    Attributes:
        id: CallFire's id.
        endpoint: a secret output, because it usually holds a token.
        notification_format: XML, JSON …
        trigger_event: None in API 1.0.
        enabled: whether CallFire posts at all.
        non_strict_ssl: None where CallFire does not say.
        filter: the fields that are set.
    """

    id: str
    endpoint: pulumi.Output[str]
    notification_format: str
    trigger_event: str | None
    enabled: bool
    non_strict_ssl: bool | None
    filter: Mapping[str, Any]


def get_subscription(id: str) -> SubscriptionResult:  # noqa: A002 - Pulumi's name for it
    """Return one subscription of the account.

    Raises:
        ProviderError: when there is none with this id, or CallFire cannot be asked.
    """
    from provider.account import account_of  # noqa: PLC0415 - a program that only declares need not load it
    from provider.canonical import record_id  # noqa: PLC0415 - as above

    if isinstance(id, pulumi.Output):
        raise InvalidArguments("get_subscription needs an id that is known; use `output.apply(get_subscription)`.")
    try:
        wanted = record_id(id)
    except ValueError as error:
        raise InvalidArguments(f"The id of get_subscription {error}.") from None
    settings = _settings()
    try:
        return _result(account_of(settings).get(wanted))
    except NotFound as error:
        advice = "`python -m provider list` shows the ids of the account."
        raise NotFound(f"There is no subscription {id} on the account ({error.said.rstrip('.')}).", advice) from None
    except ProviderError as error:
        raise _redacted(error, settings) from None


def get_subscriptions(
    filter: SubscriptionFilterArgs | Mapping[str, Any] | None = None,  # noqa: A002 - CallFire's word
    *,
    endpoint_prefix: str = "",
    trigger_event: str | None = None,
) -> list[SubscriptionResult]:
    """Return the account's subscriptions, all of them or those that match.

    Args:
        filter: only those whose own filter has these values.
        endpoint_prefix: only those whose endpoint begins so.
        trigger_event: only those with this trigger.

    Raises:
        ProviderError: an argument is wrong, or CallFire cannot be asked.
    """
    from provider.account import account_of  # noqa: PLC0415 - see get_subscription

    wanted, trigger = _wanted(filter, trigger_event)
    settings = _settings()
    try:
        listed = account_of(settings).all()
    except ProviderError as error:
        raise _redacted(error, settings) from None
    return [
        _result(found)
        for found in listed
        if found.properties["endpoint"].startswith(endpoint_prefix)
        and trigger in (None, found.properties.get("trigger_event"))
        and wanted.items() <= found.properties.get("filter", {}).items()
    ]


def _wanted(
    given: SubscriptionFilterArgs | Mapping[str, Any] | None, trigger_event: str | None
) -> tuple[dict[str, Any], str | None]:
    from provider.declaration import check_filter  # noqa: PLC0415 - see get_subscription

    if isinstance(given, SubscriptionFilterArgs):
        given = {field.name: getattr(given, field.name) for field in fields(given)}
    properties, problems = check_filter(given or {}, trigger_event)
    if problems:
        reasons = "; ".join(f"{problem.property} {problem.reason}" for problem in problems)
        raise InvalidArguments(f"The arguments of get_subscriptions cannot be used: {reasons}.")
    return properties.get("filter", {}), properties.get("trigger_event")


def _result(found: "RemoteSubscription") -> SubscriptionResult:
    properties = found.properties
    return SubscriptionResult(
        id=found.id,
        endpoint=pulumi.Output.secret(properties["endpoint"]),
        notification_format=properties["notification_format"],
        trigger_event=properties.get("trigger_event"),
        enabled=properties["enabled"],
        non_strict_ssl=properties.get("non_strict_ssl"),
        filter=properties.get("filter", {}),
    )


def _settings() -> Settings:
    return read_settings(pulumi.runtime.get_config, os.environ)


def _redacted(error: ProviderError, settings: Settings) -> ProviderError:
    return type(error)(redact(str(error), settings.password.value), "")
