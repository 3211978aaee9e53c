"""The provider's settings: read once, every mistake named, the environment wins."""

import pytest

from provider.errors import InvalidSettings
from provider.settings import Settings, is_private_host, read_settings

RIGHT = {"callfire:login": "me", "callfire:password": "hunter2"}


def test_the_environment_wins() -> None:
    """On destroy and refresh the stack's configuration is the one of the last `up`."""
    fresh = {"CALLFIRE_LOGIN": "you", "CALLFIRE_PASSWORD": "new", "CALLFIRE_URL": "http://127.0.0.1:8700/"}
    settings = read_settings({**RIGHT, "callfire:url": "https://old.example.com"}.get, fresh)
    assert (settings.login, settings.password.value, settings.url) == ("you", "new", "http://127.0.0.1:8700")


def test_each_version_has_its_address() -> None:
    """1.1 unless told otherwise."""
    assert read_settings(RIGHT.get, {}).address == "https://www.callfire.com/api/1.1/soap12/subscription"
    older = read_settings({**RIGHT, "callfire:apiVersion": "1.0"}.get, {})
    assert older.address == "https://www.callfire.com/api/1.0/soap12/subscription"


def test_every_mistake_is_named_at_once() -> None:
    """With what would be right."""
    wrong = {"callfire:url": "ftp://x", "callfire:apiVersion": "2", "callfire:timeout": "soon"}
    with pytest.raises(InvalidSettings) as raised:
        read_settings(wrong.get, {})
    for name in ("login", "password", "url", "apiVersion", "timeout"):
        assert f"callfire:{name}" in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://www.callfire.com",
        "https://",
        "callfire.com",
        "https://a:b@c.example.com",
        "https://x/?y",
        "https://[",
        "/",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    """Above all plain http across the internet, which would show the password."""
    with pytest.raises(InvalidSettings, match="callfire:url"):
        read_settings({**RIGHT, "callfire:url": url}.get, {})


def test_a_mistake_is_named_where_it_was_made() -> None:
    """The reader of a name from the stack would look there in vain for what the environment says."""
    with pytest.raises(InvalidSettings, match=r"CALLFIRE_URL \(which wins over callfire:url\) must be a base address"):
        read_settings(RIGHT.get, {"CALLFIRE_URL": "127.0.0.1:8700"})


@pytest.mark.parametrize("timeout", ["0", "-1", "3601", "nan", "inf", "x"])
def test_time_limits_that_are_refused(timeout: str) -> None:
    """A limit that is none would let the engine hang."""
    with pytest.raises(InvalidSettings, match="from 1 to 3600"):
        read_settings({**RIGHT, "callfire:timeout": timeout}.get, {})


def test_the_password_is_not_shown() -> None:
    """Not even in a repr."""
    assert "hunter2" not in repr(read_settings(RIGHT.get, {}))
    assert "hunter2" not in f"{read_settings(RIGHT.get, {}).password}"


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True),
        ("192.168.1.9", True),
        ("::1", True),
        ("forwarder", True),
        ("8.8.8.8", False),
        ("a.com", False),
    ],
)
def test_private_hosts(host: str, private: bool) -> None:  # noqa: FBT001 - a value of the table
    """By their spelling, without asking DNS."""
    assert is_private_host(host) is private


def test_settings_can_be_a_key() -> None:
    """One account is shared by all resources with the same settings."""
    assert len({read_settings(RIGHT.get, {}), read_settings(RIGHT.get, {})}) == 1
    assert isinstance(read_settings(RIGHT.get, {}), Settings)
