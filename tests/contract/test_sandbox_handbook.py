"""docs/sandbox.md: its commands and programs run and print what it says, its tables are the sandbox's own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox import Sandbox, pytest_plugin, simulation, trouble
from sandbox.control import ControlApi
from sandbox.page import Page
from sandbox.simulation import LOGIN, PASSWORD, Simulation
from tests.contract.sandbox_peers import INBOUND_TEXT

ROOT = Path(__file__).parents[2]
HANDBOOK = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """What stands between ```language and ```."""
    return re.findall(rf"^```{language}\n(.*?)^```$", HANDBOOK, re.MULTILINE | re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first heading is this one."""
    rows = HANDBOOK.partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def program(*words: str, **options: Any) -> subprocess.Popen[str]:
    """A program in the project's folder."""
    environment = os.environ | options.pop("environment", {})
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, **options)


def test_it_starts_as_the_handbook_shows() -> None:
    """Line by line, on ports of the test's own."""
    first, *expected = blocks("console")[0].splitlines()
    assert first == "$ .venv/bin/python -m sandbox"
    with program(*first.split()[1:], "--port", "0", "--smtp-port", "0") as process:
        assert process.stdout
        lines = [process.stdout.readline().rstrip("\n") for _ in expected]
        process.terminate()
    port, smtp_port = (re.findall(r":(\d+)", line)[0] for line in (lines[0], lines[3]))
    assert [line.replace(port, "8700").replace(smtp_port, "8725") for line in lines] == expected


@pytest.mark.parametrize("block", blocks("console")[1:])
def test_its_commands_print_what_it_says(
    sandbox: Sandbox, postback_endpoint: pytest_plugin.PostbackEndpoint, block: str
) -> None:
    """One after the other, against an account with one subscription to inbound texts."""
    if "$ curl" in block and shutil.which("curl") is None:
        pytest.skip("curl is not here: apt-get install curl")
    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event=INBOUND_TEXT)
    url = "http://127.0.0.1:8700"
    printed = ""
    for line in [line for line in block.splitlines() if line.startswith("$ ")]:
        with program(
            "bash", "-c", line[2:].replace(url, sandbox.url), environment={"SANDBOX_URL": sandbox.url}
        ) as shell:
            output = shell.communicate(timeout=30)[0]
        printed += f"{line}\n{output.rstrip()}\n"
    assert printed == block


def test_its_programs_run(tmp_path: Path) -> None:
    """Each as it stands."""
    for number, source in enumerate(blocks("python")):
        path = tmp_path / f"{number}.py"
        path.write_text(source)
        with program(sys.executable, "-W", "error", str(path), environment={"PYTHONPATH": str(ROOT)}) as done:
            assert done.wait(timeout=30) == 0


def test_its_seed_is_one(sandbox: Sandbox) -> None:
    """Accounts, subscriptions and texts are all taken."""
    (seed,) = blocks("json")
    assert sandbox.plant(json.loads(seed)) == {"accounts": 1, "subscriptions": 1, "texts": 1}


def test_it_lists_every_request_of_the_control_api() -> None:
    """And none that there is not."""
    held = Simulation(LOGIN, PASSWORD)
    routes = [*ControlApi(held, {}).routes(), *Page(held).routes()]
    there = {
        f"{method} {route.path}"
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
        if route.path.startswith(("/control", "/mailbox", "/healthz"))
    }
    listed = [row[0].strip("`") for row in table("request")]
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_it_lists_every_field_of_every_document() -> None:
    """With the required ones in bold."""
    fields = {
        "text": simulation._TEXT_FIELDS,
        "call": simulation._CALL_FIELDS,
        "campaign": simulation._CAMPAIGN_FIELDS,
        "account": simulation._ACCOUNT_FIELDS,
        "subscription": simulation._SUBSCRIPTION_FIELDS,
        "filter": simulation._FILTER_FIELDS,
        "trouble": trouble._FIELDS,
        "seed": simulation._SEED_FIELDS,
    }
    listed = {name: re.sub(r" \([^)]*\)", "", text).split(", ") for name, text in table("document")}
    assert listed.keys() == fields.keys()
    for name, known in fields.items():
        expected = {f"**{field}**" if how.required else field for field, how in known.items()}
        assert set(listed[name]) == expected


def test_it_lists_every_kind_of_trouble_option_and_fixture() -> None:
    """By name."""
    assert [row[0] for row in table("kind")] == [f"`{kind}`" for kind in trouble.Trouble]
    with program(sys.executable, "-m", "sandbox", "--help") as shown:
        options = re.findall(r"^  (--[a-z-]+)", shown.communicate(timeout=30)[0], re.MULTILINE)
    assert [row[0].strip("`") for row in table("option")] == [option for option in options if option != "--help"]
    fixtures = {
        name for name, found in vars(pytest_plugin).items() if type(found).__name__ == "FixtureFunctionDefinition"
    }
    assert {row[0].strip("`") for row in table("fixture")} == fixtures


def test_its_links_and_pictures_are_there() -> None:
    """Within the repository and within the page."""
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", HANDBOOK, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)]+)\)", HANDBOOK)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert (anchor in anchors) if not path else (ROOT / "docs" / path).is_file(), link
    for picture in (ROOT / "docs" / "images").glob("sandbox*.png"):
        assert picture.stat().st_size < 200_000
