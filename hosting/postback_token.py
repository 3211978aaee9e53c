"""The secret in the forwarder's address: CallFire signs nothing, so knowing the URL is the only proof of who posts.

The import path of `PostbackTokenProvider` is part of every stack's state and must never change.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import pulumi
from pulumi import dynamic

BYTES = 32
ACCEPTED, UNUSED = "accepted", "unused"  # what the former tokens of a forwarder are
RETIRE_AFTER = 24 * 3600.0  # seconds for which no former token must have been used before they are dropped


class PostbackTokenProvider(dynamic.ResourceProvider):
    """Makes a token once; there is nothing to read, change or remove anywhere."""

    serialize_as_secret_always = False

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Nothing about a token is declared, so nothing differs."""
        return dynamic.DiffResult(changes=False)

    def create(self, _props: dict[str, Any]) -> dynamic.CreateResult:
        """Make a token of 256 random bits, in the alphabet of URLs."""
        return dynamic.CreateResult(secrets.token_hex(4), {"value": secrets.token_urlsafe(BYTES)})


def accepted_tokens(declared: Sequence[str], before: Sequence[str], former_token: str) -> list[str]:
    """Return the tokens to accept: the declared one, and those in force before it.

    A subscription may still have each of them, whatever versions there were. Those that were former ones already go
    when they were found unused.
    """
    return list(dict.fromkeys([*declared, *(before[:1] if former_token == UNUSED else before)]))


def unused(places: Any, tokens: Sequence[str], started: float, since: float) -> bool:
    """Tell whether a forwarder that runs since `started` says that nobody used its former tokens `since` then.

    `places` are what it says of its tokens, if it says anything: when each was last used.
    """
    if not isinstance(places, list) or len(places) != len(tokens):
        return False
    return max(started, *(float(place["last_used_at"] or 0) for place in places[1:])) <= since


class PostbackToken(dynamic.Resource, module="hosting", name="PostbackToken"):
    """A random token, made once per stack and kept as a secret."""

    value: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["value"])
        super().__init__(PostbackTokenProvider(), name, {"value": None}, pulumi.ResourceOptions.merge(secret, opts))
