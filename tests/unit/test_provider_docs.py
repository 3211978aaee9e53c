"""The handbook says what the code does: every table of docs/subscription.md against what it describes."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from provider.args import SubscriptionArgs, SubscriptionFilterArgs
from provider.canonical import NOTIFICATION_FORMATS, TRIGGER_EVENTS
from provider.commands import main
from provider.difference import RULES
from provider.functions import SubscriptionResult
from provider.settings import DEFAULT_TIMEOUT, DEFAULT_URL

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "subscription.md").read_text()
SOURCES = {path.name: path.read_text() for path in (ROOT / "provider").glob("*.py")}


def table(heading: str) -> list[list[str]]:
    """The cells of the rows below a heading, without backticks."""
    rows = TEXT.split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in row[1:-1].split("|")] for row in rows]


def test_arguments() -> None:
    """By name and default, with every value of the enumerations."""
    rows = table("argument")
    assert [(name, default) for name, default, _ in rows] == [
        (field.name, "" if field.default is MISSING else str(field.default)) for field in fields(SubscriptionArgs)
    ]
    meaning = {name: text for name, _, text in rows}
    assert all(value in meaning["notification_format"] for value in NOTIFICATION_FORMATS)
    assert all(value in meaning["trigger_event"] for value in TRIGGER_EVENTS)


def test_fields_of_the_filter() -> None:
    """By name."""
    assert [row[0] for row in table("field")] == [field.name for field in fields(SubscriptionFilterArgs)]


def test_changes() -> None:
    """Which is an update and which a replacement."""
    assert [tuple(row) for row in table("property")] == [
        (name, rule.changed.value, rule.taken_away.value) for name, rule in RULES.items()
    ]


def test_settings() -> None:
    """Those that are read, with their variables and defaults."""
    rows = table("setting of the stack")
    asked = SOURCES["settings.py"]
    assert {row[0] for row in rows} == set(re.findall(r'lookup\("(callfire:\w+)"\)', asked))
    assert {row[1] for row in rows} - {""} == set(re.findall(r'environ.get\("(CALLFIRE_\w+)"\)', asked))
    defaults = {name: default for name, _, default, _ in rows}
    assert defaults["callfire:url"] == DEFAULT_URL
    assert float(defaults["callfire:timeout"]) == DEFAULT_TIMEOUT


def test_results_of_the_functions() -> None:
    """Every field is named."""
    sentence = re.split(r"\.\s", TEXT.split("`SubscriptionResult` objects:", 1)[1])[0]
    assert re.findall(r"`(\w+)`", sentence) == [field.name for field in fields(SubscriptionResult)]


def test_commands_and_options() -> None:
    """All of them, each at the commands that have it."""
    assert {row[0].rpartition(" ")[2] for row in table("command")} == set(main.commands)
    documented = {
        (command, option)
        for option, of, _ in table("option")
        for command in (main.commands if of == "all" else of.split(", "))
    }
    assert documented == {
        (name, option)
        for name, command in main.commands.items()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }


@pytest.mark.parametrize("said", [row[0].split('"')[1] for row in table("what it says")])
def test_errors_are_quoted_from_the_code(said: str) -> None:
    """Whoever searches the handbook for what the screen says finds it."""
    written = " ".join("".join(SOURCES.values()).replace('"\n', "").split())
    words = re.escape(said.replace("HTTP 401", "HTTP XXX").replace("HTTP 403", "HTTP XXX"))
    assert re.search(words.replace("XXX", r"(\{status\}|\d{3})"), re.sub(r'" *f?"', "", written))


@pytest.mark.parametrize("page", [ROOT / "docs" / "subscription.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))])
def test_links_lead_somewhere(page: Path) -> None:
    """Relative ones."""
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", page.read_text()):
        assert (page.parent / link).is_file(), link
