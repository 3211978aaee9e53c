"""What is there: never changes anything, and never sends a secret back."""

import hashlib
import hmac
import http.client
import json
import re
import time
from pathlib import Path
from typing import Any

from hosting.on_server import gate, needs, owner, releases, systemd
from hosting.on_server.owner import digest
from hosting.on_server.places import Places, read

AS_DECLARED = "as declared"
CHANGED = "changed on the server"
ANOTHERS = "another stack's"


def look(request: dict[str, Any], places: Places) -> dict[str, Any]:
    """Return the server's facts, what it lacks, and what is installed.

    `request["secrets"]` holds for each secret its HMAC under `request["nonce"]`, so that one can be compared without
    being sent in either direction.
    """
    complete = releases.fits(places.releases / str(request["release"]))
    return {
        "facts": needs.facts(),
        "lacks": needs.lacks(request, places) if request["check"] else [],
        "installed": complete,
        "wheels": {} if complete else wheels(places.wheels),
        "seen": seen(request, places),
        "knows": knows(places),
        "tokens": tokens(int(request["admin_port"])),
        "now": time.time(),
        "started": started(places),
    }


def seen(request: dict[str, Any], places: Places) -> dict[str, Any]:
    """Return what is in force, in the words of what is declared."""
    values = credentials(places.credentials)
    hashes = {name: digest(request["nonce"], values[name]) for name in request["secrets"] if name in values}
    declared_site = read(places.site)
    return {
        "release": release(places),
        "service": read(places.service) or "",
        "socket": read(places.socket) or "",
        "command": read(places.command) or "",
        "site": declared_site or "",
        "drop_ins": systemd.drop_ins(places.service) | systemd.drop_ins(places.socket),
        "settings": {
            name: value if name in request["settings"] else "(not declared)"
            for name, value in values.items()
            if name not in request["secrets"]
        },
        "secrets": {
            name: AS_DECLARED if hmac.compare_digest(hashes.get(name, ""), expected) else CHANGED
            for name, expected in request["secrets"].items()
        },
        "state": ANOTHERS if any(owner.refusal(request, places)) else state(places),
    }


def credentials(folder: Path) -> dict[str, str]:
    """Return the settings in force."""
    return {path.name: path.read_text(errors="replace") for path in sorted(folder.glob("*"))}


def knows(places: Places) -> int | None:
    """Return up to which version the release in force knows the outbox's tables; None where none could run.

    One that is kept since a switch that was cut off may run again, so the lower version of both counts.
    """
    units = (places.service, places.before / places.service.name)
    return min(filter(None, (newest_version(places.releases / release(places, unit)) for unit in units)), default=None)


def newest_version(folder: Path) -> int:
    """Return the newest version of the tables that a release has a file of; 0 without any."""
    files = folder.glob("lib/python*/site-packages/forwarder/migrations/versions/v*.py")
    return max((int(found[1]) for file in files if (found := re.match(r"v(\d+)", file.name))), default=0)


def release(places: Places, unit: Path | None = None) -> str:
    """Return the release in force, or in this unit file; or why there is none."""
    for line in (read(unit or places.service) or "").splitlines():
        if line.startswith("ExecStart=") and f"{places.releases}/" in line:
            name = line.partition(f"{places.releases}/")[2].partition("/")[0]
            folder = places.releases / name
            if releases.fits(folder):
                return name
            return f"{name} ({'made for another Python' if folder.exists() else 'its files are gone'})"
    return "none"


def state(places: Places) -> str:
    """Return `running`, or in a word or two why not."""
    service = systemd.show(f"{places.unit}.service", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload")
    socket = systemd.show(f"{places.unit}.socket", "ActiveState", "UnitFileState", "NeedDaemonReload")
    if service.get("ActiveState") != "active":
        return f"service {service.get('SubState', 'missing')}"
    if socket.get("ActiveState") != "active":
        return "socket stopped"
    if "disabled" in (service.get("UnitFileState"), socket.get("UnitFileState")):
        return "not started at boot"
    if "yes" in (service.get("NeedDaemonReload"), socket.get("NeedDaemonReload")):
        return "running, not by its unit files, which were changed"
    return "running" if read(places.applied) == in_force(places) else "running, its last change was cut off"


def in_force(places: Places) -> str:
    """Return a digest of all that makes the forwarder what it is."""
    said = hashlib.sha256()
    for part in (places.service, places.socket, places.site):
        said.update(f"{read(part)}\0".encode())
    for name, value in credentials(places.credentials).items():
        said.update(f"{name}={value}\0".encode())
    return said.hexdigest()


def wheels(folder: Path) -> dict[str, str]:
    """Return the kept wheels, each with its hash."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.whl")}


def tokens(admin_port: int) -> Any:
    """Return what the forwarder says of the use of its tokens; None when it says nothing."""
    try:
        return json.loads(gate.ask(gate.admin(admin_port), "GET", "/readyz")[1]).get("tokens")
    except (OSError, ValueError, http.client.HTTPException):  # whoever has the port may speak something else
        return None


def started(places: Places) -> float:
    """Return when the service became active, in seconds since 1970."""
    ago = systemd.show(f"{places.unit}.service", "ActiveEnterTimestampMonotonic").get(
        "ActiveEnterTimestampMonotonic", "0"
    )
    return time.time() - (time.monotonic() - int(ago or 0) / 1e6)
