"""What a program and the SDK's server of dynamic providers (`python -m pulumi.dynamic`) lack without a CLI: an end."""

import os
import select
import sys
import threading

STDOUT = 1
WATCH = "end-with-the-engine"  # the name of the thread; resources of several kinds share one process


def end_with_the_engine() -> None:
    """End the server when the CLI is gone; does nothing in any other process.

    After `kill -9` of the CLI it would go on: it could send a server what the next `pulumi up` has long
    replaced, or the next `pulumi destroy` removed. What a server was sent before, it brings to its end by itself, and
    the next deployment waits for that.
    """
    if hasattr(sys.modules["__main__"], "DynamicResourceProviderServicer"):
        end_with_the_cli()


def end_with_the_cli() -> None:
    """End this process, which the CLI started, when it is gone; it reads our standard output, so its end shows."""
    if hasattr(select, "poll") and not any(thread.name == WATCH for thread in threading.enumerate()):
        threading.Thread(target=exit_when_nobody_listens, name=WATCH, daemon=True).start()


def exit_when_nobody_listens() -> None:
    """Wait for the other end of standard output to close."""
    watch = select.poll()
    watch.register(STDOUT, 0)  # errors and hang-ups are always reported
    watch.poll()
    os._exit(1)
