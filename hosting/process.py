"""The forwarder as a process of this machine: found, started, watched until healthy, stopped.

A process is known by its pid *and* the time it started, since pids are used again. What was started carries a mark in
its environment (`HOSTED_AS`), so that one whose start was never written down, because the program that started it was
killed, is found too.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hosting.errors import NotHealthyError, NotStoppedError, in_stack_names

HOSTED_AS = "CALLFIRE_MAIL_HOSTED_AS"
RELEASE = "CALLFIRE_MAIL_RELEASE"
SETTING_PREFIX = "FORWARDER_"
# What the process may know of the environment that starts it; passphrases and CallFire's password are not among it.
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
START_TOLERANCE = 1.0  # seconds: the start of a process is computed from the wall clock, which may be set
HEALTHY_WITHIN = 30.0  # seconds
STOPPED_WITHIN = 15.0  # seconds from SIGTERM to SIGKILL; the forwarder needs 10 at most to finish what it does
POLL = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class Forwarder:
    """A running forwarder: its process and what it was told."""

    process: psutil.Process
    environment: Mapping[str, str] = field(repr=False)  # holds secrets

    @property
    def started(self) -> float:
        """When the process started, in seconds since 1970."""
        return float(self.process.create_time())

    @property
    def settings(self) -> dict[str, str]:
        """Its settings, secrets among them."""
        return {name: value for name, value in self.environment.items() if name.startswith(SETTING_PREFIX)}

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://{self.environment['FORWARDER_HOST']}:{self.environment['FORWARDER_PORT']}"

    @property
    def release(self) -> str:
        """The fingerprint of the code it runs."""
        return self.environment.get(RELEASE, "")


def identify(pid: int, started: float) -> Forwarder | None:
    """Return the forwarder with this pid that started at `started`; None when it has ended."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if abs(process.create_time() - started) <= START_TOLERANCE:
            return hosted(process)
    return None


def find(state_dir: Path) -> Forwarder | None:
    """Return the forwarder that was started for `state_dir`, whoever started it; None when there is none."""
    running = (hosted(process) for process in psutil.process_iter())
    return next((found for found in running if found and found.environment[HOSTED_AS] == str(state_dir)), None)


def hosted(process: psutil.Process) -> Forwarder | None:
    """Return `process` as a forwarder; None when it is something else, another user's, or has ended."""
    try:
        environment = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.Error, OSError):
        return None
    return Forwarder(process, environment) if HOSTED_AS in environment else None


def start(state_dir: Path, settings: Mapping[str, str], release: str) -> Forwarder:
    """Start a forwarder in a session of its own and return it when it is healthy.

    Raises:
        NotHealthyError: it ended, or did not answer within `HEALTHY_WITHIN`; nothing is left running.
    """
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= {**settings, HOSTED_AS: str(state_dir), RELEASE: release}
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = (state_dir / "forwarder.log").open("ab")
    except OSError as error:
        raise NotHealthyError(f"The forwarder has no place: {state_dir} can't be written ({error.strerror}).") from None
    with log:
        before = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "forwarder"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    forwarder = Forwarder(psutil.Process(child.pid), environment)
    deadline = time.monotonic() + HEALTHY_WITHIN
    while not healthy(forwarder):
        if child.poll() is not None:
            raise NotHealthyError(
                f"The forwarder ended with status {child.returncode}:"
                f" {last_words(log.name, before) or 'it said nothing'}"
            )
        if time.monotonic() > deadline:
            child.kill()
            child.wait()
            raise NotHealthyError(
                f"The forwarder did not answer on {forwarder.url} within {HEALTHY_WITHIN:.0f} seconds and was ended:"
                f" {last_words(log.name, before) or 'it said nothing'}"
            )
        time.sleep(POLL)
    child.returncode = 0  # it outlives this program on purpose: nobody is to wait for it, or to warn
    return forwarder


def healthy(forwarder: Forwarder) -> bool:
    """Tell whether this very process answers at its address."""
    try:
        with urllib.request.urlopen(f"{forwarder.url}/healthz", timeout=2) as answer:  # noqa: S310 - always http
            said = json.load(answer)
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("pid") == forwarder.process.pid


def tokens_used(forwarder: Forwarder) -> Any:
    """Return what it says of the use of its tokens; None when it says nothing."""
    url = f"http://127.0.0.1:{forwarder.environment.get('FORWARDER_ADMIN_PORT', '8711')}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            said = json.load(answer)
    except (OSError, ValueError):
        return None
    return said.get("tokens") if isinstance(said, dict) else None


def last_words(log: str, since: int, lines: int = 5) -> str:
    """Return the last lines that were written to `log` after the first `since` bytes, in the stack's names."""
    with Path(log).open("rb") as file:
        file.seek(since)
        return in_stack_names("\n".join(file.read().decode(errors="replace").strip().splitlines()[-lines:]))


def stop(forwarder: Forwarder) -> None:
    """End the forwarder: SIGTERM, time to finish what it does, then SIGKILL.

    What is not delivered stays in its state folder.

    Raises:
        NotStoppedError: it belongs to somebody else, or does not even end by SIGKILL.
    """
    process = forwarder.process
    try:
        process.terminate()
        if gone(process, STOPPED_WITHIN):
            return
        process.kill()
        if not gone(process, STOPPED_WITHIN):
            raise NotStoppedError(f"The forwarder (process {process.pid}) does not end, not even by SIGKILL.")
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise NotStoppedError(
            f"The forwarder (process {process.pid}) belongs to another user and can't be ended."
        ) from None


def gone(process: psutil.Process, within: float) -> bool:
    """Tell whether `process` ends within this many seconds (as a zombie nobody waits for, it counts as ended)."""
    for _ in ticks(within):
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
    return False


def ticks(seconds: float) -> Iterator[None]:
    """Yield again and again, `POLL` apart, for this many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        yield
        if time.monotonic() > deadline:
            return
        time.sleep(POLL)
