"""What the server must have before anything is changed: each lack is one sentence that says what to do."""

import contextlib
import os
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosting.on_server import owner, releases, systemd
from hosting.on_server.caddy import CADDYFILE, served_by
from hosting.on_server.places import FailedError, Places, read, run

OLDEST = {"debian": 12.0, "ubuntu": 22.04}
OLDEST_SYSTEMD = 249
WITHOUT_CADDY = "22.04"
CADDYS_OWN = "install it from Caddy's own archive (https://caddyserver.com/docs/install#debian-ubuntu-raspbian)"
ROOM_FOR_A_RELEASE = 400  # MB, wheels and environment
ROOM_FOR_THE_OUTBOX = 100  # MB
OF_A_STACK = "the forwarder"
CADDYS = {80, 443, 2019}  # HTTP, HTTPS, and where it is told to read its files again
ANSWERS_WITHIN = 10.0  # seconds


def lacks(request: dict[str, Any], places: Places) -> list[str]:
    """Return every lack at once; none when the server will do."""
    found = [*system(), *room(request, places), *owner.refusal(request, places)]
    if not found:
        found = [*ports(request, places), *certificate(request), *caddy(request, places)]
    return [*found, *reach(request)]


def system() -> Iterator[str]:
    """Root, the distribution, systemd."""
    if os.geteuid():
        yield "root is needed: log in as root, or as a user who may use sudo without a password"
    release = os_release()
    kind, number = release.get("ID", ""), release.get("VERSION_ID", "")
    if kind not in OLDEST or (number and float(number) < OLDEST[kind]):  # Debian's testing has no number
        yield f"Debian 12 or Ubuntu 22.04, or newer, is needed, and it is {release.get('PRETTY_NAME', 'unknown')}"
    if not Path("/run/systemd/system").is_dir():
        yield "systemd is needed, and it does not run there"
    else:
        number = run("systemctl", "--version").split()[1]
        if int(re.sub(r"\D.*", "", number)) < OLDEST_SYSTEMD:
            yield f"systemd {OLDEST_SYSTEMD} or newer is needed, and it is {number}"


def os_release() -> dict[str, str]:
    """Return what the distribution says of itself."""
    return dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read(Path("/etc/os-release")) or "", re.MULTILINE))


def room(request: dict[str, Any], places: Places) -> Iterator[str]:
    """Space on the disks that are written to."""
    installed = releases.fits(places.releases / str(request["release"]))
    needed = {Path("/var/lib"): ROOM_FOR_THE_OUTBOX}
    if not installed:
        needed[Path("/opt")] = ROOM_FOR_A_RELEASE
    for folder, megabytes in needed.items():
        usage = shutil.disk_usage(folder if folder.exists() else "/")
        if usage.free < megabytes * 10**6:
            yield f"{megabytes} MB must be free in {folder}, and there are {usage.free // 10**6} MB: make room"


def ports(request: dict[str, Any], places: Places) -> Iterator[str]:
    """The ports, which must be free or ours already."""
    public, admin = str(request["listen"]).rpartition(":")[2], int(request["admin_port"])  # or the path of a socket
    ours = re.search(rf"^ListenStream=(.*:)?{public}$", read(places.socket) or "", re.MULTILINE)  # on any address
    wanted: dict[int, tuple[str, set[str]]] = {}
    if public.isdecimal() and not (ours and systemd.active(f"{places.unit}.socket")):
        wanted[int(public)] = ("takes postbacks", set())
    if systemd.show(f"{places.unit}.service", "ActiveState").get("ActiveState") != "active":
        wanted[admin] = ("is the admin port", set())
    if request["site"]:
        if admin in CADDYS:
            yield f"forwarderAdminPort {admin} is Caddy's own with tls `acme`: choose another port"
        wanted |= {80: ("is for Caddy", {"caddy"}), 443: ("is for Caddy", {"caddy"})}
    taken = listeners(set(wanted))
    for port, (purpose, allowed) in sorted(wanted.items()):
        if port in taken and taken[port] not in allowed:
            advice = "choose another port" if OF_A_STACK in taken[port] else "stop that, or choose another port"
            yield f"port {port} {purpose}, and {taken[port]} has it: {advice}"


