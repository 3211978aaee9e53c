"""The forwarder's documentation is true: its tables are the code's, its examples do what they say."""

import os
import re
import shlex
from enum import Enum
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from forwarder.commands import main
from forwarder.contacts import read_contacts
from forwarder.routes import Routes, _Default, _Entry, read_routes
from forwarder.settings import Settings, load_settings
from forwarder.templates import FIELDS
from tests.forwarder_kit import environment

DOCS = Path(__file__).resolve().parents[2] / "docs"
HANDBOOK = (DOCS / "forwarder.md").read_text(encoding="utf-8")
ROUTES = (DOCS / "routes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(toml|console|csv)\n(.*?)```", ROUTES, re.DOTALL)
EXAMPLES = [
    (BLOCKS[place - 1][1], content)
    for place, (kind, content) in enumerate(BLOCKS)
    if kind == "console" and BLOCKS[place - 1][0] == "toml"
]


def settings_table() -> list[str]:
    """A row for each setting, as it must stand in the handbook."""
    rows = []
    for name, field in Settings.model_fields.items():
        value = field.default.value if isinstance(field.default, Enum) else field.default
        shown = "required" if field.is_required() else f"`{value}`" if isinstance(value, str | int) else ""
        rows.append(f"| `FORWARDER_{name.upper()}` | {shown} | {field.description} |")
    return rows


def test_the_settings_table_is_the_settings_class() -> None:
    """Every setting with its default and its sentence, and none that is not there."""
    found = [line for line in HANDBOOK.splitlines() if line.startswith("| `FORWARDER_")]
    assert sorted(found) == sorted(settings_table())


def test_the_example_of_a_file_is_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the secrets beside it, it is enough to start."""
    file = tmp_path / "forwarder.toml"
    file.write_text(re.findall(r"```toml\n(.*?)```", HANDBOOK, re.DOTALL)[0], encoding="utf-8")
    secret = {"FORWARDER_TOKENS": "0123456789abcdef", "FORWARDER_SMTP_PASSWORD": "password"}
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    found = load_settings(secret | {"FORWARDER_CONFIG": str(file)})
    assert (found.port, found.mail_to) == (8710, ("office@example.com", "ann@example.com"))


def test_the_field_table_is_what_templates_can_use() -> None:
    """Every field and what it means."""
    for name, meaning in FIELDS.items():
        assert f"| `{name}` | {meaning} |" in ROUTES.splitlines()


def test_the_key_table_is_what_routes_can_hold() -> None:
    """Every key, and where it may stand."""
    table = ROUTES.partition("## Every key")[2].partition("##")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    keys = {key: where.strip() for names, where in rows for key in re.findall(r"`(\w+)`", names)}
    assert keys == {name: "both" if name in _Default.model_fields else "route" for name in _Entry.model_fields}


def test_every_verb_is_in_the_handbook() -> None:
    """With each of its commands."""
    context = click.Context(main)
    for name in main.list_commands(context):
        verb = main.get_command(context, name)
        for command in verb.list_commands(context) if isinstance(verb, click.Group) else [""]:
            assert f"`{name} {command}".strip() in HANDBOOK


@pytest.mark.parametrize(("routes", "session"), EXAMPLES)
def test_an_example_of_routes_does_what_it_says(routes: str, session: str, tmp_path: Path) -> None:
    """Each command is run with the file above it, and what stands below it comes out in that order."""
    file = tmp_path / "routes.toml"
    file.write_text(routes, encoding="utf-8")
    settings = environment(tmp_path, 25, routes=str(file))
    settings.pop("FORWARDER_MAIL_TO")
    others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("FORWARDER_")}
    commands = session.split("$ python -m forwarder ")[1:]
    assert commands
    for command in commands:
        typed, *expected = command.strip().splitlines()
        done = CliRunner().invoke(main, shlex.split(typed), env=others | settings)
        assert done.exit_code == 0, done.output
        printed = iter(done.stdout.splitlines())
        for line in expected:
            assert line in printed, f"{typed}\n{line}\nis not in\n{done.stdout}"


def test_every_example_is_run() -> None:
    """No file of routes stands without a command that shows what it does."""
    assert len(EXAMPLES) == sum(kind == "toml" for kind, _ in BLOCKS) >= 5


def test_the_example_of_contacts_can_be_read(tmp_path: Path) -> None:
    """A number, a short code, a name with a comma."""
    file = tmp_path / "contacts.csv"
    file.write_text(next(content for kind, content in BLOCKS if kind == "csv"), encoding="utf-8")
    contacts = read_contacts(file)
    assert (contacts.name("18185551212"), contacts.name("72345")) == ("Ada Lovelace", "Bank, alerts")


def test_the_example_of_private_texts_redacts(tmp_path: Path) -> None:
    """What is said of `redact` holds for the file that shows it."""
    file = tmp_path / "routes.toml"
    file.write_text(next(routes for routes, _ in EXAMPLES if "clinic" in routes), encoding="utf-8")
    routes: Routes = read_routes(file).routes(())
    assert [(route.name, route.redact) for route in routes.ordered] == [("clinic", True), ("default", False)]
