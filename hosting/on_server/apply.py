"""Makes what is declared be in force: install beside, preflight, back up, switch, gate; or all the way back.

Cut off anywhere, the next run ends in the same place: what is in force counts only once it was found healthy
(`Places.applied`), and until then what was in force before is kept (`Places.before`).
"""

import contextlib
import json
import shutil
import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

from hosting.on_server import caddy, owner, releases, systemd
from hosting.on_server.gate import Gate
from hosting.on_server.look import credentials, in_force, release, state
from hosting.on_server.places import (
    CHECKING,
    PREFLIGHT,
    FailedError,
    Places,
    answer,
    discard,
    read,
    run,
    say,
    write,
    write_credentials,
)

BACKUPS_KEPT = 3
START = 75.0  # seconds: TimeoutStartSec is 60
CHECK = 60.0  # seconds
ANY_PORT = "FORWARDER_ADMIN_PORT=0"  # in the unit of a preflight
TRIAL = 5.0  # seconds from ready to healthy, with an empty outbox
TRANSIENT = Path("/run/systemd/system")


def apply(request: dict[str, Any], places: Places) -> dict[str, Any]:
    """Bring the forwarder into the declared state; return which parts of it were changed.

    Raises:
        FailedError: it would not become healthy; what was in force before is in force again, or nothing if that was so.
            Or it is another stack's, which was quicker since this one looked; nothing was changed.
    """
    for refusal in owner.refusal(request, places):
        raise FailedError(f"{refusal}; nothing was changed")
    clean_up_preflight(places)
    write(places.run, str(request["run"]))
    if read(places.owner) != request["claim"]["owner"]:
        places.owner.parent.mkdir(mode=0o755, exist_ok=True)
        write(places.owner, request["claim"]["owner"], 0o600)
    changes = differences(request, places)
    if not changes:
        return {"changed": []}
    first = not places.applied.exists() and not places.before.exists()
    settled = read(places.applied) == in_force(places)
    try:
        releases.install(request, places, Path(request["sent"]))
        if set(changes) - {"command", "drop_ins", "state", "site", "socket"} or first:
            preflight(request, places)
        if release(places) not in {request["release"], "none"}:
            back_up(places, str(request["release"]))
        switch(request, places, changes)
        if request["site"] or places.site.exists():
            caddy.serve(request, places, settled=settled)
    except (FailedError, OSError):
        if first:
            say(doing="taking the failed installation back")
            take_back(places)
        raise
    write(places.applied, in_force(places), 0o600)
    releases.prune(places, str(request["release"]))
    return {"changed": changes}


def differences(request: dict[str, Any], places: Places) -> list[str]:
    """Return the parts that differ from what is declared; `state` when only the service is not up, or not proven."""
    declared = request["settings"] | request["secrets"]
    found = {
        "release": release(places) != request["release"],
        "service": read(places.service) != request["service"],
        "socket": read(places.socket) != request["socket"],
        "command": read(places.command) != request["command"],
        "site": (read(places.site) or "") != request["site"],
        "drop_ins": bool(systemd.drop_ins(places.service) | systemd.drop_ins(places.socket)),
        "settings": credentials(places.credentials) != declared,
        "state": state(places) != "running",
    }
    return [name for name, differs in found.items() if differs]


def gate(request: dict[str, Any], places: Places) -> Gate:
    """Return the doors of the forwarder that is in force."""
    return Gate(
        places.unit, request["listen"], int(request["admin_port"]), request["token"], bool(request["certificate"])
    )


def preflight(request: dict[str, Any], places: Places) -> None:
    """Run the new release beside what runs, and let it look at the real database.

    Raises:
        FailedError: it does not become healthy, or can't use the database; what runs was not touched.
    """
    say(doing=f"trying release {request['release']} before it takes over")
    write_credentials(places.preflight_credentials, request["settings"] | request["secrets"])
    try:
        trial(request, places)
        check(request)
    finally:
        clean_up_preflight(places)


def trial(request: dict[str, Any], places: Places) -> None:
    """Run the new release under its real unit, with its real settings, and a socket and state of its own.

    Raises:
        FailedError: it does not become healthy.
    """
    own = request["preflight"]
    unit = f"{places.unit}{PREFLIGHT}"
    TRANSIENT.mkdir(exist_ok=True)
    started = time.time()
    admin_port = free_port()
    write(TRANSIENT / f"{unit}.service", own["service"].replace(ANY_PORT, f"{ANY_PORT[:-1]}{admin_port}"))
    write(TRANSIENT / f"{unit}.socket", own["socket"])
    try:
        systemd.reload()
        run("systemctl", "start", f"{unit}.socket")
        systemd.start(unit, seconds=START)
        Gate(unit, own["listen"], admin_port, request["token"], bool(request["certificate"])).wait(TRIAL)
    except FailedError as error:
        words = systemd.last_words(unit, started)
        raise FailedError(
            f"release {request['release']} was refused before it took over ({error}); nothing was changed."
            f" Its last words:\n{words}"
        ) from None


