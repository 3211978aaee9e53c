"""SSH to a server: connect with a verified host key, run one program there, and say in a sentence why it can't be done.

One tar goes over the standard input of one command; nothing secret is ever on a command line or in a file there that is
not for root alone.
"""

import asyncio
import contextlib
import io
import ipaddress
import json
import os
import re
import shlex
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import asyncssh

from hosting.errors import HostingError, in_stack_names

ON_SERVER = Path(__file__).resolve().parent / "on_server"
CONNECT_WITHIN = 30.0  # seconds: a machine that was just made needs some until its sshd answers
LOGIN_WITHIN = 15.0  # seconds
RETRY_AFTER = 1.0  # seconds
REQUEST = "request.json"
LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST_NAME = re.compile(rf"{LABEL}(\.{LABEL})*")
NO_HOST = "is no host name, and no address (an IPv6 one stands without brackets)"
JUMP = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<ip6>[^]]+)\]|(?P<host>[^\[\]:@]+))(?::(?P<port>\d{1,5}))?")

# Runs there first. Any Python 3 can read it, so that an old one is told from a missing one. The request stays in
# memory.
BOOTSTRAP = f"""\
import sys
if sys.version_info < (3, 11): sys.exit("python-too-old " + sys.version.split()[0])
import json, shutil, tarfile, tempfile
folder = tempfile.mkdtemp(prefix="callfire-mail-")
try:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        for member in tar:
            if member.name == {REQUEST!r}:
                request = json.load(tar.extractfile(member))
            else:
                tar.extract(member, folder)
    sys.path.insert(0, folder)
    from hosting.on_server.request import main
    main(request | {{"sent": folder}})
except OSError as error:
    print(json.dumps({{"failed": "what was sent can't be written there: " + (error.strerror or str(error))}}))
finally:
    shutil.rmtree(folder, ignore_errors=True)
"""


class ServerError(HostingError):
    """A server can't be used; the message says which, why, and what to do."""


class LoginError(ServerError):
    """One can't log in there: nothing was asked of it."""


class UnreachableError(LoginError):
    """Nobody answers there."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to log in to servers.

    Attributes:
        user: who to log in as: root, or one who may use sudo without a password; empty for the user of this machine.
        port: sshd's port.
        known_hosts: lines as `ssh-keyscan` prints them, which pin the servers' (and the jump host's) keys; without any,
            the file `~/.ssh/known_hosts` counts.
        key_file: the private key; without it and `key`, those of the agent and the usual files are tried.
        key: the private key itself.
        jump: `user@host:port` to go through; an IPv6 address stands in brackets.
        python: the interpreter there.
    """

    user: str = ""
    port: int = 22
    known_hosts: tuple[str, ...] = ()
    key_file: str = ""
    key: str = field(default="", repr=False)
    jump: str = ""
    python: str = "python3"

    def options(self) -> dict[str, Any]:
        """Return what asyncssh is told besides the address."""
        told: dict[str, Any] = {"login_timeout": LOGIN_WITHIN, "connect_timeout": LOGIN_WITHIN}
        told["keepalive_interval"] = 15
        told["known_hosts"] = known_keys(self.known_hosts or known_hosts_file())
        if self.key or self.key_file:
            told |= {"client_keys": [self._private_key()], "agent_path": None}
        return told

    def _private_key(self) -> asyncssh.SSHKey:
        """Return the private key that is declared."""
        where = "the private key in serverKey" if self.key else f"the private key {self.key_file}"
        try:
            if self.key:
                return asyncssh.import_private_key(self.key)
            return asyncssh.read_private_key(str(Path(self.key_file).expanduser()))
        except OSError as error:
            raise LoginError(f"SSH: {where} can't be read: {error.strerror}.") from None
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError) as error:  # of a passphrase, either may speak
            if "assphrase" in str(error):
                raise LoginError(
                    f"SSH: {where} has a passphrase: load it into the agent and name no key, or name one without."
                ) from None
            raise LoginError(f"SSH: {where} is no private key.") from None


def is_host(value: str) -> bool:
    """Tell whether `value` can be a server: a name, or an address (an IPv6 one without brackets)."""
    with contextlib.suppress(ValueError):
        return "%" not in value and bool(ipaddress.ip_address(value))
    return bool(HOST_NAME.fullmatch(value))


