"""What the SDK's server of dynamic providers (`python -m pulumi.dynamic`) lacks when its CLI is gone: an end."""

import os
import select
import sys
import threading

STDOUT = 1
WATCH = "end-with-the-engine"  # the name of the thread; resources of several kinds share one process


def end_with_the_engine() -> None:
    """End this process when the CLI is gone; it reads our standard output, so its end shows.

    After `kill -9` of the CLI the server would go on: it could send a server what the next `pulumi up` has long
    replaced, or the next `pulumi destroy` removed. What a server was sent before, it brings to its end by itself, and
    the next deployment waits for that. Does nothing in any other process.
    """
    in_server = hasattr(sys.modules["__main__"], "DynamicResourceProviderServicer")
    if in_server and hasattr(select, "poll") and not any(thread.name == WATCH for thread in threading.enumerate()):
        threading.Thread(target=exit_when_nobody_listens, name=WATCH, daemon=True).start()


def exit_when_nobody_listens() -> None:
    """Wait for the other end of standard output to close."""
    watch = select.poll()
    watch.register(STDOUT, 0)  # errors and hang-ups are always reported
    watch.poll()
    os._exit(1)
