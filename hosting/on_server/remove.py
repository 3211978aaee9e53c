"""Takes a forwarder away: drained first, and what it could not deliver is kept and named."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hosting.on_server import caddy, owner, systemd
from hosting.on_server.apply import clean_up_preflight, give_to_its_owner, state_folders, uninstall
from hosting.on_server.places import FailedError, Places, answer, discard, read, say

POLL = 0.1  # seconds
ANSWER = 20.0  # seconds: a database that is away is given up sooner
NOTHING = {"waiting": 0, "dead": 0, "quarantined": 0}


def remove(request: dict[str, Any], places: Places) -> dict[str, Any]:
    """Drain, stop and uninstall; return what is left in the outbox and where it is kept (or None).

    What is left in PostgreSQL stays there and is said, by the last of its servers: the others leave it to that one.
    Nothing is done in the run in which it was brought up here: this server has another name now.

    Raises:
        FailedError: it is another stack's now; or its outbox can't be read. Nothing was removed.
    """
    if request["unless"] and read(places.run) == request["unless"]:
        say(doing="is still listed, by another name")
        return {"left": {}, "kept": None}
    for refusal in owner.refusal(request, places):
        if request["unless"]:
            say(doing="is another stack's, and was left")
            return {"left": {}, "kept": None}
        raise FailedError(f"{refusal}; nothing was removed")
    clean_up_preflight(places)
    if systemd.active(f"{places.unit}.service"):
        say(doing="letting the outbox drain")
        drain(lambda: undelivered(places.state), float(request["drain_seconds"]))
        drain(lambda: shared(request["status"])[0], float(request["drain_seconds"]))
    say(doing="removing the service")
    caddy.withdraw(places)
    systemd.stop(f"{places.unit}.socket", f"{places.unit}.service")
    systemd.kill(places.unit)
    left = undelivered(places.state)
    say_what_stays(*shared(request["status"]))
    uninstall(places)
    if any(left.values()) and not request["purge"]:
        return {"left": left, "kept": str(places.state)}
    for folder in (*state_folders(places.unit), places.backups):
        discard(folder)
    return {"left": left, "kept": None}


def drain(count: Callable[[], dict[str, int]], seconds: float) -> None:
    """Wait until nothing is under way, but not longer than this."""
    deadline = time.monotonic() + seconds
    while count()["waiting"] and time.monotonic() < deadline:
        time.sleep(POLL)


def undelivered(folder: Path) -> dict[str, int]:
    """Return how many mails wait, are dead, and how many postbacks lie in quarantine, in this outbox.

    The tables are those of `forwarder/schema.py`; one that is not there counts as empty. The forwarder's own `status`
    is not asked: a broken release could not answer it.
    """
    counts = dict(NOTHING)
    questions = {
        "waiting": "SELECT count(*) FROM delivery WHERE state IN ('queued', 'sending')",
        "dead": "SELECT count(*) FROM delivery WHERE state = 'dead'",
        "quarantined": "SELECT count(*) FROM quarantine",
    }
    outbox = folder / "outbox.db"
    if outbox.exists():
        try:
            with contextlib.closing(sqlite3.connect(outbox, timeout=10)) as database:
                tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                for name, question in questions.items():
                    if question.split(" FROM ")[1].split()[0] in tables:
                        counts[name] = database.execute(question).fetchone()[0]
        except sqlite3.Error as error:  # whatever is in it, it must not be lost
            raise FailedError(f"the outbox {outbox} can't be read ({error}); nothing was removed") from None
        finally:
            give_to_its_owner(outbox)
    return counts


def shared(status: Sequence[str]) -> tuple[dict[str, int], str]:
    """Return the same of an outbox in PostgreSQL, which the forwarder's own `status` tells, or why it can't.

    `status` are the words that ask it; there are none where nothing is to be asked.
    """
    if not status:
        return NOTHING, ""
    try:
        failed, said, complaint = answer(*status, seconds=ANSWER)
    except FailedError as error:
        return NOTHING, str(error)
    if failed:
        return NOTHING, (complaint.strip().splitlines() or ["it said nothing"])[-1]
    told = json.loads(said)
    waiting = told["queued"] + told["sending"]
    return {"waiting": waiting, "dead": told["dead"], "quarantined": told["quarantined"]}, ""


def say_what_stays(counts: dict[str, int], trouble: str) -> None:
    """Say what stays in PostgreSQL, or that it could not be told."""
    left = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    if left:
        say(doing=f"{left} are kept in your PostgreSQL, for a forwarder with the same FORWARDER_DATABASE_URL")
    if trouble:
        say(doing=f"what waits in your PostgreSQL could not be told ({trouble}); it is kept there")
