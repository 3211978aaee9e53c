"""Whose a forwarder is: two stacks of one name must not take each other's over. No token is sent for that.

It is his whose mark is there, or whose token it accepts. The mark tells it where tokens were changed by hand, a token
where the first run was cut off before the mark could be written down.
"""

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

from hosting.on_server.places import Places, read

TOKENS = "FORWARDER_TOKENS"


def digest(nonce: str, value: str) -> str:
    """Return the HMAC by which a secret is compared."""
    return hmac.new(nonce.encode(), value.encode(), hashlib.sha256).hexdigest()


def refusal(request: dict[str, Any], places: Places) -> Iterator[str]:
    """Say why the forwarder of this name is not the claimant's, if there is one.

    `request["claim"]` holds his mark, and the HMAC of each token of his under a nonce; or no token where the forwarder
    is known as his.
    """
    claim, there = request["claim"], read(places.credentials / TOKENS)
    if there is None or not claim["tokens"] or read(places.owner) == claim["owner"]:
        return
    if not {digest(claim["nonce"], token) for token in there.split(",")} & set(claim["tokens"]):
        yield (
            f"its service {places.unit} belongs to another stack of this name: give this one another name, or, if it is"
            " to go, forget it with `pulumi state delete`; or, if the other's state is lost for good, or it is only a"
            " first `pulumi up` of this one that was cut off and then destroyed, forget that one there with"
            f" `sudo rm -rf {places.credentials} {places.credentials}.*`, which keeps its outbox, and run this command"
            " again"
        )
