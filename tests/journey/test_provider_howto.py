"""The how-tos, typed as they stand: every program that they show, and every command."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import Sandbox
from tests.journey.checkout import Checkout
from tests.pulumi_kit import ROOT, Project, backend, credentials

pytestmark = pytest.mark.timeout(300)  # a dozen commands of the CLI, on a busy machine
DOCS = [ROOT / "docs" / "subscription.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
ENDPOINT = "https://texts.example.com/postback/0123456789abcdef"


def blocks(page: Path, language: str) -> list[str]:
    """What stands in the page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def page(name: str) -> Path:
    """A how-to."""
    return ROOT / "docs" / "howto" / f"{name}.md"


def test_every_program_of_the_handbook_works(project: Project, sandbox: Sandbox) -> None:
    """All of them in one stack, after the commands of `subscribe`; and all can go, but what was only read."""
    there = sandbox.create_subscription(
        endpoint="https://texts.example.com/fedcba9876543210",
        trigger_event="INBOUND_CALL_FINISHED",
        filter={"to_number": "18185550199"},
        enabled=False,
    )
    for name in ("CALLFIRE_LOGIN", "CALLFIRE_PASSWORD"):
        del project.environ[name]
    values = {"login": sandbox.login, "password": sandbox.password, "endpoint": ENDPOINT}
    settings, commands = blocks(page("subscribe"), "sh")
    for line in settings.splitlines():
        (value,) = (value for name, value in values.items() if line.endswith(name))
        project.shell(line, stdin=value)
    project.pulumi("config", "set", "subscriptionId", str(there["id"]))
    project.pulumi("config", "set", "numbers", "18186469993")
    programs = [program for doc in DOCS for program in blocks(doc, "python")]
    assert len(programs) > 5
    project.write("\n".join(f"exec({program!r}, {{}})" for program in programs))
    for line in commands.splitlines():
        assert "0123456789abcdef" not in project.shell(line)
    assert {held["id"] for held in sandbox.subscriptions()} == set(project.ids())
    assert len(project.ids()) == 1 + len(("texts", "every-text", "to 1", "to 2", "calls", "to 3, only here", "office"))
    outputs = json.loads(project.pulumi("stack", "output", "--json").output)
    assert (outputs["event"], outputs["enabled"], outputs["ours"]) == ("INBOUND_CALL_FINISHED", False, [there["id"]])
    for secret in (ENDPOINT, there["endpoint"], sandbox.password):
        assert secret not in project.checkpoint.read_text()
    project.pulumi("destroy", "--yes", "--skip-preview")
    assert sandbox.subscriptions() == [there]


def test_the_commands_of_importing_are_those_that_import_prints(project: Project, sandbox: Sandbox) -> None:
    """Which the tests of the commands run."""
    sandbox.create_subscription(endpoint="https://crm.example.com/x", trigger_event="INBOUND_TEXT_FINISHED")
    (project.folder / ".venv").symlink_to(ROOT / ".venv")
    look, bring, see = blocks(page("import-an-account"), "sh")
    for line in look.splitlines():
        told = project.shell(line)
    for line in (bring + see).splitlines():
        assert line in told


def test_an_account_is_imported_into_this_project(
    tmp_path: Path, free_ports: Callable[[int], list[int]], pulumi_cli: Path, sandbox: Sandbox
) -> None:
    """Beside what its program declares, and the program takes its new setting."""
    (tmp_path / "checkout").mkdir()
    checkout = Checkout(tmp_path / "checkout", free_ports(4))
    environment = os.environ | backend(tmp_path, pulumi_cli) | credentials(sandbox)

    def type_in(line: str, typed: str = "") -> str:
        return subprocess.run(
            ["bash", "-ec", line],
            cwd=checkout.folder,
            env=environment | {"PULUMI_OPTION_YES": "true", "PULUMI_OPTION_NON_INTERACTIVE": "true"},
            input=typed,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    type_in("pulumi stack init office")
    type_in("pulumi config set hosting external")
    type_in("pulumi config set --secret endpoint", ENDPOINT)
    type_in("pulumi up --skip-preview")
    sandbox.create_subscription(endpoint="https://crm.example.com/x", trigger_event="INBOUND_TEXT_FINISHED")
    look, bring, see = blocks(page("import-an-account"), "sh")
    for line in (look + bring).splitlines():
        type_in(line)
    with (checkout.folder / "__main__.py").open("a") as program:
        program.write((checkout.folder / "imported" / "subscriptions.py").read_text())
    type_in(see.replace("preview", "preview --expect-no-changes"))
    assert "office: inbound-text " in type_in(look.splitlines()[0])


def test_the_commands_of_the_rotation_are_those_that_its_test_runs() -> None:
    """`test_after_a_rotation_of_the_password` runs the same, with the new password given another way."""
    tested = (Path(__file__).parent / "test_provider_life.py").read_text()
    assert blocks(page("rotate-the-password"), "sh") == [
        "pulumi config set --secret callfire:password\npulumi up\n",
        "pulumi refresh --run-program\nCALLFIRE_PASSWORD=… pulumi destroy\n",
    ]
    assert 'refresh(project, "--run-program"' in tested
