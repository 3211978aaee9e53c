"""`get_subscription` and `get_subscriptions`: what a program may ask, and the words of a refusal."""

from typing import Any

import pulumi
import pytest

from provider import ProviderError, SubscriptionFilterArgs, get_subscription, get_subscriptions
from provider.account import account_of
from provider.errors import InvalidArguments, NotFound, PasswordRefused
from sandbox import Sandbox
from tests.pulumi_kit import credentials

TEXTS, CALLS = "INBOUND_TEXT_FINISHED", "INBOUND_CALL_FINISHED"


@pytest.fixture
def account(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of three subscriptions on an account that the environment leads to."""
    account_of.cache_clear()
    for name, value in credentials(sandbox).items():
        monkeypatch.setenv(name, value)
    made: list[dict[str, Any]] = [
        {"endpoint": "https://a.example.com/x", "trigger_event": TEXTS, "filter": {"to_number": "+18186469991"}},
        {"endpoint": "https://a.example.com/y", "trigger_event": CALLS, "filter": {"to_number": "18186469991"}},
        {"endpoint": "https://b.example.com/x", "trigger_event": TEXTS},
    ]
    return [str(sandbox.create_subscription(**fields)["id"]) for fields in made]


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({}, [0, 1, 2]),
        ({"filter": SubscriptionFilterArgs(to_number="(818) 646-9991")}, [0, 1]),
        ({"filter": {"to_number": 18186469991}, "trigger_event": "inbound_call_finished"}, [1]),
        ({"endpoint_prefix": "https://b."}, [2]),
        ({"filter": {"from_number": "67076"}}, []),
    ],
)
def test_all_or_some(account: list[str], asked: dict[str, Any], chosen: list[int]) -> None:
    """Numbers in any spelling, on either side."""
    assert [found.id for found in get_subscriptions(**asked)] == [account[index] for index in chosen]


def test_one(account: list[str]) -> None:
    """In the names of the arguments, its endpoint never in plain text."""
    found = get_subscription(account[0])
    assert (found.id, found.trigger_event, found.enabled) == (account[0], TEXTS, True)
    assert found.filter == {"to_number": "18186469991"}
    assert isinstance(found.endpoint, pulumi.Output)
    assert "a.example.com" not in repr(found)


def test_a_missing_id_is_an_error(account: list[str]) -> None:
    """Which says where ids are found."""
    with pytest.raises(NotFound, match=r"There is no subscription 99 on the account.*`python -m provider list`"):
        get_subscription("99")


@pytest.mark.parametrize("id_", ["", "x", "0", None, -1, True, 1.5, pulumi.Output.from_input("7")])
def test_what_is_no_id_is_refused(account: list[str], id_: Any) -> None:
    """Before any call."""
    with pytest.raises(InvalidArguments, match="get_subscription"):
        get_subscription(id_)


def test_arguments_that_cannot_be_are_refused_together(account: list[str]) -> None:
    """With their names."""
    with pytest.raises(InvalidArguments, match=r"trigger_event must be one of.*filter\.to_number must be a phone"):
        get_subscriptions({"to_number": "1 2"}, trigger_event="TEXT")


def test_a_refused_password_is_an_error_without_it(account: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And without an empty list that a program would believe."""
    monkeypatch.setenv("CALLFIRE_PASSWORD", "an old password")
    with pytest.raises(PasswordRefused) as refused:
        get_subscriptions()
    assert "an old password" not in str(refused.value)
    monkeypatch.delenv("CALLFIRE_LOGIN")
    with pytest.raises(ProviderError, match="callfire:login is missing"):
        get_subscriptions()
