"""A lock file that one process holds at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terminal import say


@contextmanager
def alone(lock: Path, otherwise: str) -> Iterator[None]:
    """Hold `lock`; while another process holds it, say `otherwise` once and wait.

    Raises:
        OSError: the file, or its folder, can't be made.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(otherwise)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
