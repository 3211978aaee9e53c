"""A Pulumi project in a folder of its own, driven with the real CLI on a file backend; and how to end it brutally."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "recorded"
PATIENCE = 600.0
"""Seconds that a command may take: 500 resources on a busy machine."""

PROGRAM = """\
import os

from provider import Subscription

for number in range(int(os.environ["COUNT"])):
    Subscription(
        f"texts-{number}",
        endpoint=f"https://mail.example.com/postback/{number:032d}",
        enabled=os.environ.get("ENABLED", "true"),
    )
"""


def backend(home: Path, cli: Path) -> dict[str, str]:
    """The environment of the CLI in the folder `cli` that keeps everything in `home`."""
    return {
        "PATH": f"{cli}{os.pathsep}{os.environ['PATH']}",
        "PULUMI_BACKEND_URL": f"file://{home}",
        "PULUMI_HOME": str(home),
        "PULUMI_CONFIG_PASSPHRASE": "correct horse",  # the recorded stacks' too
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }


@dataclass(frozen=True)
class Done:
    """A finished command: its exit status, all that it printed, and what of it went to standard output."""

    status: int
    output: str
    printed: str = ""


class Project:
    """A project with one stack, `dev`.

    Args:
        folder: empty; everything of the project goes into it.
        cli: the folder of the Pulumi CLI.
        environ: more environment variables, such as CALLFIRE_URL.
        like: a project whose stack and configuration are copied; without one, a new stack is made.
    """

    def __init__(self, folder: Path, cli: Path, environ: Mapping[str, str], like: "Project | None" = None) -> None:
        self.folder = folder
        (folder / "Pulumi.yaml").write_text(
            json.dumps({"name": "test", "runtime": {"name": "python", "options": {"virtualenv": str(ROOT / ".venv")}}})
        )
        self.write(PROGRAM)
        self.state = folder / "state"
        self.state.mkdir()
        (folder / "home").mkdir()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CALLFIRE_")}
        own = {
            "PATH": os.pathsep.join([str(cli), str(ROOT / ".venv" / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PULUMI_STACK": "dev",
            "PULUMI_HOME": str(folder / "home"),
            "PULUMI_CREDENTIAL_STORE": "plaintext",
        }
        self.environ = {**inherited, **backend(self.state, cli), **own, **environ}
        if like is None:
            self.pulumi("stack", "init", "dev")
        else:
            shutil.copytree(like.state, self.state, dirs_exist_ok=True)
            shutil.copyfile(like.folder / "Pulumi.dev.yaml", folder / "Pulumi.dev.yaml")

    def restore(self, sandbox: Sandbox, version: str = "0.1.0") -> list[str]:
        """Bring back a recorded stack, with its program and its subscriptions, and return their ids."""
        recording = json.loads((RECORDED / f"{version}.json").read_text())
        for held in recording["subscriptions"]:
            given = {name: value for name, value in held["filter"].items() if value is not None}
            sandbox.create_subscription(**{**held, "filter": given})
        self.write((RECORDED / "program.py").read_text())
        (self.folder / "Pulumi.dev.yaml").write_text(recording["config"])
        self.pulumi("stack", "import", stdin=json.dumps(recording["stack"]))
        return self.ids()

    def write(self, program: str) -> None:
        """Replace the program."""
        (self.folder / "__main__.py").write_text(program)

    def pulumi(self, *arguments: str, check: bool = True, stdin: str = "", **environ: str) -> Done:
        """Run the CLI to its end."""
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive"],
            cwd=self.folder,
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            input=stdin,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout
        return Done(done.returncode, done.stdout)

    def up(self, *options: str, check: bool = True, **environ: str) -> Done:
        """`pulumi up` without a preview."""
        return self.pulumi("up", "--yes", "--skip-preview", *options, check=check, **environ)

    def command(self, *arguments: str, check: bool = True, **environ: str) -> Done:
        """`python -m provider`, in the project's folder."""
        done = subprocess.run(
            [ROOT / ".venv" / "bin" / "python", "-m", "provider", *arguments],
            cwd=self.folder,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return Done(done.returncode, done.stdout + done.stderr, done.stdout)

    def shell(self, line: str, stdin: str = "", **environ: str) -> str:
        """Run a line of a handbook, in the project's folder, and return what it prints. The CLI asks nothing."""
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", line],
            cwd=self.folder,
            env=self.environ | {"PULUMI_OPTION_YES": "true", "PULUMI_OPTION_NON_INTERACTIVE": "true"} | environ,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    @contextlib.contextmanager
    def running(self, *arguments: str, **environ: str) -> Iterator["Running"]:
        """The CLI in a process group and session of its own, ended with all that it started."""
        with (self.folder / "running.log").open("w+") as log:
            process = subprocess.Popen(
                ["pulumi", *arguments, "--non-interactive"],
                cwd=self.folder,
                env=self.environ | environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running = Running(process)
            try:
                yield running
            finally:
                running.end()

    def export(self) -> dict[str, Any]:
        """The state."""
        return dict(json.loads(self.pulumi("stack", "export").output))

    def ids(self) -> list[str]:
        """The ids of the subscriptions in the state."""
        latest = json.loads(self.checkpoint.read_text())["checkpoint"]["latest"] or {}
        return sorted(r["id"] for r in latest.get("resources", []) if r["type"].endswith("callfire:Subscription"))

    @property
    def checkpoint(self) -> Path:
        """The file backend's state of the stack."""
        return self.state / ".pulumi" / "stacks" / "test" / "dev.json"

    def mend_checkpoint(self) -> bool:
        """Put the good copy in the place of a checkpoint that a kill left empty; whether it was."""
        with contextlib.suppress(ValueError):
            json.loads(self.checkpoint.read_text())
            return False
        shutil.copyfile(f"{self.checkpoint}.bak", self.checkpoint)
        return True


def credentials(sandbox: Sandbox, url: str | None = None) -> dict[str, str]:
    """The environment that leads a provider to a sandbox, or to what stands in front of it at `url`."""
    return {
        "CALLFIRE_URL": url or sandbox.url,
        "CALLFIRE_LOGIN": sandbox.login,
        "CALLFIRE_PASSWORD": sandbox.password,
    }


class Running:
    """A CLI under way."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def kill(self) -> None:
        """Send SIGKILL to the CLI's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def freeze(self) -> None:
        """Stop the CLI, so that it cannot write the state; its provider goes on."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        os.killpg(self._process.pid, signal.SIGINT)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the CLI's own end and return its exit status."""
        return self._process.wait(seconds)

    def ends_within(self, seconds: float) -> bool:
        """Whether the CLI ends of itself in this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def providers(self) -> list[psutil.Process]:
        """The provider processes that the CLI started."""
        return self._started("pulumi.dynamic")

    def wait_for_providers_end(self) -> None:
        """Wait until they have ended by themselves."""
        self._wait_for_end("pulumi.dynamic")

    def wait_for_programs_end(self) -> None:
        """Wait until the program of the project has ended by itself."""
        self._wait_for_end("pulumi-language-python-exec")

    def _wait_for_end(self, word: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while left := self._started(word):
            assert time.monotonic() < deadline, f"still there: {left}"
            psutil.wait_procs(left, timeout=0.05)

    def end(self) -> None:
        """End the CLI and whatever it left behind."""
        self.kill()
        for process in self._session():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _started(self, word: str) -> list[psutil.Process]:
        return [process for process in self._session() if word in " ".join(_command_line(process))]

    def _session(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []
