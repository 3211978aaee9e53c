"""The secret in the forwarder's address: CallFire signs nothing, so knowing the URL is the only proof of who posts.

The import path of `PostbackTokenProvider` is part of every stack's state and must never change.
"""

import secrets
from typing import Any

import pulumi
from pulumi import dynamic

BYTES = 32


class PostbackTokenProvider(dynamic.ResourceProvider):
    """Makes a token once; there is nothing to read, change or remove anywhere."""

    serialize_as_secret_always = False

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Nothing about a token is declared, so nothing differs."""
        return dynamic.DiffResult(changes=False)

    def create(self, _props: dict[str, Any]) -> dynamic.CreateResult:
        """Make a token of 256 random bits, in the alphabet of URLs."""
        return dynamic.CreateResult(secrets.token_hex(4), {"value": secrets.token_urlsafe(BYTES)})


class PostbackToken(dynamic.Resource, module="hosting", name="PostbackToken"):
    """A random token, made once per stack and kept as a secret."""

    value: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["value"])
        super().__init__(PostbackTokenProvider(), name, {"value": None}, pulumi.ResourceOptions.merge(secret, opts))
