"""Puts a forwarder somewhere.

`LocalForwarder` is a process of this machine; `ServerForwarder` is a service on servers of yours; `ExternalForwarder`
is one that runs already. Each has an `endpoint`, the secret URL that CallFire is to post to. Nothing here knows of
CallFire, and of the forwarder only what an operator sees: its settings, its health, its signals.
"""

from hosting.external import ExternalForwarder
from hosting.local import LocalForwarder
from hosting.postback_token import PostbackToken
from hosting.server import ServerForwarder

__all__ = ["ExternalForwarder", "LocalForwarder", "PostbackToken", "ServerForwarder"]
