"""Every state of every stack names the provider's class by its import path, for ever."""

import base64
from pathlib import Path

import dill
from pulumi.dynamic.dynamic import serialize_provider

import provider
from provider.controller import SubscriptionProvider

RECORDED = (Path(__file__).parent / "provider_reference.txt").read_text().strip()


def test_a_recorded_reference_still_loads() -> None:
    """What the first version stored."""
    loaded = dill.loads(base64.b64decode(RECORDED))  # noqa: S301 - our own recorded bytes
    assert type(loaded) is SubscriptionProvider


def test_it_is_stored_by_reference() -> None:
    """By value, old code would run for ever and every edit would be a diff."""
    assert serialize_provider(SubscriptionProvider()) == RECORDED


def test_it_is_stored_in_plain_text() -> None:
    """As a secret its bytes would differ in each state, and it holds nothing."""
    assert SubscriptionProvider.serialize_as_secret_always is False


def test_the_type_token() -> None:
    """It stands in every state too."""
    assert provider.Subscription._resource_type_name == "dynamic/callfire:Subscription"
