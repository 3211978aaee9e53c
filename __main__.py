"""Texts to your CallFire numbers become emails: a forwarder, and a subscription that makes CallFire post to it.

config ─▶ forwarder, healthy at URL/postback/TOKEN ─▶ one Subscription per number, with that URL as its endpoint
"""

import pulumi

from hosting.engine import end_with_the_cli
from provider import Subscription
from stacks.placement import place_forwarder
from stacks.settings import StackSettings

end_with_the_cli()
settings = StackSettings.load(pulumi.Config(), pulumi.get_stack())
forwarder = place_forwarder(settings, pulumi.get_stack())

subscriptions = [
    Subscription(name, endpoint=forwarder.endpoint, trigger_event=settings.trigger_event, filter=filter_)
    for name, filter_ in settings.subscriptions().items()
]
pulumi.export("subscriptions", [subscription.id for subscription in subscriptions])
