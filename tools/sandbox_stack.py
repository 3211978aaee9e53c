"""`make up` and `make down`: the stack `sandbox`, with an emulated CallFire beside it, on this machine.

`up` may be typed at any time and makes what is missing; `down` removes whatever it finds, after any interruption. All
that they write lies in `.local/`: Pulumi's state, the outbox, logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pulumi_cli
import yaml
from lock import alone
from terminal import say

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
STATE = LOCAL / "state"
HOME = LOCAL / "pulumi-home"
WRAPPER = LOCAL / "pulumi"
STACK = "sandbox"
STACK_FILE = ROOT / "stacks" / f"Pulumi.{STACK}.yaml"
REPAIR = f"Mend it, or bring it back with `git checkout {STACK_FILE.relative_to(ROOT)}`."
SANDBOX_LOG = LOCAL / "sandbox.log"
SANDBOX_MARK = "CALLFIRE_MAIL_SANDBOX_OF"
TEXT = {"from": "18185551212", "to": "18186469991", "message": "Hello, World!"}
READY_WITHIN = 20.0  # seconds
MAIL_WITHIN = 30.0  # seconds
POLL = 0.05  # seconds
QUIETLY = ("--suppress-permalink=true", "--suppress-progress")


class StackError(Exception):
    """The stack can't be put up or taken down; the message says why and what to do."""


class Settings:
    """What `stacks/Pulumi.sandbox.yaml` says of addresses and ports: the one place where they are set."""

    def __init__(self) -> None:
        where = STACK_FILE.relative_to(ROOT)
        try:
            config = yaml.safe_load(STACK_FILE.read_text())["config"]
            self.sandbox_url = str(config["callfire:url"]).rstrip("/")
            self.sandbox_port = urlsplit(self.sandbox_url).port or 80
            self.smtp_port = int(config["callfire-mail:smtpPort"])
            self.forwarder_port = int(config["callfire-mail:forwarderPort"])
            self.admin_port = int(config["callfire-mail:forwarderAdminPort"])
        except KeyError as error:
            raise StackError(f"{where} lacks {error.args[0]}. {REPAIR}") from None
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise StackError(f"{where} can't be read: {' '.join(str(error).split())}. {REPAIR}") from None


def up() -> None:
    """Make the whole chain run, send one text through it and show the mail that it became."""
    settings = Settings()
    pulumi = Pulumi()
    start_sandbox(settings)
    pulumi.mend()
    pulumi.run("stack", "select", "--create", STACK, quiet=True)
    say("pulumi up: the forwarder, and the subscription that makes CallFire post to it\n")
    # --refresh: after a reboot, forwarder and subscription are gone, and only looking tells
    pulumi.run("up", "--yes", "--refresh", "--skip-preview", *QUIETLY)
    say(f"\nA text, {TEXT['from']} → {TEXT['to']}: {TEXT['message']}\n\nThe mail that it became:\n")
    say(show(send_text(settings)))
    say(
        f"""
What is running
  {settings.sandbox_url}         CallFire, a phone and a mailbox, emulated: a page (log: .local/sandbox.log)
  http://127.0.0.1:{settings.forwarder_port}         the forwarder (log: .local/forwarder/{STACK}/forwarder.log)
  http://127.0.0.1:{settings.admin_port}         its status page

What to try next
  .venv/bin/python -m sandbox text --from 18185551212 --to 18186469991 "How are you?"
  .local/pulumi stack
  make down"""
    )


def down() -> None:
    """Destroy the stack and stop the sandbox, whatever state they are in."""
    pulumi = Pulumi()
    if (STATE / ".pulumi" / "stacks").exists() and pulumi.stack_exists():
        pulumi.mend()
        if pulumi.resources():
            start_sandbox(Settings())  # the subscription must be taken back from somewhere that answers
            say("pulumi destroy: first the subscription, then the forwarder\n")
            pulumi.run("destroy", "--yes", "--skip-preview", *QUIETLY)
        # --force: creations that were cut off stay in the state for ever; what they made is ended below
        pulumi.run("stack", "rm", "--yes", "--force", "--preserve-config", STACK, quiet=True)
    # what a killed CLI left behind, a forwarder whose start was cut off before Pulumi wrote it down, then the sandbox
    end(marked("PULUMI_HOME", str(HOME)))
    end(marked("CALLFIRE_MAIL_HOSTED_AS", str(LOCAL / "forwarder" / STACK)))
    end(marked(SANDBOX_MARK, str(ROOT)))
    kept = " Outbox and log of the forwarder are kept in .local/forwarder." if (LOCAL / "forwarder").exists() else ""
    say(f"\nEverything is down.{kept}")


