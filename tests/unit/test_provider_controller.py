"""The wall around the provider: nothing but one short paragraph without a secret comes out."""

from typing import Any

import pytest
from pulumi.dynamic import ConfigureRequest
from pulumi.dynamic.config import Config

from provider.controller import SubscriptionProvider
from provider.errors import BadRequest, ProviderError
from provider.lifecycle import Lifecycle

TOKEN = "0123456789abcdef"
PROPS = {"__name": "texts", "endpoint": f"https://mail.example.com/postback/{TOKEN}?key=a%2Fb"}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> SubscriptionProvider:
    """With a password in the stack's configuration."""
    monkeypatch.delenv("CALLFIRE_PASSWORD", raising=False)
    made = SubscriptionProvider()
    made.configure(ConfigureRequest(Config({"callfire:login": "me", "callfire:password": "hunter2&hunter2"}, "test")))
    return made


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every step end with an error."""

    def fail(*_: Any) -> None:
        raise error

    for step in ("check", "diff", "create", "read", "update", "delete"):
        monkeypatch.setattr(Lifecycle, step, fail)


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), ValueError(TOKEN), RecursionError(), MemoryError()]
)
def test_nothing_else_gets_out_of_any_method(
    provider: SubscriptionProvider, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """SystemExit and KeyboardInterrupt would hang the engine for ever; the rest would be a page of traceback."""
    raising(monkeypatch, error)
    for work in (
        lambda: provider.check({}, PROPS),
        lambda: provider.diff("7", PROPS, PROPS),
        lambda: provider.create(PROPS),
        lambda: provider.read("7", PROPS),
        lambda: provider.update("7", PROPS, PROPS),
        lambda: provider.delete("7", PROPS),
    ):
        with pytest.raises(ProviderError, match=f"mistake in this provider: {type(error).__name__} in ") as raised:
            work()
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
        assert TOKEN not in str(raised.value)


def test_an_old_endpoint_is_hidden_too(provider: SubscriptionProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation of the token updates the endpoint, and CallFire may speak of the one that it has."""
    old = {**PROPS, "endpoint": "https://mail.example.com/postback/fedcba9876543210"}
    raising(monkeypatch, BadRequest(f"No: not {PROPS['endpoint']} instead of {old['endpoint']}."))
    for work in (lambda: provider.update("7", old, PROPS), lambda: provider.diff("7", old, PROPS)):
        with pytest.raises(BadRequest, match="No: not ") as raised:
            work()
        assert "fedcba9876543210" not in str(raised.value)
        assert TOKEN not in str(raised.value)


def test_an_error_names_the_resource_and_hides_its_secrets(
    provider: SubscriptionProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a server spells them in its answer."""
    said = f"No: https://mail.example.com/postback/{TOKEN}?key=a%2Fb, key=a/b, hunter2&hunter2 and hunter2&amp;hunter2."
    raising(monkeypatch, BadRequest(said))
    with pytest.raises(BadRequest) as raised:
        provider.create(PROPS)
    text = str(raised.value)
    assert text.startswith("Creating subscription texts for https://mail.example.com/… failed. No: ")
    assert text.endswith("Correct the arguments that it names.")
    for secret in (TOKEN, "hunter2", "a%2Fb", "a/b"):
        assert secret not in text
