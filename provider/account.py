"""What one Pulumi operation knows of a CallFire account: one listing shared by all resources and threads.

The listing is fetched once, on the first question, and kept true by our own writes. It is also where resources meet:
which subscription is whose is decided here, under one lock, so that an interrupted, renamed or moved resource finds
what it made before, and nobody takes or deletes what another resource of the same program holds.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, TypeVar

from provider import retrying
from provider.difference import compare
from provider.errors import AlreadyExists, DuplicateDeclaration, NotFound, Temporary, Unsettled
from provider.remote import Identity, Page, RemoteSubscription, identity
from provider.settings import Settings

T = TypeVar("T")

LISTINGS = 3
"""How often a listing that changes while it is read is begun again."""


class Api(Protocol):
    """CallFire's operations, one request each (`soap.CallFire`)."""

    def create(self, properties: Mapping[str, Any], request_id: str) -> str: ...  # noqa: D102
    def query(self, first: int) -> Page: ...  # noqa: D102
    def get(self, id_: str) -> RemoteSubscription: ...  # noqa: D102
    def update(self, id_: str, changes: Mapping[str, Any]) -> None: ...  # noqa: D102
    def delete(self, id_: str) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Claim:
    """A subscription that a resource now holds.

    Attributes:
        id: CallFire's id.
        adopted: whether it was there before.
        others: ids of further identical subscriptions, which nobody was found to hold.
    """

    id: str
    adopted: bool = False
    others: tuple[str, ...] = ()


class Account:
    """One account during one Pulumi operation."""

    def __init__(self, connect: Callable[[], Api], timeout: float) -> None:
        """Prepare without any call; `connect` is called when the first one is made."""
        self._connect = connect
        self._timeout = timeout
        self._patient = True
        self._lock = threading.RLock()
        self._listing: _Listing | None = None
        self._failure: Temporary | None = None
        self._failed = 0.0
        self._holders: dict[str, str | None] = {}
        self._declared: dict[Identity, str] = {}
        self._creating: set[Identity] = set()
        self._claimed: set[str] = set()

    # Who declares and holds what ------------------------------------------------------------------------------------

    def declare(self, declared: Identity, resource: str) -> str | None:
        """Note that a resource declares this identity, and return the name of another one that does too."""
        with self._lock:
            other = self._declared.setdefault(declared, resource)
        return None if other == resource else other

    def hold(self, id_: str, record: str | None) -> bool:
        """Note that the record of a resource in the state goes on holding a subscription; False if another took it."""
        with self._lock:
            return self._holders.setdefault(id_, record) == record

    # Reading --------------------------------------------------------------------------------------------------------

    def find(self, id_: str) -> RemoteSubscription | None:
        """Return a subscription from the listing, or None when CallFire does not have it.

        A listing can lack one that is there: because another program deletes meanwhile, or because it lags behind. So
        that nothing is given up for that, an absent one is then asked for by its id.
        """
        with self._listing_read() as listing:
            found = listing.by_id.get(id_)
        if found is not None:
            return found
        try:
            return self.get(id_)
        except NotFound:
            return None

    def get(self, id_: str) -> RemoteSubscription:
        """Ask CallFire for one subscription."""
        return self._repeat(lambda _: self._api.get(id_))

    def all(self) -> list[RemoteSubscription]:
        """Return all subscriptions of the account."""
        with self._listing_read() as listing:
            return list(listing.by_id.values())

    # Writing --------------------------------------------------------------------------------------------------------

    def create(self, properties: Mapping[str, Any], request_id: str, *, adopt: bool = True) -> Claim:
        """Adopt the identical subscription that nobody holds, or create one.

        Args:
            properties: canonical.
            request_id: kept over all tries of the create; also names the record that holds the subscription.
            adopt: whether an identical one may be taken over.

        Raises:
            AlreadyExists: there is one to adopt, and `adopt` is False.
            DuplicateDeclaration: another resource of this program has created or adopted the same, or is about to.
        """
        wanted = identity(properties)
        with self._listing_read() as listing:
            known = listing.identical(wanted)
            if wanted in self._creating or not self._claimed.isdisjoint(known):
                raise DuplicateDeclaration("Another resource of this program declares the same subscription.")
            candidates = [id_ for id_ in known if id_ not in self._holders]
            if candidates:
                if not adopt:
                    raise AlreadyExists(f"Subscription {candidates[0]} on the account is identical, and adopt=False.")
                self._claim(candidates[0], request_id)
            self._creating.add(wanted)
        try:
            if candidates:
                self._align(candidates[0], properties)
                return Claim(candidates[0], adopted=True, others=tuple(candidates[1:]))
            id_ = self._create(properties, request_id, known)
            with self._lock:
                self._claim(id_, request_id)
                self._listed().put(RemoteSubscription(id_, dict(properties)))
            return Claim(id_)
        finally:
            with self._lock:
                self._creating.discard(wanted)

    def update(self, id_: str, changes: Mapping[str, Any]) -> None:
        """Send what changed, in one call."""
        self._repeat(lambda _: self._api.update(id_, changes))
        with self._lock:
            if self._listing is not None and id_ in self._listing.by_id:
                self._listing.put(self._listing.by_id[id_].with_changes(changes))

    def delete(self, id_: str, record: str | None) -> bool:
        """Delete a subscription; one that is not there is fine. False: another record holds it now, so it stays."""
        with self._lock:
            if self._holders.get(id_, record) != record:
                return False
        with suppress(NotFound):
            self._repeat(lambda _: self._api.delete(id_))
        with self._lock:
            self._holders.pop(id_, None)
            if self._listing is not None:
                self._listing.drop(id_)
        return True

    # ----------------------------------------------------------------------------------------------------------------

    def _claim(self, id_: str, record: str) -> None:
        self._holders[id_] = record
        self._claimed.add(id_)

    def _create(self, properties: Mapping[str, Any], request_id: str, known: list[str]) -> str:
        """Create, and after a lost answer look for what it may have made before asking again."""

        def attempt(number: int) -> str:
            if number > 1:
                made = [id_ for id_ in self._fetch(self._api.query).identical(identity(properties)) if id_ not in known]
                if made:
                    return made[0]
            return self._api.create(properties, request_id)

        try:
            return self._repeat(attempt)
        except Temporary as error:
            raise type(error)(
                error.said + " Whether the subscription was made is not known.",
                error.what_to_do + " The next `pulumi up` looks for it first.",
            ) from None

    @cached_property
    def _api(self) -> Api:
        return self._connect()

    def _align(self, id_: str, properties: Mapping[str, Any]) -> None:
        with self._lock:
            held = self._listed().by_id[id_]
        changes = compare(held.properties, properties).changes
        if changes:
            self.update(id_, changes)

    @contextmanager
    def _listing_read(self) -> Iterator["_Listing"]:
        """Hold the lock, with the listing read. Who waits while another thread reads it in vain has its failure too."""
        asked = time.monotonic()
        with self._lock:
            if self._failure is not None and self._failed >= asked:
                raise type(self._failure)(self._failure.said, self._failure.what_to_do)
            try:
                listing = self._listed()
            except Temporary as error:
                self._failure, self._failed = error, time.monotonic()
                raise
            yield listing

    def _listed(self) -> "_Listing":
        if self._listing is None:
            self._listing = self._fetch(lambda first: self._repeat(lambda _: self._api.query(first)))
        return self._listing

    def _fetch(self, query: Callable[[int], Page]) -> "_Listing":
        for _ in range(LISTINGS):
            listing = _Listing()
            while not listing.read_to_its_end:
                listing.add_page(query(listing.length))
            if listing.consistent:
                return listing
        raise Unsettled("The account's subscriptions changed each time that they were listed.")

    def _repeat(self, call: Callable[[int], T]) -> T:
        """Repeat while CallFire cannot answer; after one in vain everyone else tries once."""
        try:
            result = retrying.repeat(call, self._timeout if self._patient else None)
        except Temporary:
            self._patient = False
            raise
        self._patient = True
        return result


