"""CallFire accounts and the subscriptions in them: what the five operations do, without SOAP or HTTP around it."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from secrets import compare_digest

from sandbox.soap import FaultCode, SoapFault, SubscriptionFields
from sandbox.subscriptions import Facts, NotificationFormat, Subscription, SubscriptionFilter

MAX_SUBSCRIPTIONS = 10_000
"""CallFire's limit for one account."""
MAX_PAGE = 1000
"""The most subscriptions that one query returns."""
MAX_ENDPOINT = 2000
"""Characters of an endpoint. CallFire's limit is not known; this one bounds memory."""
MAX_REQUEST_IDS = 10_000
"""RequestIds that an account remembers; how long CallFire remembers them is not known."""
MAX_REQUEST_ID = 500
"""Characters of a RequestId; bounds memory."""

_URL = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)
_EMAIL = re.compile(r"(?:mailto:)?([^@\s:/]+@[^@\s/]+)", re.IGNORECASE)


@dataclass(slots=True)
class Quirks:
    """What nobody outside CallFire knows, to be switched so that a client can be tried against either answer."""

    dedupe_request_ids: bool = True
    """Whether a repeated RequestId returns the first answer instead of creating a second subscription."""
    update_replaces_filter: bool = False
    """Whether an update with a SubscriptionFilter clears the filter fields that it leaves out."""

    def reset(self) -> None:
        """Back to the defaults."""
        self.__init__()  # type: ignore[misc]  # the same object is held by others


@dataclass(slots=True)
class Account:
    """One account: its credentials and its subscriptions, which no other account sees."""

    login: str
    password: str
    subscriptions: dict[int, Subscription] = field(default_factory=dict)
    _created_by: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def create(self, asked: SubscriptionFields, ident: Callable[[], int], version: str) -> Subscription:
        """Add a subscription.

        Raises:
            SoapFault: BAD_REQUEST for what is missing or wrong, FORBIDDEN for one too many.
        """
        if "endpoint" not in asked.fields:
            raise SoapFault(FaultCode.BAD_REQUEST, "Endpoint is required")
        if version != "1.0" and "trigger_event" not in asked.fields:
            raise SoapFault(FaultCode.BAD_REQUEST, "TriggerEvent is required")
        if len(self.subscriptions) >= MAX_SUBSCRIPTIONS:
            raise SoapFault(
                FaultCode.FORBIDDEN, f"the account has {MAX_SUBSCRIPTIONS} subscriptions, which is the limit"
            )
        filters = SubscriptionFilter(**(asked.filter or {}))
        draft = Subscription(id=0, filter=filters, **asked.fields)
        _check_endpoint(draft)
        subscription = replace(draft, id=ident())
        self.subscriptions[subscription.id] = subscription
        return subscription

    def get(self, ident: int) -> Subscription:
        """The subscription with that id.

        Raises:
            SoapFault: NOT_FOUND.
        """
        if ident not in self.subscriptions:
            raise SoapFault(FaultCode.NOT_FOUND, f"subscription {ident} not found")
        return self.subscriptions[ident]

    def query(self, first: int, limit: int) -> tuple[int, list[Subscription]]:
        """How many subscriptions there are, and a page of them in the order of their creation.

        Raises:
            SoapFault: BAD_REQUEST for a negative offset or limit.
        """
        if first < 0 or limit < 0:
            raise SoapFault(FaultCode.BAD_REQUEST, "FirstResult and MaxResults must not be negative")
        everything = list(self.subscriptions.values())
        return len(everything), everything[first : first + min(limit, MAX_PAGE)]

    def update(self, asked: SubscriptionFields, *, replace_filter: bool) -> Subscription:
        """Change the fields that are given and leave the others.

        Raises:
            SoapFault: without detail if the id is missing, NOT_FOUND, or BAD_REQUEST.
        """
        if asked.id is None:
            raise SoapFault(None, "the subscription to update has no id")
        before = self.get(asked.id)
        filters = before.filter
        if asked.filter is not None:
            filters = replace(SubscriptionFilter() if replace_filter else filters, **asked.filter)
        after = replace(before, filter=filters, **asked.fields)
        _check_endpoint(after)
        self.subscriptions[after.id] = after
        return after

    def delete(self, ident: int) -> Subscription:
        """Remove a subscription.

        Raises:
            SoapFault: NOT_FOUND.
        """
        subscription = self.get(ident)
        del self.subscriptions[ident]
        return subscription

    def created_by(self, request_id: str) -> int | None:
        """The id that an earlier create with this RequestId returned, even if it has been deleted since."""
        return self._created_by.get(request_id)

    def remember_request(self, request_id: str, ident: int) -> None:
        """Keep what a RequestId created, forgetting the oldest beyond the bound."""
        self._created_by[request_id[:MAX_REQUEST_ID]] = ident
        while len(self._created_by) > MAX_REQUEST_IDS:
            self._created_by.popitem(last=False)

    def wanting(self, facts: Facts) -> Iterator[Subscription]:
        """The subscriptions that are told about an event, oldest first."""
        return (subscription for subscription in list(self.subscriptions.values()) if subscription.wants(facts))


class Accounts:
    """All accounts of a sandbox, by login."""

    def __init__(self) -> None:
        self._by_login: dict[str, Account] = {}

    def add(self, login: str, password: str) -> Account:
        """A new account; one of the same login gets the new password and keeps its subscriptions."""
        account = self._by_login.setdefault(login, Account(login, password))
        account.password = password
        return account

    def get(self, login: str) -> Account | None:
        """The account with that login."""
        return self._by_login.get(login)

    def authenticate(self, login: str, password: str) -> Account | None:
        """The account that these credentials open, or None."""
        account = self._by_login.get(login)
        given, right = password.encode(), (account.password if account else "").encode()
        return account if compare_digest(given, right) and account else None

    def clear(self) -> None:
        """Remove every account."""
        self._by_login.clear()

    def __iter__(self) -> Iterator[Account]:
        """In the order in which they were added."""
        return iter(list(self._by_login.values()))

    def __len__(self) -> int:
        return len(self._by_login)


def email_address(endpoint: str) -> str | None:
    """The address that gets an endpoint's notifications by mail; None if they are posted to a URL."""
    found = _EMAIL.fullmatch(endpoint)
    return found[1] if found else None


def _check_endpoint(subscription: Subscription) -> None:
    endpoint = subscription.endpoint
    if len(endpoint) > MAX_ENDPOINT:
        raise SoapFault(FaultCode.BAD_REQUEST, f"Endpoint has more than {MAX_ENDPOINT} characters")
    mailed = email_address(endpoint) is not None
    if not mailed and not _URL.fullmatch(endpoint):
        raise SoapFault(FaultCode.BAD_REQUEST, "Endpoint must be an http or https URL or an email address")
    if subscription.notification_format is NotificationFormat.EMAIL and not mailed:
        raise SoapFault(FaultCode.BAD_REQUEST, "NotificationFormat EMAIL needs an email address as Endpoint")
