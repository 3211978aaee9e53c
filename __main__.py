"""Texts to your CallFire numbers become emails: a forwarder, and a subscription that makes CallFire post to it.

config ─▶ forwarder, healthy at URL/postback/TOKEN ─▶ one Subscription per number, with that URL as its endpoint
"""

import pulumi

from provider import Subscription, SubscriptionFilterArgs
from stacks.placement import place_forwarder
from stacks.settings import StackSettings

settings = StackSettings.load(pulumi.Config(), pulumi.get_stack())
forwarder = place_forwarder(settings, pulumi.get_stack())

subscriptions = [
    Subscription(
        f"texts-to-{number}" if number else "texts",
        endpoint=forwarder.endpoint,
        trigger_event=settings.trigger_event,
        filter=SubscriptionFilterArgs(to_number=number) if number else None,
    )
    for number in settings.numbers or [None]
]
pulumi.export("subscriptions", [subscription.id for subscription in subscriptions])