def listeners(ports_: set[int]) -> dict[int, str]:
    """Return who listens on which of these TCP ports, by the name of the program."""
    inodes = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (read(Path(table)) or "").splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == "0A" and port in ports_:
                inodes[f"socket:[{fields[9]}]"] = port
    if not inodes:
        return {}
    found = dict.fromkeys(inodes.values(), "another program")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names = {str(link.readlink()) for link in (process / "fd").iterdir()}
            unit = re.search(r"/(callfire-mail-.+)\.service$", (process / "cgroup").read_text(), re.MULTILINE)
            program = f"{OF_A_STACK} {unit[1]}" if unit else (process / "comm").read_text().strip()
        except OSError:  # it has ended
            continue
        for inode in names & inodes.keys():
            if found[inodes[inode]] == "another program" or program != "systemd":
                found[inodes[inode]] = program
    return found


def certificate(request: dict[str, Any]) -> Iterator[str]:
    """The files of a certificate that is given."""
    paths = [Path(path) for path in request["certificate"]]
    missing = [path for path in paths if not path.is_file()]
    for path in missing:
        yield f"{path} is not there: put the certificate and its key on the server, or correct the setting"
    if paths and not missing:
        shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            shown.load_cert_chain(paths[0], paths[1])
        except (OSError, ValueError) as error:
            yield f"{paths[0]} and {paths[1]} are no certificate and its key: {error}"
            return
        domain = str(request["domain"])
        wrong = domain and refusal(shown, paths[0], domain)
        if wrong:
            yield (
                f"CallFire would refuse the certificate {paths[0]} ({wrong}): put one there that counts now for"
                f" {domain}, or correct the setting"
            )


def refusal(shown: ssl.SSLContext, certificate_: Path, domain: str) -> str:
    """Return why a client would refuse what is shown, whoever signed it: its names or its time; nothing if none would.

    The two shake hands in memory: what else would read a certificate need not be on the server.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(certificate_)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=domain), shown.wrap_bio(there, back, server_side=True)]
    try:
        for end in ends * 2:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLError as error:
        return str(getattr(error, "verify_message", error)).rstrip(".")
    return ""


def caddy(request: dict[str, Any], places: Places) -> Iterator[str]:
    """Caddy, where it is to get the certificate."""
    if not request["site"]:
        return
    advice = "install it with `sudo apt install caddy`"
    if os_release().get("VERSION_ID") == WITHOUT_CADDY:
        advice = f"Ubuntu {WITHOUT_CADDY} has none, so {CADDYS_OWN}, or choose another tls"
    try:
        run("caddy", "version")
        if systemd.show("caddy.service", "LoadState").get("LoadState") != "loaded":
            yield f"tls `acme` needs Caddy as a service of systemd: {advice}"
    except FailedError:
        yield f"tls `acme` needs Caddy on the server: {advice}"
        return
    try:
        run("caddy", "adapt", "--config", str(CADDYFILE))
    except FailedError as error:
        yield f"Caddy can't read {CADDYFILE} as it is there ({error}): mend it"
    domain = str(request["domain"])
    other = served_by(domain, places)
    if other:
        stack = re.fullmatch(r"callfire-mail-([^.]+).*\.caddy", other.name)
        whose = f"stack {stack[1]}" if stack else "another site of Caddy's"
        yield f"{domain} is served by {whose} there ({other}): choose another domain, or take it away there"


def reach(request: dict[str, Any]) -> Iterator[str]:
    """Who the forwarder will connect to; nobody asks it of an upgrade, which must not wait for them."""
    for purpose, host, port in request.get("reach", []):
        try:
            socket.create_connection((host, port), timeout=ANSWERS_WITHIN).close()
        except OSError as error:
            yield (
                f"the {purpose} {host}:{port} does not answer there ({error.strerror or error}): check the address, and"
                " that neither a firewall nor the server's provider blocks the way"
            )


def facts() -> dict[str, Any]:
    """Return what wheels must fit."""
    glibc = os.confstr("CS_GNU_LIBC_VERSION") or "glibc 2.17"
    return {
        "python": releases.python_version(),
        "machine": os.uname().machine,
        "glibc": int(glibc.rpartition(".")[2]),
    }
