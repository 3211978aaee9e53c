"""The examples for staging and production, as somebody uses them for the first time."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sandbox import Sandbox
from tests.journey.checkout import Checkout
from tests.journey.git_server import git_server
from tests.journey.terminal import Terminal
from tests.pulumi_kit import backend
from tests.server.handbook import commands


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Checkout:
    """A checkout in which nothing runs."""
    return Checkout(tmp_path_factory.mktemp("environments"), free_ports(4))


@pytest.mark.parametrize(("name", "subscriptions"), [("staging", 1), ("production", 2)])
def test_the_examples_preview_cleanly_once_their_secrets_are_set(
    checkout: Checkout, pulumi_cli: Path, tmp_path: Path, name: str, subscriptions: int
) -> None:
    """The commands in the stack's file, then a preview: one subscription per number, and no secret on the screen."""
    environment = os.environ | backend(tmp_path, pulumi_cli)

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
    pulumi("config", "set", "callfire:apiVersion", "1.0")  # where a subscription has no trigger event
    assert f"+ {subscriptions + 3} to create" in pulumi("preview", "--non-interactive")
    kept = (checkout.folder / "stacks" / f"Pulumi.{name}.yaml").read_text()
    for value in secrets.values():
        assert value not in shown
        assert value not in kept


@pytest.mark.timeout(300)
def test_a_new_project_is_a_valid_stack(checkout: Checkout, pulumi_cli: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    """`pulumi new` in a terminal: what it asks, what a wrong answer leads to, and a stack that can be put up."""
    folder = tmp_path / "texts"
    folder.mkdir()
    environment = os.environ | backend(tmp_path, pulumi_cli) | {"CALLFIRE_URL": sandbox.url, "TERM": "xterm"}
    passphrase = environment.pop("PULUMI_CONFIG_PASSPHRASE")  # it is asked for
    new, check, _ = (shlex.split(line) for line in commands("A new one", "environments.md"))
    checkout.git("clone", "-q", "--bare", ".", str(tmp_path / "YOU" / "callfire-mail.git"))
    answers = {
        "Project description": "",
        "Enter your passphrase": passphrase,
        "Re-enter your passphrase": passphrase,
        "(callfire:login)": sandbox.login,
        "(callfire:password)": sandbox.password,
        "(domain)": "texts.invalid",
        "(hosting)": "",
        "(mailFrom)": "texts@example.com",
        "(mailTo)": "office@example.com",
        "(numbers)": "18186469991, 1818 what",
        "(serverHosts)": "texts.invalid",
        "(serverUser)": "",
        "(smtpHost)": "smtp.invalid",
        "(smtpPassword)": "",
        "(smtpUsername)": "",
    }
    with git_server(tmp_path) as (url, trust):
        new[2] = new[2].replace("https://github.com", url)
        with Terminal(new, folder, environment | {"SSL_CERT_FILE": str(trust)}) as terminal:
            for question, answer in answers.items():
                terminal.answer(question, answer)
            assert terminal.end() == 0, terminal.shown
    asked = yaml.safe_load((checkout.folder / "Pulumi.yaml").read_text())["template"]["config"]
    assert [name.removeprefix("callfire-mail:") for name in asked] == [name.strip("()") for name in list(answers)[3:]]
    assert shlex.join(check) in terminal.shown
    written = (folder / "stacks" / f"Pulumi.{new[-1]}.yaml").read_text()
    config = yaml.safe_load(written)["config"]
    assert not {"callfire-mail:smtpUsername", "callfire-mail:smtpPassword"} & config.keys()
    for secret in (sandbox.password, passphrase):
        assert secret not in terminal.shown + written

    def run(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment | {"PULUMI_CONFIG_PASSPHRASE": passphrase},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    assert "numbers: `1818 what` must be a phone number" in run(*check, status=1)
    run("pulumi", "config", "set", "numbers", "18186469991,18186469992")
    said = run(*check, status=1)  # this server does not exist
    assert "ok     settings: hosting server" in said
    assert f"ok     CallFire: {sandbox.url}, logged in as {sandbox.login}" in said
    assert "WRONG  server texts.invalid" in said
    assert "+ 5 to create" in run("pulumi", "preview", "--non-interactive")
