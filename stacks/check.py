"""Proves a stack's settings before its first `pulumi up`: everything is looked at, everything that is wrong is told.

It stands here and not in `hosting/` because it asks both sides, CallFire and the servers, and only the program and its
stacks may know both. Nothing is changed anywhere, and no secret is shown.
"""

import asyncio
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pulumi
from pulumi.runtime import set_all_config

from hosting.errors import HostingError, in_stack_names
from hosting.server import examine
from provider.account import account_of
from provider.errors import InvalidSettings, ProviderError, Temporary
from provider.settings import read_settings
from stacks.settings import PROJECT, StackSettings

NAMESPACE = "callfire-mail"
PATIENCE = 10.0  # seconds for each thing that is asked
WITHOUT_TOKEN = "0123456789abcdef"  # noqa: S105 - so that the forwarder looks at the other settings
Config = Mapping[str, str]


class NoConfigError(Exception):
    """The stack's configuration can't be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        wrong: what is wrong with it, a sentence each.
        right: what was found, where nothing is.
        first: what is to be put right before it can be looked at.
    """

    what: str
    wrong: tuple[str, ...] = ()
    right: str = ""
    first: str = ""

    def __str__(self) -> str:
        """What a person reads of it."""
        if self.first:
            return f"-      {self.what}: not looked at, {self.first} first"
        if not self.wrong:
            return f"ok     {self.what}: {self.right}"
        return "\n".join(
            [f"WRONG  {self.what}", *(f"         {line}" for said in self.wrong for line in said.splitlines())]
        )


def read_config(stack: str | None) -> tuple[str, dict[str, str], set[str]]:
    """Return a stack's name, its configuration in plain text, with the defaults of Pulumi.yaml, and the secrets in it.

    Raises:
        NoConfigError: there is no such stack, or its passphrase is missing.
    """
    chosen = ["--non-interactive", *(["--stack", stack] if stack else [])]
    values = json.loads(pulumi_cli("config", "--json", "--show-secrets", *chosen))
    name = (
        pulumi_cli("stack", "--show-name", *chosen).strip().rpartition("/")[2]
    )  # a backend's may begin with its owner
    return (
        name,
        {key: str(found.get("value", "")) for key, found in values.items()},
        {key for key, found in values.items() if found.get("secret")},
    )


def pulumi_cli(*words: str) -> str:
    """Return what the Pulumi CLI prints.

    Raises:
        NoConfigError: it refuses, or is not there.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            ["pulumi", *words],  # noqa: S607 - the one on PATH
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise NoConfigError(
            "the Pulumi CLI is not on PATH. The project's set-up has one:\n"
            '  export PATH="$(.venv/bin/python tools/pulumi_cli.py path):$PATH"'
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().removeprefix("error: ")
        raise NoConfigError(said or f"`pulumi {words[0]}` failed")
    return done.stdout


async def check(stack: str, config: Config, secrets: set[str]) -> list[Finding]:
    """Return all findings of a stack's settings."""
    set_all_config(dict(config), list(secrets))
    try:
        settings = StackSettings.load(pulumi.Config(NAMESPACE))
    except pulumi.RunError as error:
        wrong = tuple(line.strip() for line in str(error).splitlines()[1:])
        rest = [Finding(what, first="the settings") for what in looked_at(config)]
        return [Finding("settings", wrong), await asyncio.to_thread(callfire, config), *rest]
    found = [Finding("settings", right=f"hosting {settings.hosting}"), await asyncio.to_thread(callfire, config)]
    if settings.hosting != "external":
        found.append(await asyncio.to_thread(mail_server, settings, config))
    if settings.hosting == "server":
        found += [await server(stack, host, settings, config) for host in settings.server_hosts]
        if settings.domain and settings.tls != "none":
            found.append(await asyncio.to_thread(dns, settings))
            found += await asyncio.to_thread(lambda: list(ports(settings)))
    return found


def looked_at(config: Config) -> list[str]:
    """Return what is looked at only when the settings are right."""
    hosting, tls = config.get(f"{NAMESPACE}:hosting"), config.get(f"{NAMESPACE}:tls")
    names = [] if hosting == "external" else ["mail server"]
    if hosting == "server":
        names += ["servers"] if tls == "none" else ["servers", "DNS name", "ports and certificate"]
    return names


def callfire(config: Config) -> Finding:
    """Log in to CallFire."""
    try:
        told = read_settings(config.get)
        count = len(account_of(replace(told, timeout=PATIENCE)).all())
    except InvalidSettings:
        return Finding("CallFire", first="its settings")
    except Temporary as error:
        return Finding("CallFire", (error.said, "check callfire:url, and that this machine may connect there"))
    except ProviderError as error:
        return Finding("CallFire", (str(error),))
    return Finding("CallFire", right=f"{told.url}, logged in as {told.login}, {count} subscriptions")


