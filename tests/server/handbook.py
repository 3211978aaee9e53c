"""The commands of the handbooks, so that tests can type them word for word."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def commands(section: str, page: str = "server.md") -> list[str]:
    """Return the commands of a section's `sh` blocks, in order."""
    text = (DOCS / page).read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    assert text, f"no section {section}"
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]