def check(request: dict[str, Any]) -> None:
    """Let the new release look at the real database, as the service's user, and change nothing.

    Raises:
        FailedError: it can't use it, or what is in force, here or on another server, could not go on with what it
            would leave.
    """
    try:
        status, said, complaint = answer(*request["preflight"]["check"], seconds=CHECK)
    except FailedError as error:
        status, said, complaint = 1, "", f"its look at the database: {error}"
    if status:
        lines = complaint.strip().splitlines()[-1:]
        problems = json.loads(said)["findings"][0]["problems"] if said.startswith("{") else lines
        raise FailedError(
            f"release {request['release']} was refused before it took over; nothing was changed: {'; '.join(problems)}"
        )


def free_port() -> int:
    """Return a port of the loopback interface that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def clean_up_preflight(places: Places) -> None:
    """Leave nothing of a preflight, its own or one that was cut off."""
    unit = f"{places.unit}{PREFLIGHT}"
    files = [TRANSIENT / f"{unit}.service", TRANSIENT / f"{unit}.socket"]
    if any(file.exists() for file in files):
        systemd.kill(unit)
        systemd.stop(f"{unit}.socket")
        for file in files:
            discard(file)
        systemd.reload()
    if systemd.active(f"{places.unit}{CHECKING}.service"):
        systemd.kill(f"{places.unit}{CHECKING}")
    for left in (places.preflight_credentials, *state_folders(unit)):
        discard(left)


def state_folders(unit: str) -> list[Path]:
    """Return where systemd keeps the state of a dynamic user's unit: the link, and what it leads to."""
    return [Path("/var/lib") / unit, Path("/var/lib/private") / unit]


