"""CallFire and a mailbox on this machine: an emulator to learn, develop and test against.

Written from CallFire's documents alone. It must never import the provider, the forwarder or the hosting, so that a
misreading there cannot hide behind the same misreading here.
"""

from sandbox.errors import PortInUseError, SandboxError, WaitTimeoutError
from sandbox.server import Sandbox

__all__ = ["PortInUseError", "Sandbox", "SandboxError", "WaitTimeoutError"]
