"""Which other subscriptions of the account get a stack's texts, too: whoever mails them there mails each once more.

That may be meant, while one moves to another server, or where another system keeps texts; so it is told, and not wrong.
"""

from collections.abc import Collection, Iterable

from provider import canonical
from provider.args import SubscriptionFilterArgs
from provider.redaction import describe_endpoint
from provider.remote import RemoteSubscription

OF_TEXTS = {None, "UNDEFINED_EVENT", "INBOUND_TEXT_FINISHED"}  # API 1.0 has no event, and 1.1 calls that undefined
ADVICE = (
    "If they are mailed there, too, each arrives twice: let no number stand in two stacks"
    " (`python -m provider list` shows whose a subscription is)."
)


def same_server(subscription: RemoteSubscription, url: str) -> bool:
    """Tell whether a subscription posts to the server of this address, with whatever token."""
    here = canonical.lenient(canonical.endpoint, url)
    return describe_endpoint(subscription.properties["endpoint"]) == describe_endpoint(here)


def also_posted(declared: Iterable[SubscriptionFilterArgs | None], others: Iterable[RemoteSubscription]) -> list[str]:
    """Say which of the texts that are declared `others` get, in a line for each of their servers, and what to do."""
    wanted = {canonical.number(filter_.to_number) if filter_ else "" for filter_ in declared}
    numbers: dict[str, set[str]] = {}
    ids: dict[str, list[str]] = {}
    for other in others:
        common = in_common(wanted, other)
        if common:
            where = describe_endpoint(other.properties["endpoint"])
            numbers.setdefault(where, set()).update(common)
            ids.setdefault(where, []).append(other.id)
    lines = []
    for where, of_these in ids.items():
        texts = "all texts" if "" in numbers[where] else f"texts to {', '.join(sorted(numbers[where]))}"
        lines.append(f"{texts} also go to {where} (subscription{'s' * (len(of_these) > 1)} {', '.join(of_these)})")
    return [*lines, ADVICE] if lines else []


def in_common(wanted: Collection[str], other: RemoteSubscription) -> set[str]:
    """Return the `wanted` numbers whose texts a subscription gets, too; an empty one stands for all numbers."""
    filter_ = other.properties.get("filter", {})
    of_texts = other.properties.get("trigger_event") in OF_TEXTS and filter_.get("inbound") is not False
    if not other.properties["enabled"] or not of_texts:
        return set()
    to = filter_.get("to_number", "")
    return {to} if "" in wanted else {number for number in wanted if to in {"", number}}