class Pulumi:
    """The CLI, with a backend, a passphrase and a home of this checkout alone."""

    def __init__(self) -> None:
        folder = pulumi_cli.get()
        STATE.mkdir(parents=True, exist_ok=True)
        own = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "PULUMI_BACKEND_URL": f"file://{STATE}",
            "PULUMI_HOME": str(HOME),
            "PULUMI_CONFIG_PASSPHRASE": STACK,  # nothing in this stack is worth hiding; other stacks have their own
            "PULUMI_STACK": STACK,
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            "PULUMI_CREDENTIAL_STORE": "plaintext",
        }
        self.environment = os.environ | own
        for other in ("PULUMI_CONFIG_PASSPHRASE_FILE", "PULUMI_ACCESS_TOKEN", "CALLFIRE_URL", "CALLFIRE_LOGIN"):
            self.environment.pop(other, None)
        self.environment.pop("CALLFIRE_PASSWORD", None)
        self.write_wrapper(folder, own)

    def write_wrapper(self, folder: Path, own: dict[str, str]) -> None:
        """Write a `pulumi` for this stack alone: exported, its passphrase would end up in other stacks too."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in own.items() if name != "PATH"]
        path = f'export PATH={shlex.quote(str(folder))}:"$PATH"'
        enter = f"cd {shlex.quote(str(ROOT))}"
        WRAPPER.write_text("\n".join(["#!/bin/sh", *exports, path, enter, 'exec pulumi "$@"', ""]))
        WRAPPER.chmod(0o755)

    def run(self, *words: str, quiet: bool = False) -> str:
        """Run a command of the CLI; `quiet` keeps what it prints for the error.

        Raises:
            StackError: it failed.
        """
        command = ["pulumi", "--non-interactive", *words]
        pipe = subprocess.PIPE if quiet else None
        with subprocess.Popen(
            command, cwd=ROOT, env=self.environment, text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        ) as cli:
            try:
                printed, complained = cli.communicate()
            except KeyboardInterrupt:  # the CLI got it too, and needs time to put its state in order
                cli.wait()
                raise
        if cli.returncode:
            reason = f": {(complained or printed).strip()}" if quiet else "; its reason stands above."
            raise StackError(f"`pulumi {words[0]}` failed{reason}")
        return printed or ""

    def stack_exists(self) -> bool:
        """Tell whether the stack was ever put up."""
        return any(stack["name"] == STACK for stack in json.loads(self.run("stack", "ls", "--json", quiet=True)))

    def resources(self) -> bool:
        """Tell whether the state holds, or may hold, anything to destroy."""
        deployment = json.loads(self.run("stack", "export", quiet=True))["deployment"]
        return bool(deployment.get("resources") or deployment.get("pending_operations"))

    def mend(self) -> None:
        """Remove what a killed CLI left behind: its lock, and a state file that it had only begun to write."""
        for lock in STATE.glob(".pulumi/locks/**/*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if not holds(json.loads(lock.read_text())):
                    lock.unlink()
        for state in STATE.glob(".pulumi/stacks/**/*.json"):
            backup = state.with_name(state.name + ".bak")
            if not readable(state) and readable(backup):
                shutil.copyfile(backup, state)


def holds(lock: dict[str, Any]) -> bool:
    """Tell whether the process that took `lock` (a lock file of the backend) still runs."""
    try:
        process = psutil.Process(int(lock["pid"]))
        return alive(process) and process.create_time() <= datetime.fromisoformat(lock["timestamp"]).timestamp() + 1
    except psutil.NoSuchProcess:
        return False


def readable(state: Path) -> bool:
    """Tell whether `state` is a whole JSON file."""
    try:
        json.loads(state.read_text())
    except (OSError, ValueError):
        return False
    return True


def start_sandbox(settings: Settings) -> None:
    """Start the sandbox in the background if this checkout's isn't running, and wait until it answers.

    Raises:
        StackError: it does not start, for instance because a port is in use.
    """
    sandbox = next(iter(marked(SANDBOX_MARK, str(ROOT))), None)
    if not sandbox:
        say(f"starting the sandbox: CallFire's API and a mailbox on {settings.sandbox_url}")
        ports = ["--port", str(settings.sandbox_port), "--smtp-port", str(settings.smtp_port)]
        with SANDBOX_LOG.open("wb") as log:
            sandbox = psutil.Popen(
                [sys.executable, "-m", "sandbox", *ports],
                cwd=ROOT,
                env=os.environ | {SANDBOX_MARK: str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    deadline = time.monotonic() + READY_WITHIN
    while health(settings.sandbox_url).get("pid") != sandbox.pid:
        if not alive(sandbox) or time.monotonic() > deadline:
            end([sandbox])
            raise StackError(
                f"The sandbox did not start: {SANDBOX_LOG.read_text().strip() or 'it said nothing'}\n"
                f"{another_sandbox(settings.sandbox_url)}Its ports stand in {STACK_FILE.relative_to(ROOT)}."
            )
        time.sleep(POLL)


def another_sandbox(url: str) -> str:
    """Tell whose sandbox answers at `url`, if one does: another checkout's, or this one's before it was moved."""
    said = health(url)
    if said.get("service") != "callfire-sandbox":
        return ""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(said["pid"]))
        owner = process.environ().get(SANDBOX_MARK, process.cwd())
        return f"The sandbox of {owner} (process {process.pid}) runs there: `make down` there, or end it.\n"
    return ""


def marked(name: str, value: str) -> list[psutil.Process]:
    """Return the processes whose environment says so."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value:
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Tell whether `process` still runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def end(processes: list[psutil.Process]) -> None:
    """Ask `processes` to end, and see to it that they do."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    deadline = time.monotonic() + READY_WITHIN
    while left := [process for process in processes if alive(process)]:
        if time.monotonic() > deadline:
            for process in left:
                process.kill()
        time.sleep(POLL)


def health(url: str) -> dict[str, Any]:
    """Return what the service at `url` says of itself; nothing when none answers."""
    try:
        said = ask(f"{url}/healthz", patience=2)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def send_text(settings: Settings) -> dict[str, Any]:
    """Send `TEXT` through the sandbox and return the mail that arrives for it.

    Raises:
        StackError: none did.
    """
    mailbox = f"{settings.sandbox_url}/mailbox/messages"
    before = max((mail["id"] for mail in ask(mailbox)["messages"]), default=0)
    ask(f"{settings.sandbox_url}/control/texts", TEXT)
    try:
        mail = ask(f"{mailbox}/wait?after={before}&timeout={MAIL_WITHIN:.0f}")
    except urllib.error.HTTPError:
        raise StackError(
            f"No mail arrived within {MAIL_WITHIN:.0f} seconds: the reason stands in .local/sandbox.log or"
            f" .local/forwarder/{STACK}/forwarder.log."
        ) from None
    return dict(mail)


def ask(url: str, body: object = None, patience: float = MAIL_WITHIN + 10) -> Any:
    """Return the JSON that `url` answers within `patience` seconds; with a `body`, it is posted."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - always http
    with urllib.request.urlopen(request, timeout=patience) as answer:  # noqa: S310 - always http
        return json.load(answer)


def show(mail: dict[str, Any]) -> str:
    """Return `mail` as a mail program would show it, indented."""
    headers = {name.lower(): value for name, value in dict(mail["headers"]).items()}
    lines = [f"{name}: {headers[name.lower()]}" for name in ("From", "To", "Subject")]
    return "\n".join("    " + line for line in [*lines, "", *str(mail["text"]).rstrip().splitlines()])


def main(words: list[str]) -> None:
    """Run the verb `up` or `down`."""
    verbs = {"up": up, "down": down}
    if len(words) != 1 or words[0] not in verbs:
        sys.exit("usage: sandbox_stack.py up|down")
    try:
        with alone(LOCAL / "lock", "waiting for another `make up` or `make down` in this checkout"):
            verbs[words[0]]()
    except (StackError, pulumi_cli.MissingCliError) as error:
        sys.exit(f"\n{error}")
    except OSError as error:
        sys.exit(
            f"\n{error.filename or 'This machine'}: {error.strerror or error}. Mend it, and `make {words[0]}` goes on."
        )
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted; `make {words[0]}` goes on from here.")


if __name__ == "__main__":
    main(sys.argv[1:])
