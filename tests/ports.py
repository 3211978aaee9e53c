"""TCP ports of the loopback interface that stay free between the choice and the use, and between two uses.

They lie below those that the kernel gives to outgoing connections, and each of several pytest processes of one run has
its own, so that nothing takes one while a server that had it is being started again.
"""

import itertools
import os
import random
import socket
from collections.abc import Iterator

_RANGE = (10_000, 32_000)
_PROCESSES = 8


def _candidates() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
    ports = list(range(_RANGE[0] + worker, _RANGE[1], _PROCESSES))
    random.SystemRandom().shuffle(ports)
    return itertools.cycle(ports)


_CANDIDATES = _candidates()


def free_ports(count: int) -> list[int]:
    """As many ports as asked, none of them in use."""
    return list(itertools.islice(filter(_is_free, _CANDIDATES), count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