def back_up(places: Places, before: str) -> None:
    """Copy the outbox, while it is in use, before release `before` migrates it.

    What a release that failed has left of its tables gets a copy of its own, so that a further try of the same release
    does not replace the one from before its migration.
    """
    outbox = places.state / "outbox.db"
    if not outbox.exists():
        return
    say(doing="backing up the outbox")
    places.backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = places.backups / "new.db"
    try:
        discard(copy)
        with (
            contextlib.closing(sqlite3.connect(outbox, timeout=30)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            tables = version(target)
        copy.replace(places.backups / f"before-{before}-tables-{tables}.db")
    except (sqlite3.Error, OSError) as error:
        discard(copy)
        raise FailedError(f"the outbox can't be backed up: {error}") from None
    finally:
        give_to_its_owner(outbox)
    kept = sorted(places.backups.glob("before-*.db"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in kept[BACKUPS_KEPT:]:
        discard(old)


def version(outbox: sqlite3.Connection) -> str:
    """Return the version of an outbox's tables: what `forwarder/migrations` keeps; the first release kept none."""
    kept = outbox.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    found = kept and outbox.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found[0]) if found else "1"


def give_to_its_owner(outbox: Path) -> None:
    """Make SQLite's side files, which root may have made, belong to who owns the outbox."""
    owner = outbox.stat()
    for side in outbox.parent.glob("outbox.db-*"):
        with contextlib.suppress(FileNotFoundError):
            shutil.chown(side, owner.st_uid, owner.st_gid)


def switch(request: dict[str, Any], places: Places, changes: list[str]) -> None:
    """Put what is declared in force; back to what was, when that does not become healthy.

    Once it is healthy, what was before is forgotten first of all: cut off behind that, nobody goes back further than to
    what runs.
    """
    started = time.time()
    remember(places)
    try:
        put_in_force(request, places, changes)
        gate(request, places).wait()
    except (FailedError, OSError) as error:
        words = systemd.last_words(places.unit, started)
        outcome = roll_back(places)
        raise FailedError(
            f"release {request['release']} did not become healthy ({error}). {outcome} Its last words:\n{words}"
        ) from None
    forget(places)


def remember(places: Places) -> None:
    """Keep what is in force, unless something better is kept since a switch that was cut off."""
    if places.before.exists() or not places.applied.exists():
        return
    fresh = places.before.with_name(f"{places.before.name}.new")
    discard(fresh)  # of one that was cut off
    fresh.mkdir(mode=0o700)
    for part in (places.service, places.socket, places.command):
        if part.exists():
            shutil.copy2(part, fresh / part.name)
    if places.credentials.exists():
        shutil.copytree(places.credentials, fresh / "credentials")
    fresh.rename(places.before)


def forget(places: Places) -> None:
    """Forget what was in force before, at one stroke: half of it must never be gone back to."""
    old = places.before.with_name(f"{places.before.name}.old")
    discard(old)  # of one that was cut off
    if places.before.exists():
        places.before.rename(old)
        discard(old)


def put_in_force(request: dict[str, Any], places: Places, changes: list[str]) -> None:
    """Write units and settings, and restart what must be: the kernel holds what arrives meanwhile."""
    write_credentials(places.credentials, request["settings"] | request["secrets"])
    for part, text in ((places.service, request["service"]), (places.socket, request["socket"])):
        for drop_in in systemd.drop_ins(part):
            discard(Path(drop_in))
        if read(part) != text:
            write(part, text)
    write(places.command, request["command"], 0o755)
    bring_up(places, restart_socket="socket" in changes)


def bring_up(places: Places, *, restart_socket: bool) -> None:
    """Make systemd run what the unit files say."""
    service, door = f"{places.unit}.service", f"{places.unit}.socket"
    systemd.reload()
    run("systemctl", "enable", "--quiet", service, door)
    if restart_socket:
        systemd.stop(service, door)
    if not systemd.active(door):
        systemd.stop(service)
        run("systemctl", "start", door)
    say(doing="restarting, while the kernel holds what arrives" if systemd.active(service) else "starting")
    systemd.start(places.unit, again=True, seconds=START)


def roll_back(places: Places) -> str:
    """Put in force again what was before; return what came of it, as a sentence.

    The outbox stays as it is: what was accepted and mailed since is in it, and the release before can use it.
    """
    if not (places.before / places.service.name).exists():
        systemd.kill(places.unit)
        return "Nothing was in force before."
    say(doing="going back to what was in force before")
    try:
        restore(places)
        previous_gate(places).wait()
    except (FailedError, OSError) as error:
        return f"What was in force before does not start either ({error}): look at its journal, then run `pulumi up`."
    write(places.applied, in_force(places), 0o600)
    forget(places)
    return "What was in force before runs again."


def restore(places: Places) -> None:
    """Write what was in force and start it; what never became ready does not listen to SIGTERM."""
    kept = credentials(places.before / "credentials")
    write_credentials(places.credentials, kept)
    changed = False
    for part in (places.service, places.socket):
        former = read(places.before / part.name)
        changed |= part == places.socket and former != read(part)
        if former is not None:
            write(part, former)
    former = read(places.before / places.command.name)
    if former is None:
        discard(places.command)
    else:
        write(places.command, former, 0o755)
    if not systemd.active(f"{places.unit}.service"):
        systemd.reload()
        systemd.kill(places.unit)
    bring_up(places, restart_socket=changed)


def previous_gate(places: Places) -> Gate:
    """Return the doors of what was in force before: its own port and token."""
    told = credentials(places.credentials)
    listen = next(line for line in (read(places.socket) or "").splitlines() if line.startswith("ListenStream="))
    token = told["FORWARDER_TOKENS"].partition(",")[0]
    tls = "FORWARDER_TLS_KEY=" in (read(places.service) or "")
    return Gate(places.unit, listen.partition("=")[2], int(told["FORWARDER_ADMIN_PORT"]), token, tls)


def take_back(places: Places) -> None:
    """Undo a first installation: nothing of it stays but an outbox, if there is one."""
    systemd.stop(f"{places.unit}.service", f"{places.unit}.socket")
    systemd.kill(places.unit)
    caddy.withdraw(places)
    uninstall(places)
    if not (places.state / "outbox.db").exists():
        for folder in state_folders(places.unit):
            discard(folder)


def uninstall(places: Places) -> None:
    """Remove units, settings and releases."""
    with contextlib.suppress(FailedError):
        run("systemctl", "disable", "--quiet", f"{places.unit}.service", f"{places.unit}.socket")
    for unit in (places.service, places.socket):
        for drop_in in systemd.drop_ins(unit):
            discard(Path(drop_in))
        discard(unit.with_name(f"{unit.name}.d"))
        discard(unit)
    systemd.reload()
    kept = places.credentials.parent.glob(f"{places.name}.*")  # what was in force before, the digest, the owner
    for part in (places.credentials, *kept, places.run, places.home):
        discard(part)
    for shared in (places.credentials.parent, places.home.parent):
        with contextlib.suppress(OSError):  # another environment is there
            shared.rmdir()
