"""From subscriptions of the account to what `pulumi import --file` reads and the Python code that declares them.

Pure. `pulumi import` never asks a dynamic provider, so each entry carries its whole state, inputs and outputs, as this
version's `create` would have left it; endpoints are marked as secrets in it. The code never holds an endpoint: it reads
them from one secret of the stack's configuration.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from pulumi.dynamic.dynamic import serialize_provider
from pulumi.runtime import rpc

from provider.controller import NAME, SubscriptionProvider
from provider.lifecycle import RECORD
from provider.remote import RemoteSubscription, new_request_id
from provider.stacks import TYPE

CONFIG_KEY: Final = "subscriptionEndpoints"
"""The stack's secret that holds the endpoints, as a JSON object of resource name to endpoint."""

_DEFAULTS: Final[Mapping[str, Any]] = {
    "notification_format": "XML",
    "trigger_event": "INBOUND_TEXT_FINISHED",
    "enabled": True,
    "non_strict_ssl": None,
}


def name_resources(
    subscriptions: Iterable[RemoteSubscription], resources: Collection[str], endpoints: Mapping[str, str]
) -> dict[str, RemoteSubscription]:
    """Give each subscription a name that says what it is for, and its id where that is not enough.

    Args:
        subscriptions: what to name.
        resources: names that the stacks use.
        endpoints: the stack's secret, whose entries go on meaning what they mean.
    """
    named: dict[str, RemoteSubscription] = {}
    for subscription in subscriptions:
        name, endpoint = _describe(subscription), subscription.properties["endpoint"]
        taken = name in named or name in resources or endpoints.get(name, endpoint) != endpoint
        named[f"{name}-{subscription.id}" if taken else name] = subscription
    return named


def import_file(named: Mapping[str, RemoteSubscription]) -> dict[str, Any]:
    """Return the document for `pulumi import --file`."""
    reference = serialize_provider(SubscriptionProvider())
    return {"resources": [_entry(name, subscription, reference) for name, subscription in named.items()]}


def endpoints_file(named: Mapping[str, RemoteSubscription]) -> dict[str, str]:
    """Return what they add to the stack's secret."""
    return {name: subscription.properties["endpoint"] for name, subscription in named.items()}


def python_code(named: Mapping[str, RemoteSubscription]) -> str:
    """Return the program that declares them."""
    if not named:
        return ""
    body = "\n".join(_statement(name, subscription) for name, subscription in named.items())
    return f"""import pulumi

from provider import Subscription

endpoints = pulumi.Config().require_secret_object("{CONFIG_KEY}")

{body}"""


def _entry(name: str, subscription: RemoteSubscription, reference: str) -> dict[str, Any]:
    endpoint = subscription.properties["endpoint"]
    secret = {rpc._special_sig_key: rpc._special_secret_sig, "plaintext": json.dumps(endpoint)}  # noqa: SLF001 - as in lifecycle.py
    inputs = {**subscription.properties, "endpoint": secret, "adopt": True, NAME: name, "__provider": reference}
    return {
        "type": TYPE,
        "name": name,
        "id": subscription.id,
        "inputs": inputs,
        "outputs": {**inputs, RECORD: new_request_id()},
    }


def _statement(name: str, subscription: RemoteSubscription) -> str:
    properties = subscription.properties
    arguments = [f"endpoint=endpoints[{_literal(name)}]"]
    for argument, default in _DEFAULTS.items():
        value = properties.get(argument)
        if value != default:
            arguments.append(f"{argument}={_literal(value)}")
    if properties.get("filter"):
        fields = ", ".join(f"{_literal(field)}: {_literal(value)}" for field, value in properties["filter"].items())
        arguments.append(f"filter={{{fields}}}")
    lines = "".join(f"    {argument},\n" for argument in arguments)
    return f"Subscription(\n    {_literal(name)},\n{lines})\n"


def _literal(value: str | bool | None) -> str:  # noqa: FBT001 - what a property may hold
    """Write a value as Python does, but a string with the quotes of the rest of the code."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _describe(subscription: RemoteSubscription) -> str:
    trigger = subscription.properties.get("trigger_event") or "every-event"
    filter_ = subscription.properties.get("filter") or {}
    words = [str(trigger).removesuffix("_FINISHED").replace("_", "-").lower()]
    words += [f"from-{filter_['from_number']}"] if filter_.get("from_number") else []
    words += [f"to-{filter_['to_number']}"] if filter_.get("to_number") else []
    return re.sub(r"[^a-zA-Z0-9-]+", "-", "-".join(words))
