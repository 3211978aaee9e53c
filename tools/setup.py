"""Prepares a checkout: the virtual environment from the pinned requirements, then the Pulumi CLI.

Runs with the machine's own Python (whose version the Makefile looks at) and nothing but the standard library. `make`
calls it before everything else, so it is quick when there is nothing to do. What is missing is said in one sentence,
with how to get it.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from terminal import progress, say

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
RUNTIME = ROOT / "requirements.txt"
DEVELOPMENT = ROOT / "requirements-dev.txt"


def main() -> None:
    """Set up what the flags ask for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--dev", action="store_true", help="also what the tests and checks need")
    options.add_argument("--no-cli", action="store_true", help="leave the Pulumi CLI out")
    asked = options.parse_args()
    try:
        set_up_environment(DEVELOPMENT if asked.dev else RUNTIME)
    except PermissionError as error:
        stop(f"No permission to write {error.filename}: make the checkout yours, e.g. with chown, and try again.")
    except OSError as error:
        stop(f"The virtual environment in {VENV} can't be written: {error.strerror or error}.")
    if not asked.no_cli and subprocess.call([PYTHON, ROOT / "tools" / "pulumi_cli.py", "get"]):
        sys.exit(1)


def set_up_environment(requirements: Path) -> None:
    """Make `.venv` hold exactly the pins of `requirements` (those of development include the others)."""
    digest = fingerprint(requirements)
    if works() and read(stamp(requirements)) == digest:
        return
    if not works():
        say("set-up: making the virtual environment .venv")
        make_environment()
    say(f"set-up: installing {requirements.name} into .venv (about a minute where nothing is cached)")
    install(requirements)
    stamp(requirements).write_text(digest)
    if requirements != RUNTIME:  # the pins of development hold those of run time
        stamp(RUNTIME).write_text(fingerprint(RUNTIME))


def stamp(requirements: Path) -> Path:
    """Return the file in `.venv` that says with which pins it was filled."""
    return VENV / f".installed-{requirements.name}"


def fingerprint(requirements: Path) -> str:
    """Return what must not have changed for an installation to be still good."""
    return hashlib.sha256(requirements.read_bytes()).hexdigest()


def make_environment() -> None:
    """Create `.venv` anew, with the pip that Pulumi expects in it."""
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", VENV], capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        if "ensurepip" in made.stdout + made.stderr:
            stop(
                "This Python has no venv module: install it (Debian and Ubuntu: `apt install python3-venv`)"
                " and try again."
            )
        if "Permission denied" in made.stdout + made.stderr:
            raise PermissionError(13, "Permission denied", str(VENV))
        stop(f"The virtual environment can't be made: {(made.stderr or made.stdout).strip().splitlines()[-1]}")


def install(requirements: Path) -> None:
    """Install `requirements`, each file checked against its hash; one line of progress per package that is fetched."""
    command = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--require-hashes",
        "--disable-pip-version-check",
        "-r",
        str(requirements),
    ]
    packages = sum(1 for line in requirements.read_text().splitlines() if "==" in line)
    output: list[str] = []
    fetched = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or []:
            output.append(line)
            if line.startswith("Collecting "):
                fetched += 1
                progress(f"  {fetched} of about {packages}: {line.split()[1].partition('==')[0]}")
            elif line.startswith("Installing collected"):
                progress(f"  unpacking {fetched} packages")
    progress(None)
    if pip.returncode:
        reasons = [line.strip() for line in output if line.startswith("ERROR")] or [
            line.strip() for line in output[-3:]
        ]
        stop(
            "pip could not install the pinned requirements (is a package index reachable?):\n  " + "\n  ".join(reasons)
        )


def works() -> bool:
    """Tell whether `.venv` is whole: it was not moved, and its Python is still there."""
    if not PYTHON.exists():
        return False
    asked = subprocess.run(
        [PYTHON, "-c", "import pip, sys; print(sys.prefix)"], capture_output=True, text=True, check=False
    )
    return asked.returncode == 0 and Path(asked.stdout.strip()).resolve() == VENV.resolve()


def read(path: Path) -> str | None:
    """Return the text of `path`, or None where there is none."""
    return path.read_text() if path.exists() else None


def stop(reason: str) -> None:
    """End with `reason`."""
    sys.exit(f"set-up: {reason}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nset-up: interrupted; what is half done is done again next time.")
