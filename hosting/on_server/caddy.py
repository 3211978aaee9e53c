"""A forwarder's site behind Caddy: a file of its own that the Caddyfile imports; the rest is the operator's."""

import contextlib
import http.client
import ssl
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from hosting.on_server import systemd
from hosting.on_server.gate import ask
from hosting.on_server.places import FailedError, Places, discard, read, run, say, write

CADDYFILE = Path("/etc/caddy/Caddyfile")
IMPORT = "import /etc/caddy/callfire-mail-*.caddy"
CERTIFICATE_WITHIN = 90.0  # seconds


def serve(request: dict[str, Any], places: Places) -> None:
    """Make Caddy serve the declared site, or none.

    Raises:
        FailedError: Caddy refuses it (the former site is back), or no trusted certificate came.
    """
    if not request["site"]:
        withdraw(places)
        return
    former = read(places.site)
    if former != request["site"] or IMPORT not in (read(CADDYFILE) or ""):
        write(places.site, request["site"])
        write(CADDYFILE, with_import(read(CADDYFILE) or ""))
        try:
            reload()
        except FailedError as error:
            write(places.site, former) if former is not None else discard(places.site)
            raise FailedError(f"Caddy refuses the site {places.site}: {error}") from None
    elif not systemd.active("caddy.service"):
        reload()
    wait_for_https(str(request["domain"]))


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
    """Remove the site, if there is one."""
    if places.site.exists():
        discard(places.site)
        with contextlib.suppress(FailedError):
            reload()


def wait_for_https(domain: str) -> None:
    """Return when the domain answers here with a certificate that the server trusts."""
    say(doing=f"waiting for a certificate of {domain}")
    started, deadline = time.time(), time.monotonic() + CERTIFICATE_WITHIN
    trouble = ""
    while time.monotonic() < deadline:
        try:
            status, _ = ask(here(domain), "GET", "/healthz")
            if status == HTTPStatus.OK:
                return
            trouble = f"https://{domain}/healthz answers {status}"
        except (OSError, http.client.HTTPException) as error:
            trouble = str(error)
        time.sleep(0.1)
    raise FailedError(
        f"there is no certificate for {domain} after {CERTIFICATE_WITHIN:.0f} seconds ({trouble}): its DNS name must"
        f" point to this server, and ports 80 and 443 be open. Caddy says:\n{systemd.last_words('caddy', started)}"
    )


def here(domain: str) -> http.client.HTTPSConnection:
    """Return a connection to this machine under the name of the domain."""
    context = ssl.create_default_context()
    connection = http.client.HTTPSConnection("127.0.0.1", 443, timeout=5)
    plain = http.client.HTTPConnection("127.0.0.1", 443, timeout=5)
    plain.connect()
    connection.sock = context.wrap_socket(plain.sock, server_hostname=domain)
    return connection
