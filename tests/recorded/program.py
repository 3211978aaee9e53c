"""Every argument of a subscription, at least once. The recordings beside it were made with it, so it never changes."""

import pulumi

from provider import Subscription, SubscriptionArgs, SubscriptionFilterArgs

ENDPOINT = "https://mail.example.com/postback/0123456789abcdef0123456789abcdef"

Subscription("plain", endpoint=ENDPOINT)
Subscription(
    "filtered",
    endpoint=ENDPOINT,
    notification_format="json",
    trigger_event="OUTBOUND_TEXT_FINISHED",
    enabled=False,
    non_strict_ssl=True,
    filter=SubscriptionFilterArgs(
        broadcast_id="9007199254740993",
        batch_id=7,
        from_number="67076",
        to_number=pulumi.Output.secret("+1 (818) 646-9991"),
        inbound=False,
    ),
    adopt=False,
)
Subscription("from-a-dict", {"endpoint": ENDPOINT, "trigger_event": "CAMPAIGN_FINISHED", "filter": {"batch_id": "8"}})
mail = Subscription("mail", SubscriptionArgs(endpoint="office@example.com", notification_format="EMAIL"))
Subscription(
    "plain-http", endpoint=mail.id.apply(lambda id_: f"http://10.0.0.7/{id_}"), trigger_event="UNDEFINED_EVENT"
)
