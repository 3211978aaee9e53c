"""The examples for staging and production, as somebody uses them for the first time."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.journey.checkout import Checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Checkout:
    """A checkout in which nothing runs."""
    return Checkout(tmp_path_factory.mktemp("environments"), free_ports(4))


@pytest.mark.parametrize(("name", "subscriptions"), [("staging", 1), ("production", 2)])
def test_the_examples_preview_cleanly_once_their_secrets_are_set(
    checkout: Checkout, pulumi_cli: Path, tmp_path: Path, name: str, subscriptions: int
) -> None:
    """The commands in the stack's file, then a preview: one subscription per number, and no secret on the screen."""
    environment = os.environ | {
        "PATH": f"{pulumi_cli}{os.pathsep}{os.environ['PATH']}",
        "PULUMI_BACKEND_URL": f"file://{tmp_path}",
        "PULUMI_HOME": str(tmp_path),
        "PULUMI_CONFIG_PASSPHRASE": "correct horse battery staple",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }

    def pulumi(*words: str, typed: str = "") -> str:
        return subprocess.run(
            ["pulumi", *words],
            cwd=checkout.folder,
            env=environment,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        ).stdout

    written = (checkout.folder / "stacks" / f"Pulumi.{name}.yaml").read_text()
    secrets = {
        "callfire:login": "login-of-ours",
        "callfire:password": "password-of-ours",
        "smtpPassword": "mail-of-ours",
    }
    pulumi("stack", "init", name)
    for secret, value in secrets.items():
        assert f"pulumi config set --secret {secret}" in written
        pulumi("config", "set", "--secret", secret, typed=value)
    shown = pulumi("preview", "--diff", "--non-interactive")
    assert f"+ {subscriptions + 3} to create" in shown  # the stack itself, a token, the forwarder
    assert shown.count("callfire:Subscription: (create)") == subscriptions
    kept = (checkout.folder / "stacks" / f"Pulumi.{name}.yaml").read_text()
    for value in secrets.values():
        assert value not in shown
        assert value not in kept


@pytest.mark.timeout(300)
def test_a_new_project_is_a_valid_stack(checkout: Checkout, pulumi_cli: Path, tmp_path: Path) -> None:
    """`pulumi new` from this repository writes a project whose one stack previews once its secrets are set."""
    folder = tmp_path / "texts"
    environment = os.environ | {
        "PATH": f"{pulumi_cli}{os.pathsep}{os.environ['PATH']}",
        "PULUMI_BACKEND_URL": f"file://{tmp_path}",
        "PULUMI_HOME": str(tmp_path / "home"),
        "PULUMI_CONFIG_PASSPHRASE": "correct horse battery staple",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }
    template = tmp_path / "template"  # what is committed, without a virtual environment
    checkout.git("worktree", "add", "-q", str(template), "HEAD")
    (template / ".git").unlink()
    asked = yaml.safe_load((template / "Pulumi.yaml").read_text())["template"]["config"]
    answers = {
        "callfire:login": "login-of-ours",
        "callfire-mail:numbers": "18186469991,18186469992",
        "callfire-mail:mailFrom": "texts@example.com",
        "callfire-mail:mailTo": "office@example.com",
        "callfire-mail:smtpHost": "smtp.example.com",
        "callfire-mail:smtpUsername": "",
        "callfire-mail:hosting": "server",
        "callfire-mail:serverHosts": "texts.example.com",
        "callfire-mail:serverUser": "root",
        "callfire-mail:domain": "texts.example.com",
    }
    secret = "callfire:password"
    assert asked.keys() == answers.keys() | {secret}
    given = [word for name, value in answers.items() for word in ("--config", f"{name}={value}")]

    def pulumi(*words: str, typed: str = "") -> str:
        done = subprocess.run(
            ["pulumi", *words],
            cwd=folder,
            env=environment,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    folder.mkdir()
    pulumi("new", str(template), "--yes", "--force", "--name", "callfire-mail", "--stack", "new", *given)
    pulumi("config", "set", "--secret", secret, typed="password-of-ours")
    assert "+ 5 to create" in pulumi("preview", "--non-interactive")
