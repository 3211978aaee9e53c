"""Proves a stack's settings before its first `pulumi up`: everything is looked at, everything that is wrong is told.

It stands here and not in `hosting/` because it asks both sides, CallFire and the servers, and only the program and its
stacks may know both. Nothing is changed anywhere, and no secret is shown.
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pulumi
from pulumi.runtime import set_all_config

from hosting.errors import HostingError, in_stack_names
from hosting.server import claim_of, examine
from provider.account import account_of
from provider.errors import InvalidSettings, ProviderError, TimedOut, Unavailable, Unreachable
from provider.settings import read_settings
from provider.stacks import held, pulumi_cli
from stacks.finding import Finding
from stacks.overlap import also_posted, without_token
from stacks.public import PATIENCE, PublicAddress, look_from_outside
from stacks.settings import PROJECT, StackSettings, WrongSettingError

NAMESPACE = "callfire-mail"
POSTGRESQL = 5432
WITHOUT_TOKEN = "0123456789abcdef"  # noqa: S105 - so that the forwarder looks at the other settings
Config = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack as it is kept.

    Attributes:
        name: without its owner.
        config: its configuration in plain text, with the defaults of Pulumi.yaml.
        secrets: which of that are secrets.
        held: the ids of its subscriptions.
        claim: what tells its forwarder from another stack's; by default, it has none.
    """

    name: str
    config: Config = field(repr=False)
    secrets: Collection[str]
    held: Collection[str] = ()
    claim: Mapping[str, Any] = field(default_factory=lambda: claim_of({}))


def read_stack(stack: str | None) -> Stack:
    """Return a stack as it is kept.

    Raises:
        StacksUnknown: there is no such stack, its passphrase is missing, or there is no Pulumi CLI.
    """
    chosen = ["--stack", stack] if stack else []
    values = json.loads(pulumi_cli(PROJECT, "config", "--json", "--show-secrets", *chosen))
    exported = json.loads(pulumi_cli(PROJECT, "stack", "export", "--show-secrets", *chosen))
    name = pulumi_cli(PROJECT, "stack", "--show-name", *chosen).strip()
    return Stack(
        name=name.rpartition("/")[2],  # a backend's may begin with its owner
        config={key: str(found.get("value", "")) for key, found in values.items()},
        secrets={key for key, found in values.items() if found.get("secret")},
        held=held(exported),
        claim=claim_of(exported),
    )


async def check(stack: Stack) -> list[Finding]:
    """Return all findings of a stack's settings."""
    config = stack.config
    set_all_config(dict(config), list(stack.secrets))
    settings, mistakes = StackSettings.load_what_is_right(pulumi.Config(NAMESPACE), stack.name)
    found = [
        Finding("settings", tuple(mistakes), f"hosting {config.get(f'{NAMESPACE}:hosting')}"),
        await asyncio.to_thread(callfire, stack, settings),
    ]
    try:
        hosting = settings.hosting
    except WrongSettingError as error:
        return [*found, left_out("mail server and servers", error)]
    asked = await servers(stack, settings) if hosting == "server" else []
    if hosting != "external":
        answered = any(answered for answered, _ in asked)
        found += await asyncio.to_thread(forwarder, settings, config, asked=answered)
    if hosting == "server":
        found += [finding for _, finding in asked]
        found += await public_address(settings)
    return found


def left_out(what: str, error: WrongSettingError) -> Finding:
    """Return that something was not looked at, since a setting is wrong that it depends on."""
    return Finding(what, untried=f"{error} first")


def callfire(stack: Stack, settings: StackSettings) -> Finding:
    """Log in to CallFire, and see who else gets the texts that these settings are for."""
    try:
        told = read_settings(stack.config.get)
        subscriptions = account_of(replace(told, timeout=PATIENCE)).all()
    except InvalidSettings:
        return Finding("CallFire", untried="its settings first")
    except (Unreachable, TimedOut) as error:
        return Finding("CallFire", (error.said, f"Check callfire:url and the way to {told.url}."))
    except Unavailable as error:
        return Finding("CallFire", (error.said,))
    except ProviderError as error:
        return Finding("CallFire", (error.said, error.what_to_do))
    count = len(subscriptions)
    right = [f"{told.url}, logged in as {told.login}, {count} subscription{'s' * (count != 1)}"]
    try:
        external = settings.endpoint is not None
        own = without_token(stack.config[f"{NAMESPACE}:endpoint"] if external else f"{settings.url()}/postback/")
        strange = [found for found in subscriptions if found.id not in stack.held]
        others = [found for found in strange if without_token(found.properties["endpoint"]) != own]
        right += also_posted(settings.subscriptions().values(), others)
    except WrongSettingError as error:
        right.append(f"who else gets the texts: not looked at, {error} first")
    return Finding("CallFire", right="\n".join(right))


