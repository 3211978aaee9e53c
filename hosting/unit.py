"""The files that make a forwarder a service of systemd: pure functions from what is declared to their text.

Settings and secrets are credentials (files that systemd hands to the service alone), so nothing here holds a value of
them. The preflight of a new release runs from the same functions: only names, paths and the socket differ.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

PREFIX = "callfire-mail-"
CONTENT = "file."
UNIX = """\
SocketMode=0666
RemoveOnStop=yes"""
PROCESS = "PROCESS"  # stands for the number of one, which only the shell knows
RELEASES = PurePosixPath("/opt/callfire-mail")
SETTINGS = PurePosixPath("/etc/callfire-mail")

# A start may have to migrate a large outbox; a stop drains. A preflight has neither, and is not to be kept up.
PATIENCE = """\
Restart=always
RestartSec=1
TimeoutStartSec=60
TimeoutStopSec=20"""
PREFLIGHT_PATIENCE = """\
Restart=no
TimeoutStartSec=15
TimeoutStopSec=1"""

HARDENING = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
UMask=0077
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
DevicePolicy=closed
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
ProcSubset=pid
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources"""


@dataclass(frozen=True, slots=True)
class Service:
    """One forwarder as a service.

    Attributes:
        name: the environment, such as `production`; several live on one machine side by side.
        release: the release that it runs.
        listen: what the kernel listens on for it: `ADDRESS:PORT`, or the path of a Unix socket.
        credentials: the names of its settings, each a file in `credentials_from`. `file.NAME` is the content of the
            file that the setting NAME is the path of.
        certificate: paths of certificate and key on the server, when the forwarder itself speaks TLS.
        environment: settings that win over the credentials; only the preflight has any.
        suffix: tells the preflight from the real one.
    """

    name: str
    release: str
    listen: str
    credentials: tuple[str, ...]
    certificate: tuple[str, str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""

    @property
    def unit(self) -> str:
        """The name of its units, without `.service` and `.socket`."""
        return f"{PREFIX}{self.name}{self.suffix}"

    @property
    def credentials_from(self) -> PurePosixPath:
        """Where its settings lie, for root alone."""
        return SETTINGS / f"{self.name}{self.suffix}"

    @property
    def python(self) -> PurePosixPath:
        """The interpreter of its release."""
        return RELEASES / self.name / "releases" / self.release / "bin" / "python"


def service_unit(service: Service) -> str:
    """Return `NAME.service`."""
    credentials = [(name, str(service.credentials_from / name)) for name in service.credentials]
    environment = dict(service.environment)
    folder = f"/run/credentials/{service.unit}.service"  # %d, which systemd knows only since 250
    for name in service.credentials:
        if name.startswith(CONTENT):
            environment[name.removeprefix(CONTENT)] = f"{folder}/{name}"
    if service.certificate:
        for name, path in zip(("CERTIFICATE", "KEY"), service.certificate, strict=True):
            credentials.append((f"tls-{name.lower()}", path))
            environment[f"FORWARDER_TLS_{name}"] = f"{folder}/tls-{name.lower()}"
    return f"""\
# Written by pulumi up; `pulumi up --refresh` undoes a change made here.
[Unit]
Description=callfire-mail {service.name}: texts to emails
Requires={service.unit}.socket
After=network-online.target {service.unit}.socket
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={service.python} -m forwarder serve
{lines("Environment", (f"{name}={value}" for name, value in sorted(environment.items())))}\
{lines("LoadCredential", (f"{name}:{path}" for name, path in sorted(credentials)))}\
DynamicUser=yes
StateDirectory={service.unit}
StateDirectoryMode=0700
WorkingDirectory=%S/{service.unit}
{PREFLIGHT_PATIENCE if service.suffix else PATIENCE}
KillMode=mixed
MemoryMax=512M
TasksMax=128
LimitNOFILE=8192

{HARDENING}

[Install]
WantedBy=multi-user.target
"""


def command(service: Service, purpose: str, credentials_from: PurePosixPath) -> list[str]:
    """Return the words that run `python -m forwarder` as the service does: its user, its settings, its outbox."""
    unit = f"{service.unit}-{purpose}"
    properties = [
        "DynamicUser=yes",
        f"User={service.unit}",
        f"StateDirectory={service.unit}",
        "StateDirectoryMode=0700",
    ]
    properties += [f"WorkingDirectory=/var/lib/{service.unit}", "ProtectSystem=strict", "ProtectHome=yes"]
    properties += [f"LoadCredential={name}:{credentials_from / name}" for name in sorted(service.credentials)]
    files = [name for name in service.credentials if name.startswith(CONTENT)]
    words = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={unit}"]
    words += [f"--property={value}" for value in properties]
    words += [f"--setenv={name.removeprefix(CONTENT)}=/run/credentials/{unit}.service/{name}" for name in files]
    return [*words, str(service.python), "-m", "forwarder"]


def operator_command(service: Service) -> str:
    """Return a script for what an operator does to this forwarder, such as `status` or `dead list`.

    Each call is a unit of its own, named after its process.
    """
    words = shlex.join(command(service, f"command-{PROCESS}", service.credentials_from))
    return f"""\
#!/bin/sh
# Written by pulumi up: what an operator does to this forwarder, such as `status` or `dead list`.
exec {words.replace(f"-command-{PROCESS}", "-command-$$")} "$@"
"""


def socket_unit(service: Service) -> str:
    """Return `NAME.socket`: the kernel holds what arrives while the service restarts."""
    return f"""\
# Written by pulumi up; `pulumi up --refresh` undoes a change made here.
[Unit]
Description=callfire-mail {service.name}: where texts arrive

[Socket]
ListenStream={service.listen}
NoDelay=true
Backlog=4096
{UNIX if service.listen.startswith("/") else "SocketMode=0600"}
TriggerLimitIntervalSec=0

[Install]
WantedBy=sockets.target
"""


def caddys_socket(name: str) -> str:
    """Return where Caddy finds a forwarder: no port, which another may have or which may change under what arrives.

    Like a port of the loopback interface it is for every program of the server.
    """
    return f"/run/{PREFIX}{name}.sock"


def caddy_site(domain: str, upstream: str, acme_directory: str) -> str:
    """Return Caddy's site: HTTPS with a certificate that it gets and renews, and only what is for everyone."""
    issuer = f"\ttls {{\n\t\tca {acme_directory}\n\t}}\n" if acme_directory else ""
    return f"""\
# Written by pulumi up; `pulumi up --refresh` undoes a change made here.
{domain} {{
{issuer}\t@public path /postback/* /healthz
\thandle @public {{
\t\treverse_proxy {upstream} {{
\t\t\ttransport http {{
\t\t\t\tkeepalive 60s
\t\t\t}}
\t\t}}
\t}}
\thandle {{
\t\trespond 404
\t}}
}}
"""


def lines(key: str, values: Iterable[str]) -> str:
    """Return one `key=value` line for each value."""
    return "".join(f"{key}={value}\n" for value in values)
