"""What is asked of systemd and its journal."""

import contextlib
import time
from pathlib import Path

from hosting.on_server.places import FailedError, run

STOP = 30.0  # seconds: TimeoutStopSec is 20


def show(unit: str, *properties: str) -> dict[str, str]:
    """Return properties of a unit."""
    printed = run("systemctl", "show", unit, "--property", ",".join(properties))
    return dict(line.partition("=")[::2] for line in printed.splitlines() if "=" in line)


def active(unit: str) -> bool:
    """Tell whether a unit is up."""
    return show(unit, "ActiveState").get("ActiveState") == "active"


def reload() -> None:
    """Make systemd read its files again."""
    run("systemctl", "daemon-reload")


def start(unit: str, *, again: bool = False, seconds: float) -> None:
    """Start a service (`again` if it runs) and return when it says that it is ready.

    Raises:
        FailedError: it does not; the message says how it ended.
    """
    try:
        run("systemctl", "restart" if again else "start", f"{unit}.service", seconds=seconds)
    except FailedError as error:
        ended = show(f"{unit}.service", "Result", "ExecMainStatus")
        how = {
            "timeout": "it was not ready in time",
            "exit-code": f"it ended with status {ended.get('ExecMainStatus')}",
            "signal": f"it was ended by signal {ended.get('ExecMainStatus')}",
            "oom-kill": "it used up the server's memory",
        }
        raise FailedError(how.get(ended.get("Result", ""), str(error))) from None


def stop(*units: str) -> None:
    """Stop units that may not be there."""
    with contextlib.suppress(FailedError):
        run("systemctl", "stop", *units, seconds=STOP + 15)


def kill(unit: str) -> None:
    """End a service at once: one that hangs in its start does not listen to SIGTERM."""
    with contextlib.suppress(FailedError):
        run("systemctl", "kill", "--signal", "KILL", f"{unit}.service")
    stop(f"{unit}.service")
    with contextlib.suppress(FailedError):
        run("systemctl", "reset-failed", f"{unit}.service")


def drop_ins(unit_file: Path) -> dict[str, str]:
    """Return the text of every drop-in of a unit, by path: what `systemctl edit` writes."""
    folders = [root / f"{unit_file.name}.d" for root in (unit_file.parent, Path("/run/systemd/system"))]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.conf"))]
    return {str(file): file.read_text(errors="replace") for file in files}


def last_words(unit: str, since: float, lines: int = 8) -> str:
    """Return the last lines that a service's latest process wrote after `since` (seconds since 1970), indented."""
    latest = show(f"{unit}.service", "InvocationID").get("InvocationID", "")
    deadline = time.monotonic() + 1.0
    said = ""
    while not said and time.monotonic() < deadline:  # the journal is written a moment later
        words = ["--output=cat", "--no-pager", f"--since=@{int(since)}"]
        with contextlib.suppress(FailedError):
            said = run(
                "journalctl", f"_SYSTEMD_INVOCATION_ID={latest}", f"_SYSTEMD_UNIT={unit}.service", *words
            ).strip()
        time.sleep(0.05)
    return "\n".join(f"    {line}" for line in (said or "it said nothing").splitlines()[-lines:])
