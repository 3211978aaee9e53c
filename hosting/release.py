"""A release of the forwarder: its fingerprint, its wheel, and the wheels of the pinned libraries that it runs on.

A release is named after its content, so the same sources are the same release wherever they are built.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from hosting.errors import HostingError

PROJECT = Path(__file__).resolve().parent.parent
REQUIREMENTS = PROJECT / "requirements-forwarder.txt"
INSTALLER = PROJECT / "requirements-installer.txt"
DISTRIBUTION = "callfire_mail_forwarder"
OLDEST_GLIBC = 17  # the minor version that manylinux2014 stands for
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of a zip file: the same sources make the same bytes


class NoWheelsError(HostingError):
    """The wheels of the pinned libraries can't be had; the message says why."""


class NoIndexError(NoWheelsError):
    """There is no package index to ask for them."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What wheels must fit.

    Attributes:
        python: its version, such as `3.11`.
        machine: as `uname -m` says it.
        glibc: the minor version of its C library, 36 for 2.36.
    """

    python: str
    machine: str
    glibc: int


def fingerprint(*files: Path) -> str:
    """Return a fingerprint of the forwarder's code, of the pinned libraries that it runs on, and of these files."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes())
    for source in sources():
        digest.update(source.relative_to(PROJECT).as_posix().encode() + b"\0" + source.read_bytes())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def version() -> str:
    """Return the project's version."""
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"])


def name() -> str:
    """Return the name of the release that these sources are, such as `0.1.0-3f2a9c0d1e5b`."""
    return f"{version()}-{fingerprint()}"


def sources() -> list[Path]:
    """Return the forwarder's files."""
    found = sorted((PROJECT / "forwarder").rglob("*"))
    return [path for path in found if path.is_file() and path.suffix != ".pyc"]


def wheel() -> tuple[str, bytes]:
    """Return the forwarder's wheel, as its file name and its content (PEP 427)."""
    number = name().replace("-", "+")
    info = f"{DISTRIBUTION}-{number}.dist-info"
    files = {path.relative_to(PROJECT).as_posix(): path.read_bytes() for path in sources()}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {number}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: callfire-mail\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{path},{record_hash(content)},{len(content)}\n" for path, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path, EPOCH), content, zipfile.ZIP_DEFLATED)
    return f"{DISTRIBUTION}-{number}-py3-none-any.whl", packed.getvalue()


def record_hash(content: bytes) -> str:
    """Return the hash of `content` as a wheel's RECORD writes it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def requirements() -> str:
    """Return what pip is to install, each with its hash: the pinned libraries and the forwarder itself."""
    file, content = wheel()
    number = file.split("-")[1]
    own = f"{DISTRIBUTION}=={number} --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"
    return REQUIREMENTS.read_text() + own


def installer() -> Path:
    """Return the pinned pip's wheel, fetched once."""
    [found] = fetch("installer", INSTALLER, []).glob("pip-*.whl")
    return found


def libraries(platform: Platform) -> list[Path]:
    """Return the wheels of the pinned libraries for this platform, fetched once.

    Raises:
        NoIndexError: the package index can't be reached from here.
        NoWheelsError: it has none for it.
    """
    words = ["--python-version", platform.python, "--implementation", "cp"]
    for minor in range(platform.glibc, OLDEST_GLIBC - 1, -1):
        words += ["--platform", f"manylinux_2_{minor}_{platform.machine}"]
    words += ["--platform", f"manylinux2014_{platform.machine}"]
    label = f"{platform.python}-{platform.machine}-{platform.glibc}"
    return sorted(fetch(label, REQUIREMENTS, words).glob("*.whl"))


def fetch(label: str, pins: Path, words: list[str]) -> Path:
    """Return the folder with the wheels of `pins`, each checked against its hash; kept outside the checkout."""
    key = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    folder = wheelhouse() / f"{label}-{key}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary", ":all:"]
        command += ["--no-deps", "--disable-pip-version-check", "--dest", fresh, "--requirement", str(pins), *words]
        done = subprocess.run(  # noqa: S603 - our own pip
            command, capture_output=True, text=True, check=False
        )
        if done.returncode:
            what = f"The libraries of the forwarder can't be fetched for {label}"
            if "Retrying (" in done.stderr:
                raise NoIndexError(f"{what}: the package index does not answer. Let this machine's pip reach one.")
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise NoWheelsError(f"{what}: {(said or ['pip said nothing'])[-1]}")
        if not folder.exists():  # another run may have been quicker
            shutil.copytree(fresh, f"{fresh}.done")
            Path(f"{fresh}.done").rename(folder)
    return folder


@cache
def wheelhouse() -> Path:
    """Return the folder that keeps fetched wheels."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "callfire-mail" / "wheels"
