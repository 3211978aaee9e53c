"""What the set-up says: a line per step, and progress that stays in one line on a terminal."""

from __future__ import annotations

import sys
import time

SILENCE = 20.0  # seconds between two lines of progress where there is no terminal to overwrite one

_last_line = time.monotonic()


def say(line: str) -> None:
    """Print what happens now."""
    progress(None)
    print(line, flush=True)


def progress(line: str | None) -> None:
    """Show how far a step is, in place of the last such line; None clears it."""
    global _last_line  # noqa: PLW0603 - a terminal is one, too
    if sys.stdout.isatty():
        print(f"\r\033[K{line or ''}", end="", flush=True)
    elif line and time.monotonic() - _last_line > SILENCE:
        print(line, flush=True)
        _last_line = time.monotonic()
