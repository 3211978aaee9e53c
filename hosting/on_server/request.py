"""One request in, lines of JSON out: `{"doing": …}` as it goes, then `{"done": …}` or `{"failed": …}`."""

import contextlib
import fcntl
import os
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosting.on_server.apply import apply
from hosting.on_server.look import look
from hosting.on_server.places import FailedError, Places, say
from hosting.on_server.remove import remove

LOCKED_FOR = 300.0  # seconds: a whole deployment by somebody else
VERBS = {"look": look, "apply": apply, "remove": remove}


def main(request: dict[str, Any]) -> None:
    """Do what is asked and print the answer.

    A connection that breaks must not leave a switch half done, so neither the hang-up nor a closed pipe ends this.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    os.umask(0o022)
    try:
        places = Places(str(request["name"]))
        looks = request["verb"] == "look"
        wait = bool(request.get("wait", True))
        free = looks and not places.lock.exists()
        with contextlib.nullcontext() if free else alone(places.lock, shared=looks, wait=wait):
            say(done=VERBS[request["verb"]](request, places))
    except FailedError as error:
        say(failed=str(error))
    except OSError as error:
        say(failed=f"{error.filename or 'the server'}: {error.strerror or error}")
    except Exception:  # noqa: BLE001 - the edge of this program: whatever it is, the caller is told
        say(failed=f"this is a fault of callfire-mail: {traceback.format_exc(limit=-3)}")


@contextlib.contextmanager
def alone(lock: Path, *, shared: bool, wait: bool) -> Iterator[None]:
    """Keep a second deployment of the same forwarder waiting; the kernel frees the lock however this one ends.

    Those that only look share it: what they would see of a deployment under way, of a dead CLI's too, will not last.

    Raises:
        FailedError: another one goes on for too long; or is under way, and this is not to `wait`.
    """
    with lock.open("w") as file:
        deadline = time.monotonic() + LOCKED_FOR
        said = False
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise FailedError("a deployment is under way there: look again when it has ended") from None
                if not said:
                    say(doing="waiting for another deployment to end")
                    said = True
            if time.monotonic() > deadline:
                raise FailedError(f"another deployment has held {lock} for {LOCKED_FOR:.0f} seconds")
            time.sleep(0.2)
        yield