def mail_server(settings: StackSettings, config: Config) -> Finding:
    """Let the forwarder itself look at its settings, and log in to the mail server, from here."""
    told = settings.forwarder() | {name: str(path) for name, path in settings.forwarder_files().items()}
    told["FORWARDER_TOKENS"] = WITHOUT_TOKEN
    password = config.get(f"{NAMESPACE}:smtpPassword")
    if password:
        told["FORWARDER_SMTP_PASSWORD"] = password
    with tempfile.TemporaryDirectory() as folder:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FORWARDER_")}
        done = subprocess.run(
            [sys.executable, "-m", "forwarder", "check", "--json"],
            cwd=PROJECT,
            env=inherited | told | {"FORWARDER_STATE_DIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        findings = json.loads(done.stdout)["findings"]
    except (ValueError, KeyError):
        return Finding("mail server", (f"`python -m forwarder check` failed: {done.stderr.strip()}",))
    wrong = [problem for finding in findings for problem in finding["problems"] if finding["what"] != "database"]
    detail = next((finding["detail"] for finding in findings if finding["what"] == "mail server"), "")
    return Finding("mail server", tuple(map(in_stack_names, wrong)), detail)


async def server(stack: str, host: str, settings: StackSettings, config: Config) -> Finding:
    """Log in to a server and ask it for what it lacks."""
    access = replace(settings.access(), key=config.get(f"{NAMESPACE}:serverKey") or "")
    try:
        facts, lacks = await examine(
            stack,
            host,
            access,
            listen=settings.listen(),
            admin_port=settings.forwarder_admin_port,
            certificate=[settings.tls_certificate, settings.tls_key] if settings.tls == "files" else [],
            caddy=settings.tls == "acme",
        )
    except HostingError as error:
        return Finding(f"server {host}", (str(error),))
    return Finding(f"server {host}", tuple(lacks), f"Python {facts['python']}, {facts['machine']}")


def dns(settings: StackSettings) -> Finding:
    """Compare the addresses of the domain with those of the servers: each family that both have, for either is used."""
    what = f"DNS name {settings.domain}"
    there = addresses(settings.domain)
    if not there:
        return Finding(what, ("it does not resolve: make an A (and AAAA) record that points to the server",))
    ours = {address for host in settings.server_hosts for address in addresses(host)}
    wrong = []
    for six in (False, True):
        points, is_at = ({address for address in known if (":" in address) == six} for known in (there, ours))
        if points and is_at and not points & is_at and len(settings.server_hosts) == 1:
            wrong.append(f"it points to {', '.join(sorted(points))}, and the server is {', '.join(sorted(is_at))}")
    return Finding(what, tuple(wrong), ", ".join(sorted(there)))


def addresses(host: str) -> set[str]:
    """Return the addresses of a name."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def ports(settings: StackSettings) -> Iterator[Finding]:
    """Knock at the public ports, and look at the certificate if one is shown already."""
    public = 443 if settings.tls == "acme" else settings.forwarder_port
    if not addresses(settings.domain):
        yield Finding("ports and certificate", first="the DNS name")
        return
    for port in (80, public) if settings.tls == "acme" else (public,):
        try:
            socket.create_connection((settings.domain, port), timeout=PATIENCE).close()
            yield Finding(f"port {port}", right="open")
        except ConnectionRefusedError:
            yield Finding(f"port {port}", right="refused: nobody listens yet, or a firewall rejects it")
        except OSError as error:
            reason = f"{error.strerror or error}: open it in the firewall of the server and of its provider"
            yield Finding(f"port {port}", (reason,))
            yield Finding("certificate", first="the port")
            return
    yield certificate(settings.domain, public)


def certificate(domain: str, port: int) -> Finding:
    """Ask for the certificate that the domain shows."""
    connection = http.client.HTTPSConnection(domain, port, timeout=PATIENCE, context=ssl.create_default_context())
    try:
        connection.connect()
        shown: Any = connection.sock.getpeercert()
        return Finding("certificate", right=f"trusted, until {shown['notAfter']}")
    except ssl.SSLError as error:
        return Finding(
            "certificate", (f"{domain} shows one that is not trusted ({error.reason}): CallFire would refuse it",)
        )
    except OSError:
        return Finding("certificate", right="none yet; it comes with the first `pulumi up`")
    finally:
        connection.close()
