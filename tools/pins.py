"""Writes requirements*.txt, with hashes and for every supported Python and platform, from pyproject.toml's groups.

`pins.py --upgrade` takes the newest versions; without it, pins that still fit stay.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {  # the largest first: the others take their versions from it
    "requirements-dev.txt": ["dev"],
    "requirements.txt": ["deploy", "forwarder", "sandbox"],
    "requirements-forwarder.txt": ["forwarder"],
    "requirements-installer.txt": ["installer"],
}
# No index address in the files: they are for every machine.
COMPILE = [
    *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
    *("--no-emit-index-url", "--no-annotate", "--no-header"),
]


def main() -> None:
    """Write every file."""
    largest = next(iter(FILES))
    for name, groups in FILES.items():
        options = [word for group in groups for word in ("--group", group)]
        if name != largest:
            options += ["--constraint", largest]
        subprocess.run([sys.executable, "-m", *COMPILE, *options, *sys.argv[1:], "-o", name], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
