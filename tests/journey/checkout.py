"""A checkout of the project in a folder of its own, as a newcomer has it, driven by `make` and the real CLI."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT_PORTS = (8700, 8725, 8710, 8711)  # sandbox, its SMTP, forwarder, its admin
PATIENCE = 60.0  # seconds
DELETE = """<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"><e:Body>
<svc:DeleteSubscription xmlns:svc="http://api.callfire.com/service/xsd"><svc:Id>{}</svc:Id></svc:DeleteSubscription>
</e:Body></e:Envelope>"""


class Checkout:
    """The project's files below `folder`, committed, with ports that nobody else uses."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.ports = ports
        self.sandbox, self.smtp, self.forwarder, self.admin = ports
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():  # not one that is deleted in the working tree
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        stack = folder / "stacks" / "Pulumi.sandbox.yaml"
        text = stack.read_text()
        for default, port in zip(DEFAULT_PORTS, ports, strict=True):
            text = re.sub(rf"\b{default}\b", str(port), text)
        stack.write_text(text)
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as cloned"]):
            self.git(*words)

    def git(self, *words: str) -> str:
        """Return what a git command prints."""
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        return subprocess.run(
            ["git", *identity, *words], cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout

    def make(self, verb: str, *, status: int = 0) -> str:
        """Return what `make VERB` prints, which must end with this exit status."""
        done = subprocess.run(
            ["make", "--no-print-directory", verb],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def start_make(self, verb: str) -> subprocess.Popen[str]:
        """Start `make VERB` in a process group of its own."""
        return subprocess.Popen(
            ["make", "--no-print-directory", verb],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def pulumi(self, *words: str, status: int = 0, environment: Mapping[str, str] | None = None) -> str:
        """Return what a command of the CLI prints, called the way `make up` tells a user to."""
        done = subprocess.run(
            [self.folder / ".local" / "pulumi", "--non-interactive", *words],
            cwd=self.folder,
            env=os.environ | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == (status != 0), done.stdout
        return done.stdout

    def ask(self, path: str) -> Any:
        """Return the JSON that the sandbox answers at `path`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.sandbox}{path}", timeout=PATIENCE) as answer:
            return json.load(answer)

    def with_default_ports(self, printed: str) -> str:
        """Return `printed` as it would read with the ports of a checkout that was not changed."""
        for default, port in zip(DEFAULT_PORTS, self.ports, strict=True):
            printed = re.sub(rf"\b{port}\b", str(default), printed)
        return printed

    def send_text(self, message: str) -> None:
        """Let a text arrive at one of the account's numbers."""
        text = {"from": "18185551212", "to": "18186469991", "message": message}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.sandbox}/control/texts",
            json.dumps(text).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answer.read()

    def subscriptions(self) -> list[dict[str, Any]]:
        """The account's subscriptions."""
        found: list[dict[str, Any]] = self.ask("/control/subscriptions")["subscriptions"]
        return found

    def delete_subscription(self, ident: str) -> None:
        """Delete a subscription as another program on the same account would, by CallFire's API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.sandbox}/api/1.1/soap12/subscription",
            DELETE.format(ident).encode(),
            {
                "Content-Type": "application/soap+xml; charset=utf-8",
                "Authorization": f"Basic {b64encode(b'sandbox:sandbox-password').decode()}",
            },
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answer.read()

    def processes(self) -> dict[str, psutil.Process]:
        """The running processes of this checkout by their module: sandbox, forwarder."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                own = any(str(self.folder) in value for value in process.environ().values())
                if own and command[1:2] == ["-m"] and process.status() != psutil.STATUS_ZOMBIE:
                    found[command[2]] = process
        return found

    def left_by_pulumi(self) -> list[str]:
        """The command lines of what the CLI started for this checkout and what still runs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                home = process.environ().get("PULUMI_HOME", "")
                if home.startswith(str(self.folder)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
        return found

    def kill(self, *modules: str) -> None:
        """End processes of this checkout by SIGKILL, as a crash would."""
        running = self.processes()
        for module in modules:
            running[module].kill()
        psutil.wait_procs([running[module] for module in modules], timeout=PATIENCE)


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started in its group, by SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def eventually(holds: Any, what: str) -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} seconds: {what}"
        time.sleep(0.02)