def bracketed(host: str) -> str:
    """Return `host` as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def parse_jump(value: str) -> tuple[str, str, int]:
    """Return user (empty if there is none), host and port of a jump host.

    Raises:
        ValueError: it is none.
    """
    found = JUMP.fullmatch(value)
    host = found and (found["ip6"] or found["host"])
    if not found or not host or not is_host(host) or not 0 < int(found["port"] or 22) < 2**16:
        raise ValueError(f"`{value}` is no jump host: USER@HOST:PORT, and an IPv6 address as USER@[ADDRESS]:PORT")
    return found["user"] or "", host, int(found["port"] or 22)


def known_hosts_file() -> list[str]:
    """Return the lines of `~/.ssh/known_hosts`; none where it can't be read."""
    try:
        return (Path.home() / ".ssh" / "known_hosts").read_text(errors="replace").splitlines()
    except OSError:
        return []


def known_keys(lines: Iterable[str]) -> asyncssh.SSHKnownHosts:
    """Return whose keys are right; without any, nobody's are. A line that can't be read counts as none, as for ssh."""
    known = asyncssh.SSHKnownHosts()
    for line in lines:
        with contextlib.suppress(ValueError):
            known.load(line)
    return known


def check_known_host(line: str) -> str:
    """Return `line` when it is one of known_hosts.

    Raises:
        ValueError: it isn't.
    """
    kind_and_key = line.split(maxsplit=2 if line.startswith("@") else 1)[-1]
    try:
        asyncssh.import_known_hosts(line)
        asyncssh.import_public_key(kind_and_key)
    except (ValueError, asyncssh.KeyImportError):
        raise ValueError(f"`{line}` is no line as `ssh-keyscan` prints it: HOST KIND KEY") from None
    return line


@asynccontextmanager
async def connect(
    host: str, access: Access, progress: Callable[[str], None], *, within: float | None = None
) -> AsyncIterator["Server"]:
    """Log in to a server, for the time of a block; `progress` is told when it has to be waited for.

    Raises:
        UnreachableError: nobody answers, `within` so many seconds (`CONNECT_WITHIN`).
        LoginError: the host key is another, the login is refused, or the private key is none.
    """
    options = access.options()
    reach = partial(open_connection, progress=progress, within=CONNECT_WITHIN if within is None else within)
    if access.jump:
        user, name, port = parse_jump(access.jump)
        async with (
            await reach(name, port, user or access.user, options) as jump,
            await reach(host, access.port, access.user, options | {"tunnel": jump}) as connection,
        ):
            yield Server(host, access, connection)
    else:
        async with await reach(host, access.port, access.user, options) as connection:
            yield Server(host, access, connection)


async def open_connection(  # noqa: PLR0913 - the address, and how patient one is with it
    host: str, port: int, user: str, options: Mapping[str, Any], *, progress: Callable[[str], None], within: float
) -> asyncssh.SSHClientConnection:
    """Connect and log in; a server that does not answer yet is tried again for a while."""
    deadline = time.monotonic() + within
    waited_for = ""
    name = {"username": user} if user else {}
    kinds: dict[str, str] = {}
    asked_any = False
    while True:
        try:
            return await asyncssh.connect(host, port, **name, **options, **kinds)
        except asyncssh.HostKeyNotVerifiable:
            if not kinds:
                raise other_key(host, port, options) from None
            # It showed a key of another kind because it was asked for any; a loss before may have had other reasons.
            kinds, asked_any = {}, True
        except asyncssh.PermissionDenied:
            raise LoginError(
                f"SSH to {host}: the login as {user or 'the user of this machine'} was refused: put the public key into"
                " ~/.ssh/authorized_keys there, and name the private one in serverKeyFile (or load it into the agent)."
            ) from None
        except (OSError, asyncssh.Error) as error:
            lost = isinstance(error, asyncssh.ConnectionLost | asyncssh.KeyExchangeFailed | ConnectionResetError)
            if lost and asked_any:
                raise other_key(host, port, options) from None
            if lost and not kinds:
                # So it ends where a server has no key of a kind that is known of it: asked for any, it shows one.
                kinds = {"server_host_key_algs": "default"}
                continue
            reason = reason_of(error)
            if time.monotonic() > deadline or "Name or service" in str(error):
                raise UnreachableError(
                    f"SSH to {host}: port {port} does not answer ({reason}). Check the address, the port, and that the"
                    " server is up."
                ) from None
            if reason != waited_for:
                progress(f"waiting for SSH to {host} ({reason})")
                waited_for = reason
            await asyncio.sleep(RETRY_AFTER)


