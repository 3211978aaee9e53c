"""State that lives for years: what a former version of the provider left is today's state too."""

import pytest

from sandbox import Sandbox
from tests.pulumi_kit import RECORDED, Project


@pytest.mark.parametrize("version", sorted(file.stem for file in RECORDED.glob("*.json")))
def test_a_recorded_stack_previews_without_a_change_and_can_be_destroyed(
    project: Project, sandbox: Sandbox, version: str
) -> None:
    """Nor does a refresh change anything; nothing is adopted, replaced or left behind."""
    foreign = sandbox.create_subscription(endpoint="https://crm.example.com/x", trigger_event="INBOUND_TEXT_FINISHED")
    assert len(project.restore(sandbox, version)) == 5
    project.pulumi("preview", "--expect-no-changes", "--diff")
    project.pulumi("preview", "--expect-no-changes", "--refresh")
    project.pulumi("destroy", "--yes", "--skip-preview")
    assert [held["id"] for held in sandbox.subscriptions()] == [foreign["id"]]
