"""Texts to your CallFire numbers become emails: a forwarder, and a subscription that makes CallFire post to it.

config ─▶ forwarder, healthy at URL/postback/TOKEN ─▶ one Subscription per number, with that URL as its endpoint
"""

import pulumi

from hosting import ExternalForwarder, LocalForwarder, PostbackToken
from provider import Subscription, SubscriptionFilterArgs
from stacks.settings import StackSettings

settings = StackSettings.load(pulumi.Config())

if settings.endpoint is not None:
    forwarder: ExternalForwarder | LocalForwarder = ExternalForwarder(settings.endpoint)
else:
    token = PostbackToken("postback-token")
    forwarder = LocalForwarder(
        "forwarder",
        state_dir=f".local/forwarder/{pulumi.get_stack()}",
        token=token.value,
        port=settings.forwarder_port,
        settings=settings.forwarder(),
        secrets=settings.forwarder_secrets(),
    )
    pulumi.export("forwarder", forwarder.url)

subscriptions = [
    Subscription(
        f"texts-to-{number}" if number else "texts",
        endpoint=forwarder.endpoint,
        trigger_event="INBOUND_TEXT_FINISHED",
        filter=SubscriptionFilterArgs(to_number=number) if number else None,
    )
    for number in settings.numbers or [None]
]
pulumi.export("subscriptions", [subscription.id for subscription in subscriptions])