def other_key(host: str, port: int, options: Mapping[str, Any]) -> LoginError:
    """Return that a server has not shown a key that is known of it."""
    there = " (on the jump host)" if "tunnel" in options else ""
    known = any(options["known_hosts"].match(host, "", port if port != 22 else None))  # noqa: PLR2004 - SSH
    state = "is not the one that is known. If the server was set up again" if known else "is not known yet"
    between = "; otherwise somebody stands in between" if known else ""
    return LoginError(
        f"SSH to {host}: its host key {state}, compare `ssh-keyscan -p {port} {host}`{there} with what its provider"
        f" shows and put it into serverHostKeys (or ~/.ssh/known_hosts){between}. Nothing was sent."
    )


def reason_of(error: OSError | asyncssh.Error) -> str:
    """Return why there is no connection: in the system's words, without a library's; of several tries, the first's."""
    if isinstance(error, OSError):
        number = re.search(r"\[Errno (\d+)\]", str(error))  # asyncio gathers the tries at several addresses in one text
        if number:
            return os.strerror(int(number[1]))
        return error.strerror or str(error) or "no answer"
    return error.reason or "no answer"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that one is logged in to."""

    host: str
    access: Access
    connection: asyncssh.SSHClientConnection

    async def ask(
        self, request: Mapping[str, Any], files: Mapping[str, bytes], progress: Callable[[str], None]
    ) -> dict[str, Any]:
        """Let `on_server` do what `request` says, with these files beside it; return its answer.

        Raises:
            ServerError: it could not be done; the message says why.
        """
        words = shlex.join([self.access.python, "-I", "-c", BOOTSTRAP])  # not what lies in the folder of the user
        command = f'if [ "$(id -u)" = 0 ]; then exec {words}; else exec sudo -n -- {words}; fi'
        try:
            answer, complaint = await self.exchange(command, pack(request, files), progress)
        except (OSError, asyncssh.Error) as error:
            raise ServerError(
                f"{self.host}: the connection ended before the answer ({reason_of(error)}). Run `pulumi up` again: it"
                " finishes what is half done."
            ) from None
        if "done" in answer:
            return dict(answer["done"])
        reason = in_stack_names(str(answer.get("failed") or self.explain(complaint)))
        raise ServerError(f"{self.host}: {reason}{'' if reason.endswith('.') else '.'}")

    async def exchange(
        self, command: str, packed: bytes, progress: Callable[[str], None]
    ) -> tuple[dict[str, Any], str]:
        """Run a command, send it everything, and return its answer and what it complained of."""
        async with self.connection.create_process(command, encoding=None) as process:
            sending = asyncio.create_task(send(process, packed))
            answer: dict[str, Any] = {}
            async for line in process.stdout:
                try:
                    said = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(said, dict):  # a login script may say anything
                    continue
                if "doing" in said:
                    progress(in_stack_names(str(said["doing"])))
                else:
                    answer = said
            complaint = (await process.stderr.read()).decode(errors="replace").strip()
            await asyncio.gather(sending, return_exceptions=True)
            await process.wait_closed()
        return answer, complaint

    def explain(self, complaint: str) -> str:
        """Return why nothing was done there, from what sudo or the shell said."""
        user, python = self.access.user or "the user", self.access.python
        if "python-too-old" in complaint:
            return (
                f"Python 3.11 or newer is needed, and {python} is {complaint.rsplit(maxsplit=1)[-1]}:"
                " install a newer one and name it in serverPython"
            )
        if "not found" in complaint and python in complaint:
            package = PurePosixPath(python).name
            advice = "" if python == "python3" else ", or correct serverPython"
            return f"Python is needed, and there is no {python}: install it with `sudo apt install {package}`{advice}"
        if "sudo" in complaint:
            return (
                f"{user} may not use sudo without a password ({complaint.splitlines()[-1]}): allow it with a line such"
                f" as `{user} ALL=(ALL) NOPASSWD:ALL` in /etc/sudoers.d/callfire-mail, or log in as root"
            )
        return f"the connection ended before the answer: {(complaint or 'no reason was given').splitlines()[-1]}"


async def send(process: "asyncssh.SSHClientProcess[bytes]", packed: bytes) -> None:
    """Send everything; a process that ended early says why elsewhere."""
    try:
        process.stdin.write(packed)
        await process.stdin.drain()
        process.stdin.write_eof()
    except (BrokenPipeError, ConnectionError, asyncssh.Error):
        return


def pack(request: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """Return the request, the program that understands it and the files as one tar."""
    content = {REQUEST: json.dumps(request).encode(), **files}
    content |= {"hosting/__init__.py": b""}  # not this package's own: it knows of Pulumi
    content |= {f"hosting/on_server/{path.name}": path.read_bytes() for path in sorted(ON_SERVER.glob("*.py"))}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()
