"""CallFire subscriptions as a Pulumi resource."""

from provider.args import SubscriptionArgs, SubscriptionFilterArgs
from provider.errors import ProviderError
from provider.functions import SubscriptionResult, get_subscription, get_subscriptions
from provider.resource import Subscription

__all__ = [
    "ProviderError",
    "Subscription",
    "SubscriptionArgs",
    "SubscriptionFilterArgs",
    "SubscriptionResult",
    "get_subscription",
    "get_subscriptions",
]
