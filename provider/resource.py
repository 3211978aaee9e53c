"""The resource that a program declares."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pulumi
import pulumi.dynamic

from provider.args import FilterInput, SubscriptionArgs, to_inputs
from provider.controller import NAME, SubscriptionProvider
from provider.errors import InvalidArguments


class Subscription(pulumi.dynamic.Resource, module="callfire", name="Subscription"):
    """CallFire posts each event of one kind to an endpoint, for as long as this resource exists.

    The arguments are those of `SubscriptionArgs`, as keywords or in one object (a plain dict is as good). The outputs
    have the same names, and `id` is CallFire's id of the subscription, which every postback names.
    """

    endpoint: pulumi.Output[str]
    notification_format: pulumi.Output[str]
    trigger_event: pulumi.Output[str | None]
    enabled: pulumi.Output[bool]
    non_strict_ssl: pulumi.Output[bool | None]
    filter: pulumi.Output[dict[str, Any] | None]
    adopt: pulumi.Output[bool]

    def __init__(  # noqa: PLR0913 - the fields of a subscription
        self,
        resource_name: str,
        args: SubscriptionArgs | Mapping[str, Any] | None = None,
        opts: pulumi.ResourceOptions | None = None,
        *,
        endpoint: pulumi.Input[str] | None = None,
        notification_format: pulumi.Input[str] = "XML",
        trigger_event: pulumi.Input[str] | None = "INBOUND_TEXT_FINISHED",
        enabled: pulumi.Input[bool] = True,
        non_strict_ssl: pulumi.Input[bool] | None = None,
        filter: pulumi.Input[FilterInput] | None = None,  # noqa: A002 - CallFire's word
        adopt: pulumi.Input[bool] = True,
    ) -> None:
        """Declare a subscription; see `SubscriptionArgs` for what each argument means.

        Raises:
            InvalidArguments: neither or both of `args` and keyword arguments are given, or a dict has a wrong name.
        """
        if args is None and endpoint is not None:
            args = SubscriptionArgs(
                endpoint=endpoint,
                notification_format=notification_format,
                trigger_event=trigger_event,
                enabled=enabled,
                non_strict_ssl=non_strict_ssl,
                filter=filter,
                adopt=adopt,
            )
        elif args is None or endpoint is not None:
            raise InvalidArguments(
                f"Subscription {resource_name!r} needs an endpoint: either as a keyword or in args, not in both."
            )
        inputs = to_inputs(args)
        self._register(resource_name, inputs, opts)

    @classmethod
    def get(
        cls,
        resource_name: str,
        id: pulumi.Input[str],  # noqa: A002 - Pulumi's name for it
        opts: pulumi.ResourceOptions | None = None,
    ) -> "Subscription":
        """Return a subscription that exists on the account and is managed elsewhere.

        `pulumi up` and `preview` ask CallFire for it each time, and fail when there is none with this id.
        """
        found = cls.__new__(cls)
        inputs = dict.fromkeys(field.name for field in fields(SubscriptionArgs))
        found._register(  # noqa: SLF001 - its own
            resource_name, inputs, pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(id=id))
        )
        return found

    def _register(self, resource_name: str, inputs: dict[str, Any], opts: pulumi.ResourceOptions | None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["endpoint"])
        super().__init__(
            SubscriptionProvider(),
            resource_name,
            {**inputs, NAME: resource_name},
            pulumi.ResourceOptions.merge(opts, secret),
        )
