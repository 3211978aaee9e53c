"""What a program writes: the arguments of a `Subscription`, each an `Input` (a value, an `Output`, or a secret)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pulumi

from provider.errors import InvalidArguments


@dataclass(kw_only=True)
class SubscriptionFilterArgs:
    """Which events CallFire posts; a field left out filters nothing. Taking a field away replaces the subscription.

    Attributes:
        broadcast_id: only events of this broadcast (campaign). A 64-bit id, best as a string.
        batch_id: only events of this batch of a broadcast. A 64-bit id, best as a string.
        from_number: only events from this phone number, in any usual spelling, or short code.
        to_number: only events to this number of yours: a phone number, a short code (`67076`), a keyword, or both
            (`67076:JOIN`).
        inbound: only inbound (True) or outbound (False) events. For API 1.0; in 1.1 the trigger event says it.
    """

    broadcast_id: pulumi.Input[str | int] | None = None
    batch_id: pulumi.Input[str | int] | None = None
    from_number: pulumi.Input[str | int] | None = None
    to_number: pulumi.Input[str | int] | None = None
    inbound: pulumi.Input[bool] | None = None


FilterInput = SubscriptionFilterArgs | Mapping[str, Any]


@dataclass(kw_only=True)
class SubscriptionArgs:
    """The arguments of a `Subscription`.

    Attributes:
        endpoint: where CallFire posts: an http(s) URL, or an email address with `notification_format` EMAIL. Kept as a
            secret, because its path or query usually holds a token.
        notification_format: what CallFire posts: XML, JSON, SOAP, EMAIL or (deprecated by CallFire) LEGACY. JSON
            mangles texts that look like numbers; ask for XML.
        trigger_event: which event, one of INBOUND_TEXT_FINISHED, OUTBOUND_TEXT_FINISHED, INBOUND_CALL_FINISHED,
            OUTBOUND_CALL_FINISHED, CAMPAIGN_STARTED, CAMPAIGN_STOPPED, CAMPAIGN_FINISHED or UNDEFINED_EVENT. API 1.0
            has none and posts every event: say None there.
        enabled: whether CallFire posts at all.
        non_strict_ssl: whether CallFire accepts an endpoint's certificate that it cannot verify, such as a self-signed
            one. Left out, it does not.
        filter: which events of that kind.
        adopt: whether an identical subscription that is already on the account (same endpoint, trigger and filter) is
            taken over instead of a second one being made. This is what makes an interrupted `pulumi up` safe.
    """

    endpoint: pulumi.Input[str]
    notification_format: pulumi.Input[str] = "XML"
    trigger_event: pulumi.Input[str] | None = "INBOUND_TEXT_FINISHED"
    enabled: pulumi.Input[bool] = True
    non_strict_ssl: pulumi.Input[bool] | None = None
    filter: pulumi.Input[FilterInput] | None = None
    adopt: pulumi.Input[bool] = True


def to_inputs(args: SubscriptionArgs | Mapping[str, Any]) -> dict[str, Any]:
    """Return the input properties of a resource, from either spelling of the arguments.

    Raises:
        InvalidArguments: when a mapping lacks the endpoint or has a name that does not exist.
    """
    if not isinstance(args, SubscriptionArgs):
        args = _from_mapping(args)
    inputs = {field.name: getattr(args, field.name) for field in fields(args)}
    filter_ = inputs["filter"]
    if isinstance(filter_, SubscriptionFilterArgs):
        inputs["filter"] = {field.name: getattr(filter_, field.name) for field in fields(filter_)}
    inputs["endpoint"] = pulumi.Output.secret(args.endpoint)
    return inputs


def _from_mapping(args: Mapping[str, Any]) -> SubscriptionArgs:
    known = {field.name for field in fields(SubscriptionArgs)}
    problems = [f"{name} is not one of {', '.join(sorted(known))}" for name in args if name not in known]
    if "endpoint" not in args:
        problems.append("endpoint is missing")
    if problems:
        raise InvalidArguments("The arguments of the subscription cannot be used: " + "; ".join(problems) + ".")
    return SubscriptionArgs(**args)
