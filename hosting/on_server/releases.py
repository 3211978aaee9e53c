"""Releases of the forwarder, each in an environment of its own, of which the last three are kept."""

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from hosting.on_server.places import FailedError, Places, discard, run, say, write

KEPT = 3
ALONG = (
    "Let pip on the server reach one that has it (/etc/pip.conf there), or set `offline` to true: it is sent along then"
)
NEVER_LOADED = r"/(phonenumbers/\w*data|pygments/(lexers|styles)|sqlalchemy/(testing|dialects/(mssql|mysql|oracle)))/"


def install(request: dict[str, Any], places: Places, sent: Path) -> None:
    """Make the declared release be there, whole; one that was cut off, or made for another Python, is made anew.

    Raises:
        FailedError: the environment can't be made; nothing of it is left.
    """
    folder = places.releases / str(request["release"])
    if fits(folder):
        return
    say(doing=f"installing release {request['release']}")
    discard(folder)
    places.releases.mkdir(parents=True, exist_ok=True)
    places.wheels.mkdir(exist_ok=True)
    try:
        for wheel in sent.glob("*.whl"):
            shutil.move(wheel, places.wheels / wheel.name)
        fill(folder, request, places)
        write(folder / ".complete", request["requirements"])
    except (FailedError, OSError) as error:
        discard(folder)
        if isinstance(error, OSError):
            raise FailedError(f"release {request['release']} can't be written: {error.strerror}") from None
        raise


def fill(folder: Path, request: dict[str, Any], places: Places) -> None:
    """Install into `folder`, every file checked against its hash.

    Libraries that another release has just so are not unpacked again but linked: most upgrades change none.
    """
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    [pip] = places.wheels.glob("pip-*.whl")
    wanted = str(request["requirements"])
    libraries, own = split(wanted)
    others = filter(fits, whole(places))
    twin = next((other for other in others if split((other / ".complete").read_text())[0] == libraries), None)
    if twin:
        shutil.copytree(twin / "lib", folder / "lib", symlinks=True, dirs_exist_ok=True, copy_function=link)
    write(folder / "requirements.txt", own if twin else wanted)
    words = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "--no-compile", "--no-input", "--no-cache-dir"]
    words += ["--disable-pip-version-check", "--no-warn-script-location", "--find-links", str(places.wheels)]
    environment = {"PIP_ROOT_USER_ACTION": "ignore"}
    along = request["offline"] or twin
    if along:
        words.append("--no-index")
        environment |= {"PIP_CONFIG_FILE": "/dev/null"}
    python = str(folder / "bin" / "python")
    command = [python, f"{pip}/pip", "install", *words, "-r", str(folder / "requirements.txt")]
    try:
        run(*command, seconds=300, environment=environment)
    except FailedError as error:
        raise error if along else FailedError(f"{trouble(error)} {ALONG}") from None
    # The service can't write beside its code, so what Python would keep there is made now; but not for what it loads
    # never or hardly, such as the tables of every country's numbers, which would be most of the work.
    code = (folder / "lib").glob("python*/site-packages/forwarder") if twin else [folder / "lib"]
    run(python, "-m", "compileall", "-q", "-j", "0", "-x", NEVER_LOADED, *map(str, code), seconds=120)


def trouble(error: FailedError) -> str:
    """Return what is the matter with the server's package index, from what pip said."""
    changed = re.search(r"DO NOT MATCH THE HASHES(?s:.*?)^\s+(\S+==\S+) from ", error.said, re.MULTILINE)
    if changed:
        return f"the package index has another {changed[1]} than the one that is pinned: somebody may have changed it."
    if "Retrying (" in error.said:
        reason = re.search(r"\[Errno -?\d+\] ([^\"')]+)|(timed out|certificate verify failed: [^(']+)", error.said)
        words = (reason[1] or reason[2]).strip() if reason else "the connection broke"
        return f"the package index can't be asked ({words})."
    lacking = re.search(r"No matching distribution found for (\S+)", error.said)
    return f"the package index has no {lacking[1]} for this server." if lacking else f"{error}."


def split(requirements: str) -> tuple[str, str]:
    """Return the pins of the libraries, and the one of the forwarder itself, which stands last."""
    *libraries, own = requirements.strip().splitlines()
    return "\n".join(libraries), own


def link(source: str, target: str) -> str:
    """Let `target` be the same file, if it is not there yet."""
    with contextlib.suppress(FileExistsError):
        os.link(source, target)
    return target


def fits(folder: Path) -> bool:
    """Tell whether a release is there, whole, and made for this Python: an upgrade of Debian brings another one."""
    return (folder / ".complete").exists() and (folder / "lib" / f"python{python_version()}").is_dir()


def python_version() -> str:
    """Return this Python's version as the folder of its libraries has it, such as `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def whole(places: Places) -> list[Path]:
    """Return the releases that are installed, whole."""
    return [folder for folder in places.releases.iterdir() if (folder / ".complete").exists()]


def prune(places: Places, current: str) -> None:
    """Keep the current release and the two before it, and the wheels that they are made of."""
    done = sorted(
        whole(places),
        key=lambda path: (path.name == current, (path / ".complete").stat().st_mtime),
        reverse=True,
    )
    for folder in places.releases.iterdir():
        if folder not in done[:KEPT]:
            discard(folder)
    needed = "".join((folder / ".complete").read_text() for folder in done[:KEPT])
    for wheel in places.wheels.glob("*.whl"):
        distribution, version = wheel.name.split("-")[:2]
        if f"{distribution}=={version}" not in needed.replace("-", "_") and distribution != "pip":
            discard(wheel)