def forwarder(settings: StackSettings, config: Config, *, asked: bool) -> list[Finding]:
    """Let the forwarder itself look at its settings, log in to the mail server, and open the database.

    On a server it may reach what can't be reached from here: that is not wrong if a server was `asked` (`elsewhere`).
    """
    looked_at = ["mail server", *(["database"] if config.get(f"{NAMESPACE}:databaseUrl") else [])]
    try:
        told = settings.forwarder() | {name: str(path) for name, path in settings.forwarder_files().items()}
    except WrongSettingError as error:
        return [left_out(what, error) for what in looked_at]
    told["FORWARDER_TOKENS"] = WITHOUT_TOKEN
    secrets = {"FORWARDER_SMTP_PASSWORD": "smtpPassword", "FORWARDER_DATABASE_URL": "databaseUrl"}
    told |= {name: value for name, key in secrets.items() if (value := config.get(f"{NAMESPACE}:{key}"))}
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
        said = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    except (ValueError, KeyError):
        return [Finding("mail server", (f"`python -m forwarder check` failed: {done.stderr.strip()}",))]
    if said["settings"]["problems"]:
        wrong = tuple(map(in_stack_names, said["settings"]["problems"]))
        return [Finding("forwarder", wrong), *(Finding(what, untried="that first") for what in looked_at)]
    away = {purpose for purpose, host, port in elsewhere(settings, config) if not answers_here(host, port)}
    found = []
    for what in looked_at:
        wrong = tuple(map(in_stack_names, said[what]["problems"]))
        if asked and what in away:
            found.append(Finding(what, untried="it does not answer on this machine; below, the server tries it"))
        else:
            unasked = ("From the server it may answer, which could not be asked.",) if what in away else ()
            found.append(Finding(what, wrong + unasked, said[what]["detail"]))
    return found


def elsewhere(settings: StackSettings, config: Config) -> list[tuple[str, str, int]]:
    """Return what a forwarder on a server must reach from there: what it is, its host and its port."""
    if settings.hosting != "server":
        return []
    places = []
    with contextlib.suppress(WrongSettingError):
        places.append(("mail server", settings.smtp_host, settings.smtp_port))
    with contextlib.suppress(ValueError):  # several hosts; or no URL at all, and its words would hold the password
        url = urlsplit(config.get(f"{NAMESPACE}:databaseUrl", ""))
        if url.hostname:
            places.append(("database", url.hostname, url.port or POSTGRESQL))
    return places


def answers_here(host: str, port: int) -> bool:
    """Tell whether somebody listens there, as seen from this machine."""
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


async def servers(stack: Stack, settings: StackSettings) -> list[tuple[bool, Finding]]:
    """Ask every server, and tell of each first whether it answered."""
    try:
        hosts = settings.server_hosts
    except WrongSettingError as error:
        return [(False, left_out("servers", error))]
    return await asyncio.gather(*(server(stack, host, settings) for host in hosts))


async def server(stack: Stack, host: str, settings: StackSettings) -> tuple[bool, Finding]:
    """Log in to a server and ask it for what it lacks; tell first whether it answered."""
    domain = ""
    with contextlib.suppress(WrongSettingError):
        domain = settings.domain
    try:
        access = replace(settings.access(), key=stack.config.get(f"{NAMESPACE}:serverKey") or "")
        facts, lacks = await examine(
            stack.name,
            host,
            access,
            listen=settings.listen(),
            admin_port=settings.forwarder_admin_port,
            domain=domain,
            certificate=[settings.tls_certificate, settings.tls_key] if settings.tls == "files" else [],
            caddy=settings.tls == "acme",
            reach=elsewhere(settings, stack.config),
            ours=stack.claim,
        )
    except WrongSettingError as error:
        return False, left_out(f"server {host}", error)
    except HostingError as error:
        return False, Finding(f"server {host}", (str(error),))
    return True, Finding(f"server {host}", tuple(lacks), f"Python {facts['python']}, {facts['machine']}")


async def public_address(settings: StackSettings) -> list[Finding]:
    """Look at DNS name, ports and certificate."""
    try:
        public = PublicAddress.of(settings)
    except WrongSettingError as error:
        return [left_out(what, error) for what in ("DNS name", "ports and certificate")]
    return await look_from_outside(public)
