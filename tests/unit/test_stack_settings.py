"""A stack's settings: read once, every mistake at once, secrets never plain."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.runtime import set_all_config

from stacks.settings import StackSettings

DECLARED = yaml.safe_load((Path(__file__).parents[2] / "Pulumi.yaml").read_text())["config"]
GOOD = {"mailFrom": "texts@example.com", "mailTo": "office@example.com", "smtpHost": "mail.example.com"}


@pytest.fixture(autouse=True)
def forget(program: None) -> Iterator[None]:
    """Leave no configuration behind."""
    yield
    set_all_config({})


def load(given: dict[str, Any], secrets: tuple[str, ...] = ()) -> StackSettings:
    """Read settings as the CLI hands them over: the defaults of Pulumi.yaml and what is given, as strings."""
    settings = {name: declared["default"] for name, declared in DECLARED.items()} | given
    plain = {f"test:{name}": value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    set_all_config(plain, [f"test:{name}" for name in secrets])
    return StackSettings.load(pulumi.Config("test"))


def test_every_setting_is_declared_and_described() -> None:
    """Pulumi.yaml and the model name the same settings, each with a sentence and a default."""
    fields = {str(field.alias) for field in StackSettings.model_fields.values()}
    assert set(DECLARED) == fields
    assert all(declared["description"].endswith((".", "secret.")) for declared in DECLARED.values())


def test_the_forwarder_is_told_its_settings() -> None:
    """The names are the forwarder's own."""
    told = load(GOOD | {"mailTo": "a@example.com, b@example.com"}).forwarder()
    assert told["FORWARDER_MAIL_TO"] == "a@example.com,b@example.com"
    assert told["FORWARDER_SMTP_SECURITY"] == "starttls"
    assert "FORWARDER_SMTP_USERNAME" not in told


def test_every_mistake_is_named_at_once() -> None:
    """One error lists all that is wrong, each by the name it has in the file."""
    with pytest.raises(pulumi.RunError) as raised:
        load({"hosting": "cloud", "smtpPort": 0, "smtpSecurity": "ssl", "mailTo": "nobody", "mailFrom": "x"})
    for name in ("hosting", "smtpPort", "smtpSecurity", "mailTo.0", "mailFrom"):
        assert f"  {name}: " in str(raised.value)


def test_what_the_hosting_needs_is_asked_for() -> None:
    """`local` needs a mail server and addresses, `external` an endpoint."""
    with pytest.raises(pulumi.RunError, match="`local` needs mailFrom, mailTo, smtpHost"):
        load({})
    with pytest.raises(pulumi.RunError, match="`external` needs endpoint"):
        load({"hosting": "external"})


def test_a_secret_in_plain_text_is_refused() -> None:
    """What was set without --secret is a mistake, and its value is not repeated."""
    with pytest.raises(pulumi.RunError, match=r"smtpPassword: .*--secret") as raised:
        load(GOOD | {"smtpPassword": "tell-nobody"})
    assert "tell-nobody" not in str(raised.value)
    assert load(GOOD | {"smtpPassword": "tell-nobody"}, secrets=("smtpPassword",)).smtp_password is not None


def test_callfires_password_in_plain_text_is_refused() -> None:
    """It stands beside the program's settings, and would be committed with them."""
    set_all_config({"callfire:password": "tell-nobody"})
    with pytest.raises(pulumi.RunError, match=r"callfire:password: .*--secret(?s:.*)mailFrom") as raised:
        StackSettings.load(pulumi.Config("test"))
    assert "tell-nobody" not in str(raised.value)
