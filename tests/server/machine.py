"""Throw-away Debian servers, with systemd and sshd of their own, for the time of a test session (`testhost.sh`)."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SCRIPT = Path(__file__).with_name("testhost.sh")
HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "callfire-mail" / "testhost"
PROGRAMS = ("systemd-nspawn", "debootstrap", "ip", "ssh", "ssh-keygen", "nsenter")
PATIENCE = 60.0  # seconds


def missing() -> str:
    """Say what this machine lacks for such servers; nothing when it will do."""
    if os.geteuid():
        return "throw-away servers need root"
    lacking = [program for program in PROGRAMS if not shutil.which(program)]
    if lacking:
        return f"throw-away servers need {', '.join(lacking)} (tests/debian-packages.txt)"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return "throw-away servers need network and mount namespaces, which this machine does not allow" * bool(
        tried.returncode
    )


def call(verb: str, name: str, *words: str, suite: str = "bookworm", stdin: str = "", check: bool = True) -> str:
    """Return what the script prints."""
    done = subprocess.run(
        ["bash", SCRIPT, verb, name, *words],
        env=os.environ | {"TH_DIR": str(HOME / "hosts"), "TH_CACHE": str(HOME), "TH_SUITE": suite},
        capture_output=True,
        text=True,
        input=stdin,
        timeout=600,
        check=False,
    )
    assert not check or done.returncode == 0, f"{verb} {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def no_tree(suite: str) -> str:
    """Say why this Debian can't be had, which is fetched when it is first asked for; nothing when it is there."""
    try:
        call("cache", "a", suite=suite)
    except AssertionError as error:
        return f"Debian {suite} can't be fetched for throw-away servers: {str(error).partition(': ')[2].strip()}"
    return ""


def sweep() -> None:
    """Remove the servers of sessions that were killed."""
    for folder in (HOME / "hosts").glob("p[0-9]*"):
        owner = int(folder.name[1:].partition("-")[0])
        if not psutil.pid_exists(owner):
            call("down", folder.name)


class Machine:
    """A server.

    Attributes:
        ip: its address.
        ip6: another one.
        gateway: this side's address, as it sees it.
        root: its files, as this side sees them.
    """

    def __init__(self, label: str, suite: str = "bookworm") -> None:
        self.name = f"p{os.getpid()}-{label}"
        self.suite = suite
        self.ip = self.call("up").splitlines()[-1]
        self.ip6 = f"fd77:{self.ip.split('.')[2]}::2"
        self.gateway = self.ip.rpartition(".")[0] + ".1"
        self.root = Path(self.call("root"))
        self.key = self.call("key")
        self.known_hosts = Path(self.call("known_hosts")).read_text().splitlines()

    def call(self, verb: str, *words: str, stdin: str = "", check: bool = True) -> str:
        return call(verb, self.name, *words, suite=self.suite, stdin=stdin, check=check)

    def run(self, command: str, *, check: bool = True) -> str:
        """Return what a command of root's prints there."""
        return self.call("ssh", command, check=check)

    def remove(self) -> None:
        self.call("down")

    def reboot(self) -> None:
        """Shut it down in order, and boot it again."""
        self.call("off")
        self.call("boot")

    def cut(self) -> None:
        """Take its power away."""
        self.call("cut")

    def boot(self) -> None:
        """Give it back."""
        self.call("boot")

    def link(self, other: "Machine") -> str:
        """Lay a cable to another server, until one of them is removed; returns the other's address on it."""
        return self.call("link", other.name)

    def install(self, *packages: str) -> None:
        """Install Debian packages there, with this side's network."""
        self.call("hostnet", "apt-get", "install", "-y", "--no-install-recommends", *packages)


def eventually(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if holds():
                return
        assert time.monotonic() < deadline, f"not within {seconds:.0f} seconds: {what}"
        time.sleep(0.05)
