"""What CallFire will find at a forwarder's public address, as seen from here: DNS name, ports and certificate.

Before the first `pulumi up` nobody listens there, which is no mistake; a firewall in between is one, and so is a name
that points elsewhere, even with one of its addresses: who connects chooses among them.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from hosting.server import HTTPS
from stacks.finding import Finding
from stacks.settings import StackSettings

PATIENCE = 10.0  # seconds for each thing that is asked
IPV4 = 4
PLAIN = "wrong version number"  # what OpenSSL says of an answer in plain text
OPEN, REFUSED, NO_ROUTE = "open", "refused", "no route"


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """Where CallFire posts to.

    Attributes:
        name: the DNS name, or an address.
        port: the port that takes postbacks.
        ports: all that must be open.
        tls: how it is spoken to: `acme` or `files`; `none` by a proxy; nothing when it is not HTTPS.
        servers: what the name must point to, if it can be told.
    """

    name: str
    port: int
    ports: tuple[int, ...]
    tls: str
    servers: tuple[str, ...]

    @classmethod
    def of(cls, settings: StackSettings) -> "PublicAddress":
        """Return that of a forwarder on servers."""
        if settings.tls == "none":
            url = urlsplit(settings.url())
            port = url.port or (HTTPS if url.scheme == "https" else 80)
            return cls(url.hostname or "", port, (port,), "none" if url.scheme == "https" else "", ())
        direct = len(settings.server_hosts) == 1 and not settings.server_jump
        servers = settings.server_hosts if direct else ()
        if settings.tls == "acme":
            return cls(settings.domain, HTTPS, (80, HTTPS), "acme", servers)
        return cls(settings.domain, settings.forwarder_port, (settings.forwarder_port,), "files", servers)


async def look_from_outside(public: PublicAddress) -> list[Finding]:
    """Return all findings of a public address."""
    what = f"DNS name {public.name}"
    try:
        there = await addresses(public.name)
    except OSError as error:
        return [Finding(what, (unresolved(error),)), Finding("ports and certificate", untried="the DNS name first")]
    found = [] if is_address(public.name) else [await dns(what, there, public.servers)]
    knocks = await asyncio.gather(*(knock(address, port) for port in public.ports for address in there))
    for number, port in enumerate(public.ports):
        answers = dict(zip(there, knocks[number * len(there) :], strict=False))
        found.append(port_finding(port, answers))
    if public.tls:
        answers = dict(zip(there, knocks[-len(there) :], strict=True))
        found.append(await certificate(public, answers))
    return found


async def addresses(name: str) -> list[str]:
    """Return the addresses of a name, each once.

    Raises:
        OSError: there are none.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "it can be no name") from None
    return sorted({str(entry[4][0]) for entry in found})


def is_address(name: str) -> bool:
    """Tell whether a name is an address itself."""
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def unresolved(error: OSError) -> str:
    """Return why a name has no address, and whose matter that is."""
    if error.errno == socket.EAI_AGAIN:
        return f"it can't be looked up ({error.strerror}): this machine's DNS does not answer"
    return "it does not resolve: make an A (and AAAA) record that points to the server"


async def dns(what: str, there: Sequence[str], servers: Sequence[str]) -> Finding:
    """Compare the name's addresses with its server's; nobody knows of those of a kind that only one of both has."""
    if not servers:
        return Finding(what, right=", ".join(there))
    try:
        ours = await addresses(servers[0])
    except OSError:
        return Finding(what, untried=f"{servers[0]} first")
    wrong = []
    for address in there:
        version = ip_address(address).version
        expected = [other for other in ours if ip_address(other).version == version]
        if expected and address not in expected:
            record = "A" if version == IPV4 else "AAAA"
            wrong.append(f"its {record} record is {address}, and the server is {', '.join(expected)}: correct it")
    return Finding(what, tuple(wrong), ", ".join(there))


async def knock(address: str, port: int) -> str:
    """Return what comes of connecting: `OPEN`, `REFUSED`, `NO_ROUTE`, or why there is no answer."""
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return REFUSED
    except TimeoutError:
        return "no answer"
    except OSError as error:
        if error.errno in {errno.ENETUNREACH, errno.EADDRNOTAVAIL}:
            return NO_ROUTE
        return os.strerror(error.errno) if error.errno else str(error)
    writer.close()
    return OPEN


def port_finding(port: int, answers: Mapping[str, str]) -> Finding:
    """Say what came of knocking at every address of the name."""
    open_ = [address for address, answer in answers.items() if answer == OPEN]
    wrong, right = [], []
    for address, answer in answers.items():
        at = f" at {address}" if len(answers) > 1 else ""
        if answer == OPEN:
            right.append(f"open{at}")
        elif answer == NO_ROUTE:
            right.append(f"not tried{at or f' at {address}'}: this machine has no way there")
        elif answer != REFUSED:
            wrong.append(f"{answer}{at}: open it in the firewall of the server and of its provider")
        elif open_:
            wrong.append(f"refused{at}, but open at {', '.join(open_)}: remove that address from the DNS name")
        else:
            right.append(f"free{at}: nobody listens yet (or a firewall rejects it)")
    return Finding(f"port {port}", tuple(wrong), "; ".join(right))


async def certificate(public: PublicAddress, answers: Mapping[str, str]) -> Finding:
    """Look at the certificate that is shown, if one is."""
    what = "certificate"
    open_ = [address for address, answer in answers.items() if answer == OPEN]
    if not open_:
        refused = all(answer == REFUSED for answer in answers.values())
        return Finding(what, right=unseen(public)) if refused else Finding(what, untried=f"port {public.port} first")
    try:
        return Finding(what, right=f"trusted, until {await last_day(open_[0], public)}")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if public.tls == "acme" and "alert" in reason:  # Caddy is there already, with other names
            return Finding(what, right=unseen(public))
        return Finding(what, (distrusted(error, reason, public),))
    except OSError as error:
        reason = (os.strerror(error.errno) if error.errno else str(error)) or "no answer"
        return Finding(what, (f"port {public.port} is open, but shows none ({reason}): something else listens there",))


async def last_day(address: str, public: PublicAddress) -> str:
    """Return until when the certificate counts that is shown at an address.

    Raises:
        ssl.SSLError: it is not trusted, or it is none.
        OSError: nothing is said.
    """
    async with asyncio.timeout(PATIENCE):
        _, writer = await asyncio.open_connection(
            address, public.port, ssl=ssl.create_default_context(), server_hostname=public.name
        )
    shown = writer.get_extra_info("peercert")
    writer.close()
    return str(shown["notAfter"])


def distrusted(error: ssl.SSLError, reason: str, public: PublicAddress) -> str:
    """Return what is wrong with what is shown in place of a certificate that is trusted."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        return f"the one that {public.name} shows is not trusted ({why}): CallFire would refuse it"
    if reason == PLAIN:
        return f"port {public.port} speaks no TLS: something else listens there, or the forwarder without it as yet"
    return f"port {public.port} shows none ({reason})"


def unseen(public: PublicAddress) -> str:
    """Say where the certificate comes from that is not shown yet."""
    return {
        "none": "none yet; your proxy shows it",
        "files": "none yet; the forwarder shows yours after `pulumi up`",
        "acme": "none yet; it comes with `pulumi up`",
    }[public.tls]
