"""Which subscriptions are told about which events, and what an account allows."""

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from sandbox.accounts import MAX_REQUEST_IDS, MAX_SUBSCRIPTIONS, Account, Accounts
from sandbox.soap import FaultCode, SoapFault, SubscriptionFields
from sandbox.subscriptions import Facts, Subscription, SubscriptionFilter, TriggerEvent

TEXT = Facts(TriggerEvent.INBOUND_TEXT_FINISHED, "18185550101", "18185550199", inbound=True)
SENT = Facts(TriggerEvent.OUTBOUND_TEXT_FINISHED, "67076", "18185550101", broadcast_id=5, batch_id=6, inbound=False)
CAMPAIGN = Facts(TriggerEvent.CAMPAIGN_FINISHED, from_number="67076", broadcast_id=5)


def subscription(trigger: TriggerEvent, **filters: Any) -> Subscription:
    """A subscription with a trigger and a filter."""
    return Subscription(1, "http://localhost/", trigger_event=trigger, filter=SubscriptionFilter(**filters))


@pytest.mark.parametrize(
    ("wanted", "event", "told"),
    [
        ({}, TEXT, True),
        ({"to_number": "18185550199"}, TEXT, True),
        ({"to_number": "+18185550199"}, TEXT, True),
        ({"to_number": "18185550198"}, TEXT, False),
        ({"from_number": "18185550101", "to_number": "18185550199"}, TEXT, True),
        ({"from_number": "18185550101", "to_number": "18185550198"}, TEXT, False),
        ({"inbound": True}, TEXT, True),
        ({"inbound": False}, TEXT, False),
        ({"broadcast_id": 5}, TEXT, False),
        ({"broadcast_id": 5}, SENT, True),
        ({"broadcast_id": 4}, SENT, False),
        ({"batch_id": 6, "inbound": False}, SENT, True),
        ({"broadcast_id": 5}, CAMPAIGN, True),
        ({"batch_id": 6}, CAMPAIGN, False),
        ({"to_number": "18185550199"}, CAMPAIGN, False),
    ],
)
def test_a_filter_is_met_by_all_its_conditions(wanted: dict[str, object], event: Facts, *, told: bool) -> None:
    """A condition about something that the event does not have is not met."""
    assert subscription(event.trigger, **wanted).wants(event) is told


def test_a_trigger_selects_one_kind_of_event() -> None:
    """Except the undefined one, with which every kind is told, as to a subscription of API 1.0."""
    assert not subscription(TriggerEvent.INBOUND_CALL_FINISHED).wants(TEXT)
    everything = subscription(TriggerEvent.UNDEFINED_EVENT)
    assert [everything.wants(event) for event in (TEXT, SENT, CAMPAIGN)] == [True, True, True]
    assert not replace(everything, enabled=False).wants(TEXT)


def fields(**more: object) -> SubscriptionFields:
    """What a valid create has."""
    return SubscriptionFields(
        None, {"endpoint": "http://h/", "trigger_event": TriggerEvent.CAMPAIGN_STARTED} | more, None
    )


def test_an_account_holds_10000_subscriptions() -> None:
    """The 10,001st is refused; deleting one makes room."""
    account, ids = Account("a", "b"), count(1)
    for _ in range(MAX_SUBSCRIPTIONS):
        account.create(fields(), ids.__next__, "1.1")
    with pytest.raises(SoapFault, match="10000 subscriptions, which is the limit") as refused:
        account.create(fields(), ids.__next__, "1.1")
    assert refused.value.code is FaultCode.FORBIDDEN
    account.delete(1)
    account.create(fields(), ids.__next__, "1.1")


def test_pages_follow_one_another_without_gap() -> None:
    """At most 1000 at once, whatever is asked for; beyond the end there is nothing."""
    account, ids = Account("a", "b"), count(1)
    for _ in range(2500):
        account.create(fields(), ids.__next__, "1.1")
    pages = [account.query(first, 5000)[1] for first in (0, 1000, 2000, 3000)]
    assert [len(page) for page in pages] == [1000, 1000, 500, 0]
    assert [entry.id for page in pages for entry in page] == list(range(1, 2501))
    assert account.query(10, 5) == (2500, list(account.subscriptions.values())[10:15])
    with pytest.raises(SoapFault, match="must not be negative"):
        account.query(-1, 10)


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("", "must be an http or https URL or an email address"),
        ("ftp://host/", "must be an http or https URL or an email address"),
        ("host/path", "must be an http or https URL or an email address"),
        ("http://", "must be an http or https URL or an email address"),
        ("http://h/" + "x" * 2000, "more than 2000 characters"),
    ],
)
def test_an_endpoint_that_cannot_be_posted_to_is_refused(endpoint: str, problem: str) -> None:
    """With a message that says what it must be."""
    with pytest.raises(SoapFault, match=problem):
        Account("a", "b").create(fields(endpoint=endpoint), count(1).__next__, "1.1")


def test_request_ids_are_forgotten_oldest_first() -> None:
    """Their number is bounded."""
    account = Account("a", "b")
    for number in range(MAX_REQUEST_IDS + 1):
        account.remember_request(f"request-{number}", number)
    assert account.created_by("request-0") is None
    assert account.created_by("request-1") == 1


def test_credentials_open_their_own_account_alone() -> None:
    """An unknown login with an empty password opens none."""
    accounts = Accounts()
    first, second = accounts.add("first", "one"), accounts.add("second", "two")
    assert accounts.authenticate("first", "one") is first
    assert accounts.authenticate("second", "two") is second
    assert accounts.authenticate("first", "two") is None
    assert accounts.authenticate("third", "") is None
