"""Record the state that today's provider leaves: `python -m tests.recorded.record VERSION`.

A recording is never changed afterwards: it stands for the stacks that people have. The passphrase is the tests'.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sandbox import Sandbox
from tests.pulumi_kit import Project, credentials

FIRST_ID = 700_001
"""Ids of a recording are others than those that tests are given."""

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def record(version: str) -> None:
    """Write the program's state and the account's subscriptions into this folder."""
    asked = subprocess.run(
        [sys.executable, ROOT / "tools" / "pulumi_cli.py", "path"], stdout=subprocess.PIPE, text=True, check=True
    )
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder), Path(asked.stdout.splitlines()[-1]), credentials(sandbox))
        sandbox.plant({"ids": {"subscription": FIRST_ID}})
        project.write((HERE / "program.py").read_text())
        project.up()
        account = [
            {name: value for name, value in held.items() if name != "account"} for held in sandbox.subscriptions()
        ]
        state = project.export()
        for resource in state["deployment"]["resources"]:
            for where in ("sourcePosition", "stackTrace"):  # files of the machine that records
                resource.pop(where, None)
        recording = {
            "stack": state,
            "config": (project.folder / "Pulumi.dev.yaml").read_text(),
            "subscriptions": account,
        }
        (HERE / f"{version}.json").write_text(json.dumps(recording, indent=1) + "\n")
        project.pulumi("destroy", "--yes", "--skip-preview")


if __name__ == "__main__":
    record(sys.argv[1])
