"""State that lives for years: what a former version of the provider left is today's state too."""

import json
from pathlib import Path

import pytest

from sandbox import Sandbox
from tests.pulumi_kit import Project

RECORDED = Path(__file__).resolve().parent.parent / "recorded"


@pytest.mark.parametrize("version", sorted(file.stem for file in RECORDED.glob("*.json")))
def test_a_recorded_stack_previews_without_a_change_and_can_be_destroyed(
    project: Project, sandbox: Sandbox, version: str
) -> None:
    """Nor does a refresh change anything; nothing is adopted, replaced or left behind."""
    recording = json.loads((RECORDED / f"{version}.json").read_text())
    for held in recording["subscriptions"]:
        given = {name: value for name, value in held["filter"].items() if value is not None}
        sandbox.create_subscription(**{**held, "filter": given})
    foreign = sandbox.create_subscription(endpoint="https://crm.example.com/x", trigger_event="INBOUND_TEXT_FINISHED")
    project.write((RECORDED / "program.py").read_text())
    (project.folder / "Pulumi.dev.yaml").write_text(recording["config"])
    project.pulumi("stack", "import", stdin=json.dumps(recording["stack"]))
    project.pulumi("preview", "--expect-no-changes", "--diff")
    project.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    project.pulumi("destroy", "--yes", "--skip-preview")
    assert [held["id"] for held in sandbox.subscriptions()] == [foreign["id"]]
