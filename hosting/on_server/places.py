"""Where things lie on the server, and the few ways in which it is written to."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFLIGHT, CHECKING = "-preflight", "-check"  # what the units end in that try a release


class FailedError(Exception):
    """It can't be done; the message says what happened and holds no secret. `said` is all that a command said."""

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


@dataclass(frozen=True)
class Places:
    """The files of one forwarder.

    Args:
        name: its environment, such as `production`.
    """

    name: str

    @property
    def unit(self) -> str:
        """The name of its units."""
        return f"callfire-mail-{self.name}"

    @property
    def lock(self) -> Path:
        """What a deployment holds."""
        return Path("/run") / f"{self.unit}.lock"  # where nobody but root can make a file

    @property
    def run(self) -> Path:
        """Which `pulumi up` was here last, by whatever name of this server."""
        return Path("/run") / f"{self.unit}.run"

    @property
    def owner(self) -> Path:
        """Which stack it belongs to: the mark that its state remembers."""
        return self.credentials.with_name(f"{self.name}.owner")

    @property
    def home(self) -> Path:
        """What is installed for it."""
        return Path("/opt/callfire-mail") / self.name

    @property
    def releases(self) -> Path:
        """Its releases, each with an environment of its own."""
        return self.home / "releases"

    @property
    def command(self) -> Path:
        """A script that runs the forwarder's own commands."""
        return self.home / "forwarder"

    @property
    def wheels(self) -> Path:
        """The wheels that its releases were made of, so that an upgrade sends only the new ones."""
        return self.home / "wheels"

    @property
    def credentials(self) -> Path:
        """Its settings, one file each, for root alone."""
        return Path("/etc/callfire-mail") / self.name

    @property
    def preflight_credentials(self) -> Path:
        """The same, of a preflight."""
        return self.credentials.with_name(f"{self.name}{PREFLIGHT}")

    @property
    def before(self) -> Path:
        """What was in force before a switch that has not ended well yet."""
        return self.credentials.with_name(f"{self.name}.before")

    @property
    def applied(self) -> Path:
        """A digest of what last went into force and was found healthy."""
        return self.credentials.with_name(f"{self.name}.applied")

    @property
    def service(self) -> Path:
        """Its service unit."""
        return Path("/etc/systemd/system") / f"{self.unit}.service"

    @property
    def socket(self) -> Path:
        """Its socket unit."""
        return Path("/etc/systemd/system") / f"{self.unit}.socket"

    @property
    def site(self) -> Path:
        """Its site, where Caddy stands in front."""
        return Path("/etc/caddy") / f"{self.unit}.caddy"

    @property
    def former_site(self) -> Path:
        """The site of its former domain, until CallFire knows the new one."""
        return self.site.with_name(f"{self.unit}.former.caddy")  # no stack's: a name has no dot

    @property
    def state(self) -> Path:
        """Its outbox (systemd links the folder of a dynamic user there)."""
        return Path("/var/lib") / self.unit

    @property
    def backups(self) -> Path:
        """Copies of the outbox, made before each upgrade."""
        return Path("/var/backups") / self.unit


def say(**what: Any) -> None:
    """Print one line for the machine that runs `pulumi up`, if it still listens."""
    with contextlib.suppress(OSError):
        print(json.dumps(what), flush=True)  # noqa: T201 - its way to answer


def run(*command: str, seconds: float = 60, environment: Mapping[str, str] | None = None) -> str:
    """Return what a command prints.

    Raises:
        FailedError: it failed, or took longer than `seconds`; with its last line.
    """
    status, printed, complaint = answer(*command, seconds=seconds, environment=environment)
    if status:
        said = [line for line in (complaint or printed).strip().splitlines() if line]
        words = next((line for line in reversed(said) if "rror" in line), (said or ["it said nothing"])[-1])
        raise FailedError(f"`{' '.join(command[:4])}` failed: {words}", complaint)
    return printed


def answer(*command: str, seconds: float = 60, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Return the exit status of a command, what it prints, and what it complains of.

    Raises:
        FailedError: there is no such command, or it took longer than `seconds`.
    """
    try:
        done = subprocess.run(  # noqa: S603 - programs of the server that this package names
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ) | dict(environment or {}),
        )
    except FileNotFoundError:
        raise FailedError(f"{command[0]} is not on the server") from None
    except subprocess.TimeoutExpired:
        raise FailedError(f"`{' '.join(command[:4])}` did not end within {seconds:.0f} seconds") from None
    return done.returncode, done.stdout, done.stderr


def write(path: Path, content: str, mode: int = 0o644) -> None:
    """Put `content` at `path`, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:  # noqa: PTH123 - no Path for a descriptor
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(mode)
    fresh.replace(path)


def read(path: Path) -> str | None:
    """Return the text at `path`; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def write_credentials(folder: Path, values: Mapping[str, str]) -> None:
    """Make `folder` hold exactly these files, for root alone."""
    folder.parent.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    for name, value in values.items():
        write(folder / name, value, 0o600)
    for other in folder.iterdir():
        if other.name not in values:
            discard(other)


def discard(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
