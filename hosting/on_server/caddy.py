"""A forwarder's site behind Caddy: a file of its own that the Caddyfile imports; the rest is the operator's.

CallFire posts to the former domain until it is told the new one, after all this. So the former site goes on in a file
beside the new one (`Places.former_site`), and the next change of the forwarder removes it.
"""

import contextlib
import http.client
import json
import re
import ssl
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from hosting.on_server import systemd
from hosting.on_server.gate import ask
from hosting.on_server.places import FailedError, Places, discard, read, run, say, write

CADDYFILE = Path("/etc/caddy/Caddyfile")
IMPORT = "import /etc/caddy/callfire-mail-*.caddy"
CERTIFICATE_WITHIN = 90.0  # seconds


def serve(request: dict[str, Any], places: Places, *, settled: bool) -> None:
    """Make Caddy serve the declared site, or none; with `settled`, the `up` that brought the one in force had ended.

    Raises:
        FailedError: Caddy refuses it, or no trusted certificate came; the sites are what they were.
    """
    if not request["site"]:
        withdraw(places)
        return
    found = {place: go_on(read(place), request) for place in (places.site, places.former_site)}
    former = (not settled and found[places.former_site]) or found[places.site]
    if former and str(request["domain"]).lower() in domains(former):
        former = None
    try:
        put({places.site: request["site"], places.former_site: former})
        wait_for_https(str(request["domain"]))
    except (FailedError, OSError):
        with contextlib.suppress(FailedError):
            put(found)
        raise


def go_on(site: str | None, request: dict[str, Any]) -> str | None:
    """Return a site that is there as it goes on: it passes posts to where the declared one does."""
    [upstream] = re.findall(r"reverse_proxy (\S+)", request["site"])
    return site and re.sub(r"(?<=reverse_proxy )\S+", upstream, site)


def domains(text: str) -> set[str]:
    """Return the domains of the sites in a file of Caddy's."""
    heads = " ".join(re.findall(r"^([^#\s][^#\n]*)[{,]\s*(?:#.*)?$", text, re.MULTILINE)).lower()
    return {re.sub(r"^https://|:443$", "", name) for name in re.findall(r"[^,\s]+", heads)}


def served_by(domain: str, places: Places) -> Path | None:
    """Return the file of another site of this domain, if Caddy has one."""
    patterns = re.findall(r"^\s*import\s+(\S+)", read(CADDYFILE) or "", re.MULTILINE)
    imported = {file for pattern in patterns for file in Path("/").glob(str(CADDYFILE.parent / pattern)[1:])}
    others = {CADDYFILE, *imported} - {places.site, places.former_site}
    return next(
        (file for file in sorted(others) if file.is_file() and domain.lower() in domains(read(file) or "")), None
    )


def put(sites: Mapping[Path, str | None]) -> None:
    """Make Caddy serve exactly these sites of the forwarder's; it is left alone if it does.

    Raises:
        FailedError: it refuses them.
    """
    changed = [place for place, site in sites.items() if read(place) != site]
    for place in changed:
        site = sites[place]
        write(place, site) if site else discard(place)
    caddyfile = read(CADDYFILE) or ""
    if IMPORT not in caddyfile:
        write(CADDYFILE, with_import(caddyfile))
    elif not changed and systemd.active("caddy.service"):
        return
    try:
        reload()
    except FailedError as error:
        raise FailedError(f"Caddy refuses the site {next(iter(sites))}: {error}") from None


def with_import(text: str) -> str:
    """Return a Caddyfile that imports our sites, once."""
    return text if IMPORT in text else f"{text.rstrip()}\n\n{IMPORT}\n".lstrip()


def reload() -> None:
    """Make Caddy read its files; a reload loses no request, a restart would."""
    if systemd.active("caddy.service"):
        run("systemctl", "reload", "caddy.service", seconds=60)
    else:
        run("systemctl", "enable", "--quiet", "--now", "caddy.service", seconds=60)


def withdraw(places: Places) -> None:
    """Remove the site, if there is one, and the former one."""
    found = [place for place in (places.site, places.former_site) if place.exists()]
    for place in found:
        discard(place)
    if found:
        with contextlib.suppress(FailedError):
            reload()


def wait_for_https(domain: str) -> None:
    """Return when the domain answers here with a certificate that the server trusts."""
    started, deadline = time.time(), time.monotonic() + CERTIFICATE_WITHIN
    waiting = False
    while trouble := unanswered(domain):
        if time.monotonic() > deadline:
            if trouble.startswith("https:"):
                raise FailedError(
                    f"after {CERTIFICATE_WITHIN:.0f} seconds, {trouble}: `journalctl -u caddy` tells more"
                )
            raise FailedError(
                f"there is no certificate for {domain} after {CERTIFICATE_WITHIN:.0f} seconds:"
                f" {complaint(domain, systemd.last_words('caddy', started)) or trouble}. Its DNS name must point to"
                " this server, and ports 80 and 443 be open; `journalctl -u caddy` there tells more"
            )
        if not waiting:
            say(doing=f"waiting for a certificate of {domain}")
        waiting = True
        time.sleep(0.1)


def unanswered(domain: str) -> str:
    """Return why the domain does not answer here as it is to; nothing when it does."""
    try:
        status, _ = ask(here(domain), "GET", "/healthz")
    except (OSError, http.client.HTTPException) as error:
        return str(error) or "no answer"
    return "" if status == HTTPStatus.OK else f"https://{domain}/healthz answers {status}"


def complaint(domain: str, words: str) -> str:
    """Return the last error about a domain in these lines of Caddy's log; nothing, if there is none."""
    for line in reversed(words.splitlines()):
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("error") and domain in line:
                return f"Caddy says: {said['error']}"
    return ""


def here(domain: str) -> http.client.HTTPSConnection:
    """Return a connection to this machine under the name of the domain."""
    context = ssl.create_default_context()
    connection = http.client.HTTPSConnection("127.0.0.1", 443, timeout=5)
    plain = http.client.HTTPConnection("127.0.0.1", 443, timeout=5)
    plain.connect()
    connection.sock = context.wrap_socket(plain.sock, server_hostname=domain)
    return connection
