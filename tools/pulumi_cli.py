"""Finds the Pulumi CLI, or gets it: from PATH, the cache, the official release, or built from pinned Go modules.

`pulumi_cli.py get` makes sure that there is one, `pulumi_cli.py path` prints the folder that holds it. What was
downloaded or built lies outside the checkout (`$XDG_CACHE_HOME/callfire-mail`, by default below `~/.cache`) under its
version, so that the next clone starts at once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lock import alone
from terminal import progress, say

MODULES = Path(__file__).resolve().parent / "pulumi-cli"
VERSION = "3.259.0"
MINIMUM = (3, 254, 0)
LANGUAGE_HOST_VERSION = "3.187.0"
RELEASES = "https://get.pulumi.com/latest-version"
PATIENCE = 5.0  # seconds to find out whether the official release can be reached


class MissingCliError(Exception):
    """The CLI can't be had; the message says what is missing and how to get it."""


def find() -> Path | None:
    """Return the folder of a Pulumi CLI that will do, with its Python language host, without getting one."""
    on_path = shutil.which("pulumi")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    for folder in [*candidates, cached("release") / "bin", cached("built") / "bin"]:
        version = version_in(folder)
        if version and version >= MINIMUM:
            return folder
    return None


def get() -> Path:
    """Return the folder of a Pulumi CLI, fetched or built where the machine has none.

    Raises:
        MissingCliError: there is none, no internet to download it, and no Go to build it.
    """
    found = find()
    if found:
        return found
    folder = cached("release").parent
    try:
        with alone(folder / "lock", "set-up: waiting for another set-up that is getting the Pulumi CLI"):
            return find() or download() or build()
    except OSError as error:
        raise MissingCliError(
            f"The Pulumi CLI can't be kept in {folder} ({error.strerror}): make it writable or set XDG_CACHE_HOME."
        ) from None


def cached(kind: str) -> Path:
    """Return where a CLI of this `kind` (release or built) is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "callfire-mail" / f"pulumi-{VERSION}-{kind}"


def version_in(folder: Path) -> tuple[int, ...] | None:
    """Return the version of the CLI in `folder`; None without one that runs, or without its Python language host."""
    if not all(os.access(folder / name, os.X_OK) for name in ("pulumi", "pulumi-language-python")):
        return None
    asked = subprocess.run([folder / "pulumi", "version"], capture_output=True, text=True, check=False)
    numbers = re.match(r"v(\d+)\.(\d+)\.(\d+)", asked.stdout)
    return tuple(map(int, numbers.groups())) if numbers else None


def download() -> Path | None:
    """Return the folder of the official release, downloaded; None where it can't be reached."""
    if not reachable(RELEASES):
        return None
    from pulumi.automation import PulumiCommand  # noqa: PLC0415 - slow to import and seldom needed
    from semver import VersionInfo  # noqa: PLC0415 - comes with pulumi

    say(f"set-up: downloading Pulumi {VERSION} (about 150 MB)")
    try:
        with placed(cached("release")) as folder:
            PulumiCommand.install(root=str(folder), version=VersionInfo.parse(VERSION))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        say(f"set-up: the official release could not be installed ({type(error).__name__})")
        return None
    return cached("release") / "bin"


def reachable(url: str) -> bool:
    """Tell within `PATIENCE` seconds whether `url` answers (looking a name up has no time-out, so it gets a thread)."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE):  # noqa: S310 - a constant https address
                answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()


def build() -> Path:
    """Return the folder of a CLI built from the pinned modules (go.sum is complete: a module proxy is enough)."""
    if not shutil.which("go"):
        raise MissingCliError(
            f"There is no Pulumi CLI >= {'.'.join(map(str, MINIMUM))} on PATH, get.pulumi.com can't be reached"
            " to download it, and there is no Go to build it: install Pulumi (https://www.pulumi.com/docs/install)"
            " or Go >= 1.25 (https://go.dev/dl) and try again."
        )
    say(
        f"set-up: building Pulumi {VERSION} from source, as get.pulumi.com can't be reached"
        " (minutes, the first time only)"
    )
    with placed(cached("built")) as folder:
        compile_binary(
            "language-python",
            LANGUAGE_HOST_VERSION,
            "github.com/pulumi/pulumi/sdk/python/cmd/pulumi-language-python/v3",
            folder / "bin" / "pulumi-language-python",
        )
        compile_binary("pulumi", VERSION, "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi", folder / "bin" / "pulumi")
        sdk = Path(
            go("pulumi", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "github.com/pulumi/pulumi/sdk/v3").strip()
        )
        for launcher in ("cmd/pulumi-language-python-exec", "dist/pulumi-resource-pulumi-python"):
            installed = folder / "bin" / Path(launcher).name  # the language host looks for both beside itself
            shutil.copyfile(sdk / "python" / launcher, installed)
            installed.chmod(0o755)
    return cached("built") / "bin"


def compile_binary(module: str, version: str, package: str, binary: Path) -> None:
    """Build `package`, pinned in the folder `module`, as `binary`, counting the packages as they are compiled."""
    say(f"set-up:   {binary.name}: fetching modules")
    fetched = 0

    def fetching(line: str) -> None:
        nonlocal fetched
        if line.startswith("go: downloading"):
            fetched += 1
            progress(f"  {binary.name}: {fetched} modules fetched")

    listed = go(module, "list", "-mod=readonly", "-deps", package, on_error_line=fetching)
    packages = len(listed.splitlines())
    compiled = 0

    def compiling(line: str) -> None:
        nonlocal compiled
        compiled += not line.startswith(("go:", "#", " "))
        progress(f"  {binary.name}: {compiled} of at most {packages} packages compiled")

    say(f"set-up:   {binary.name}: compiling")
    stamp = f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{version}"
    flags = ["-v", "-mod=readonly", "-buildvcs=false", "-trimpath", "-tags=osusergo,grpcnotrace", "-ldflags", stamp]
    go(module, "build", *flags, "-o", str(binary), package, on_error_line=compiling)
    progress(None)


def go(module: str, *words: str, on_error_line: Callable[[str], None] = lambda _: None) -> str:
    """Return what a go command prints, run in the module folder `module`; each line of its stderr is handed on.

    Raises:
        MissingCliError: it failed; with its last words.
    """
    command = ["go", *words]
    environment = os.environ | {"CGO_ENABLED": "0"}
    errors: list[str] = []
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command, cwd=MODULES / module, env=environment, stdout=output, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        for line in process.stderr or ():
            errors.append(line.rstrip())
            on_error_line(line)
        process.wait()
        output.seek(0)
        printed = output.read()
    if process.returncode:
        progress(None)
        raise MissingCliError(
            "The Pulumi CLI can't be built (is the Go module proxy reachable, is there 3 GB of disk?): "
            + " / ".join(errors[-3:])
        )
    return printed


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `folder` when all went well, so that nothing is ever half there."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary) / folder.name
        (made / "bin").mkdir(parents=True)
        yield made
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def main(words: list[str]) -> None:
    """Run the verb `get` or `path`."""
    try:
        if words == ["get"]:
            get()
        elif words == ["path"]:
            print(get())
        else:
            sys.exit("usage: pulumi_cli.py get|path")
    except MissingCliError as error:
        sys.exit(f"set-up: {error}")
    except KeyboardInterrupt:
        sys.exit("\nset-up: interrupted; what is half done is done again next time.")


if __name__ == "__main__":
    main(sys.argv[1:])
