"""Repeat a call while CallFire cannot answer, until `callfire:timeout` is over. `errors.Temporary` says when."""

import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import stamina

from provider.errors import Temporary

T = TypeVar("T")

LONGEST_WAIT = 5.0
"""Seconds between two tries, at most; the first waits are 0.1, 0.2, 0.4 …"""

JITTER = 0.2
"""Seconds of chance added to each wait, so that four threads do not come back together."""


def repeat(call: Callable[[int], T], timeout: float | None) -> T:
    """Return what `call` returns; it is given the number of the try, from 1.

    Args:
        call: makes one request; whatever it raises that is not `Temporary` ends the repetition.
        timeout: seconds after which no other try is begun; None for one try only.
    """
    if timeout is None:
        return call(1)
    logging.getLogger("stamina").addHandler(logging.NullHandler())
    for attempt in stamina.retry_context(
        on=Temporary, attempts=None, timeout=timeout, wait_max=LONGEST_WAIT, wait_jitter=JITTER
    ):
        with attempt:
            return _announced(call, attempt.num, timeout)
    raise AssertionError("a retry ends with a result or an error")  # pragma: no cover


def _announced(call: Callable[[int], T], number: int, timeout: float) -> T:
    try:
        return call(number)
    except Temporary as error:
        if number == 1:
            line = f"{error.said} Trying again for up to {timeout:g} s.\n"
            print(line, end="", file=sys.stderr, flush=True)  # noqa: T201 - in one piece, as other threads write, too
        raise
