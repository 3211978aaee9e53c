"""Which other subscriptions of the account get a stack's texts, too: whoever mails them there mails each once more.

That may be meant, while one moves to another server, or where another system keeps texts; so it is told, and not wrong.
"""

from collections.abc import Collection, Iterable, Sequence

from provider import canonical
from provider.args import SubscriptionFilterArgs
from provider.redaction import describe_endpoint
from provider.remote import RemoteSubscription

OF_TEXTS = "INBOUND_TEXT_FINISHED"
OF_ANY = {None, "UNDEFINED_EVENT"}  # API 1.0 has no trigger event, and 1.1 calls that undefined
BY_NUMBER = {"to_number", "inbound"}
MOST_NAMED = 5
ADVICE = (
    "If they are mailed there, too, each arrives twice: let no number stand in two stacks"
    " (`python -m provider list` shows whose a subscription is)."
)


def without_token(endpoint: str) -> str:
    """Return an endpoint up to its token, which is the last part of its path."""
    address = canonical.lenient(canonical.endpoint, endpoint)
    return address.partition("?")[0].rpartition("/")[0] or address


def also_posted(declared: Iterable[SubscriptionFilterArgs | None], others: Iterable[RemoteSubscription]) -> list[str]:
    """Say which of the texts that are declared `others` get, in a line for each of their servers, and what to do."""
    wanted = {canonical.number(filter_.to_number) if filter_ else "" for filter_ in declared}
    numbers: dict[str, set[str]] = {}
    ids: dict[str, list[str]] = {}
    for other in others:
        common = in_common(wanted, other)
        if common:
            where = f"{'also' if surely(other) else 'may also'} go to {describe_endpoint(other.properties['endpoint'])}"
            numbers.setdefault(where, set()).update(common)
            ids.setdefault(where, []).append(other.id)
    lines = []
    for where, of_these in ids.items():
        texts = "all texts" if "" in numbers[where] else f"texts to {some(sorted(numbers[where]))}"
        lines.append(f"{texts} {where} (subscription{'s' * (len(of_these) > 1)} {some(of_these)})")
    return [*lines, ADVICE] if lines else []


def some(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + f" and {more} more" * (more > 0)


def surely(other: RemoteSubscription) -> bool:
    """Tell whether a subscription gets every text to its number: by API 1.0 nobody can tell."""
    return other.properties.get("trigger_event") == OF_TEXTS and other.properties.get("filter", {}).keys() <= BY_NUMBER


def in_common(wanted: Collection[str], other: RemoteSubscription) -> set[str]:
    """Return the `wanted` numbers whose texts a subscription gets, too; an empty one stands for all numbers."""
    filter_ = other.properties.get("filter", {})
    of_texts = other.properties.get("trigger_event") in {OF_TEXTS, *OF_ANY} and filter_.get("inbound") is not False
    if not other.properties["enabled"] or not of_texts:
        return set()
    to = filter_.get("to_number", "")
    return {to} if "" in wanted else {number for number in wanted if to.casefold() in {"", number.casefold()}}
