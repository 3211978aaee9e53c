"""An `up` cut off at the worst moments: after `pulumi cancel` and `up` the account holds exactly what is declared.

The benchmark does all moments and 50 kills at random; these are the ones that fail first when something is wrong.
"""

import re
from collections.abc import Iterator

import pytest

from sandbox import Sandbox
from tests.crashes import Crashes, End, Moment, Result
from tests.pulumi_kit import ROOT, Project
from tests.trouble import Trouble, TroubledCallFire, When

EXACT = Result(orphans=0, missing=0)


@pytest.fixture
def crashes(project: Project, sandbox: Sandbox) -> Iterator[Crashes]:
    """A project in front of a CallFire that holds requests."""
    with TroubledCallFire(sandbox) as callfire:
        yield Crashes(project, sandbox, callfire)


@pytest.mark.parametrize(
    ("end", "moments"),
    [
        (
            End.KILL,
            {"create": Moment.BEFORE_STATE, "update": Moment.BEFORE_ANSWER, "delete": Moment.BEFORE_STATE},
        ),
        (End.CTRL_C, {"create": Moment.BEFORE_ANSWER}),
    ],
)
def test_no_orphan_and_no_duplicate(crashes: Crashes, end: End, moments: dict[str, Moment]) -> None:
    """Nor anything missing."""
    for operation, moment in moments.items():
        assert crashes.interrupt(operation, moment, end) == EXACT


def test_the_provider_ends_with_the_cli(crashes: Crashes, sandbox: Sandbox) -> None:
    """A create that it would repeat after the CLI's end could come after the next `up` has looked for it."""
    crashes.callfire.strike("CreateSubscription", When.BEFORE, Trouble.UNAVAILABLE, times=999)
    held = crashes.callfire.strike("QuerySubscriptions", When.BEFORE, Trouble.HOLD)
    with crashes.project.running("up", "--yes", "--skip-preview", COUNT="1") as running:
        held.wait()
        running.kill()
        running.wait_for_providers_end()
    held.release(drop=True)
    assert sandbox.subscriptions() == []


def test_an_empty_checkpoint_is_mended_by_the_line_of_the_how_to(crashes: Crashes) -> None:
    """The error that the engine gives for it is the one that the how-to names, and what was made is adopted."""
    how_to = (ROOT / "docs" / "howto" / "after-an-interrupted-up.md").read_text()
    project = crashes.project
    project.up(COUNT="2")
    project.checkpoint.write_text("")  # as a kill leaves it
    refused = project.up(COUNT="3", check=False)
    assert refused.status != 0
    (error,) = re.findall(r"^## `(.*)`$", how_to, re.MULTILINE)
    assert error in refused.output
    (line,) = re.findall(r"^cp .*\.bak.*$", how_to, re.MULTILINE)
    project.shell(line.replace("PROJECT", "test").replace("STACK", "dev").replace("~", str(project.state)))
    assert crashes.repair(COUNT="3") == EXACT
