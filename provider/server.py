"""What the SDK's server for dynamic providers (`python -m pulumi.dynamic`) lacks, added while it runs ours.

Both functions do nothing in any other process: not in a Pulumi program, not in a test that calls the provider itself.
"""

import os
import select
import sys
import threading
import traceback
from types import ModuleType

_STDOUT = 1


def is_sdk_server() -> bool:
    """Whether this process is the SDK's server."""
    return hasattr(sys.modules["__main__"], "DynamicResourceProviderServicer")


def show_errors_without_traceback() -> None:
    """Make the server answer this project's errors with their message alone.

    It answers every exception with `traceback.format_exc()`, looked up in its own module, and has no other way out. The
    replacement differs for errors that say `without_traceback`; others, of whatever provider, keep their tracebacks.
    """
    server = sys.modules["__main__"]
    if is_sdk_server() and getattr(server, "traceback", None) is traceback:
        server.traceback = _Traceback("traceback")  # type: ignore[attr-defined]


def end_with_the_engine() -> None:
    """End this process when the CLI that started it is gone.

    After `kill -9` of the CLI the server would wait for ever and finish what is under way: a create whose retry comes
    after the next `up` has looked for orphans makes a duplicate. The CLI reads our standard output, so its end shows.
    """
    if is_sdk_server() and hasattr(select, "poll") and not any(t.name == _WATCH for t in threading.enumerate()):
        threading.Thread(target=_exit_when_nobody_listens, name=_WATCH, daemon=True).start()


_WATCH = "end-with-the-engine"


def _exit_when_nobody_listens() -> None:
    watch = select.poll()
    watch.register(_STDOUT, 0)  # errors and hang-ups are always reported
    watch.poll()
    os._exit(1)


class _Traceback(ModuleType):
    """The `traceback` module as the SDK's server uses it."""

    @staticmethod
    def format_exc() -> str:
        error = sys.exc_info()[1]
        return str(error) if getattr(error, "without_traceback", False) else traceback.format_exc()