class _Listing:
    """The account's subscriptions, by id and by identity."""

    def __init__(self) -> None:
        self.by_id: dict[str, RemoteSubscription] = {}
        self.length = 0
        self.read_to_its_end = False
        self._totals: set[int] = set()
        self._by_identity: dict[Identity, list[str]] = {}

    @property
    def consistent(self) -> bool:
        """Whether the pages fit together: none missing or twice, which happens when others write meanwhile."""
        return self._totals == {len(self.by_id)}

    def add_page(self, page: Page) -> None:
        self.length += len(page.subscriptions)
        self.read_to_its_end = self.length >= page.total or not page.subscriptions
        self._totals.add(page.total)
        for subscription in page.subscriptions:
            self.put(subscription)

    def identical(self, wanted: Identity) -> list[str]:
        """Return the ids with this identity, the oldest first."""
        return sorted(self._by_identity.get(wanted, []), key=int)

    def put(self, subscription: RemoteSubscription) -> None:
        self.drop(subscription.id)
        self.by_id[subscription.id] = subscription
        self._by_identity.setdefault(subscription.identity, []).append(subscription.id)

    def drop(self, id_: str) -> None:
        old = self.by_id.pop(id_, None)
        if old is not None:
            self._by_identity[old.identity].remove(id_)


@lru_cache(maxsize=8)
def account_of(settings: Settings) -> Account:
    """Return the account that all resources of this process share.

    Process-wide on purpose: Pulumi makes one provider object for each recorded form of it, and resources recorded by
    different versions must still see one listing and each other's claims.
    """

    def connect() -> Api:
        from provider.soap import CallFire  # noqa: PLC0415 - zeep costs 0.2 s, and a preview makes no call

        return CallFire(settings)

    return Account(connect, settings.timeout)
