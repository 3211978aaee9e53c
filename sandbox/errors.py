"""What can go wrong with a sandbox itself, as opposed to the faults that it imitates."""


class SandboxError(Exception):
    """The sandbox cannot do what was asked; the message says why and what to do."""


class PortInUseError(SandboxError):
    """A port that the sandbox was told to listen on is taken."""


class InvalidInputError(SandboxError):
    """A request to the control API or a command line says something that the sandbox cannot act on."""


class NotFoundError(SandboxError):
    """What was asked for is not, or no longer, in the sandbox."""


class BusyError(SandboxError):
    """A bound of the sandbox is reached; nothing was recorded, try again when it has caught up."""


class StoppedError(SandboxError):
    """The sandbox has stopped while something was asked of it."""

    def __init__(self) -> None:
        super().__init__("the sandbox has stopped")


class WaitTimeoutError(SandboxError, TimeoutError):
    """What was waited for did not happen in time."""
