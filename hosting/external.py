"""A forwarder that runs already, in a way that this program does not manage: a URL."""

from dataclasses import dataclass

import pulumi


@dataclass(frozen=True, slots=True)
class ExternalForwarder:
    """A forwarder elsewhere, known by the secret URL that it takes postbacks on (`https://…/postback/TOKEN`)."""

    endpoint: pulumi.Output[str]
