"""The commands of docs/server.md, so that tests can type them word for word."""

import re
from pathlib import Path

HANDBOOK = Path(__file__).resolve().parents[2] / "docs" / "server.md"


def commands(section: str) -> list[str]:
    """Return the commands of a section's `sh` blocks, in order."""
    text = HANDBOOK.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert text, f"no section {section}"
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]
