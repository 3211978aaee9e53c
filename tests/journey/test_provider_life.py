"""A subscription's life with the real CLI: declared, left alone, drifted, changed, renamed, destroyed."""

import json
import re
from collections.abc import Callable

import pytest

from sandbox import Sandbox
from tests.pulumi_kit import Done, Project

pytestmark = pytest.mark.timeout(300)  # a dozen commands of the CLI, on a busy machine
NUMBER = "18186469991"
FOREIGN = {"endpoint": "https://crm.example.com/hook/fedcba9876543210", "trigger_event": "INBOUND_TEXT_FINISHED"}

LIFE = """\
import pulumi

from hosting import PostbackToken
from provider import Subscription, SubscriptionArgs, SubscriptionFilterArgs

token = PostbackToken("token")
endpoint = token.value.apply(lambda token: f"https://mail.example.com/postback/{token}")
number = pulumi.Output.secret("+1 (818) 646-9991")
texts = Subscription("texts", endpoint=endpoint, filter=SubscriptionFilterArgs(to_number=number, from_number="67076"))
Subscription("calls", {"endpoint": endpoint, "trigger_event": "inbound_call_finished", "filter": {"inbound": True}})
Subscription("mail", SubscriptionArgs(endpoint="ops@Example.com", notification_format="email", enabled=False))
pulumi.export("texts", {"id": texts.id, "on": texts.enabled, "endpoint": texts.endpoint})
"""
LATER = LIFE.replace(', from_number="67076"', "").replace("enabled=False", "enabled=True")


PLAIN = 'Subscription("plain", endpoint=ENDPOINT)'
"""A line of the recorded program."""


def calls(sandbox: Sandbox, work: Callable[[], object]) -> dict[str, int]:
    """How many SOAP calls of each kind something makes."""
    before = sandbox.requests()
    work()
    return {
        name: count - before.get(name, 0) for name, count in sandbox.requests().items() if count > before.get(name, 0)
    }


def refresh(project: Project, *options: str, **environ: str) -> Done:
    """`pulumi refresh` without a preview."""
    return project.pulumi("refresh", "--yes", "--skip-preview", *options, check=True, **environ)


def destroy(project: Project, *options: str, check: bool = True, **environ: str) -> Done:
    """`pulumi destroy` without a preview."""
    return project.pulumi("destroy", "--yes", "--skip-preview", *options, check=check, **environ)


def test_a_life(project: Project, sandbox: Sandbox) -> None:
    """Each step makes the calls that it must and no other, and nowhere stands a secret in plain text."""
    foreign = sandbox.create_subscription(**FOREIGN)
    said: list[str] = []

    def step(*words: str) -> dict[str, int]:
        return calls(sandbox, lambda: said.append(project.pulumi(*words).output))

    project.write(LIFE)
    assert step("preview", "--diff") == {}
    assert "5 to create" in re.sub(r"[+ ]+", " ", said[-1])
    assert step("up", "--yes", "--skip-preview") == {"QuerySubscriptions": 1, "CreateSubscription": 3}
    made = {(held["notification_format"], held["trigger_event"]): held for held in sandbox.subscriptions()[1:]}
    texts, called = made["XML", "INBOUND_TEXT_FINISHED"], made["XML", "INBOUND_CALL_FINISHED"]
    mail = made["EMAIL", "INBOUND_TEXT_FINISHED"]
    token = texts["endpoint"].rpartition("/")[2]
    assert len(token) > 40
    assert texts["filter"]["to_number"] == NUMBER
    assert (mail["endpoint"], mail["enabled"]) == ("ops@example.com", False)

    assert step("up", "--yes", "--skip-preview", "--diff") == {}

    sandbox.change_subscription(texts["id"], enabled=False)
    sandbox.delete_subscription(called["id"])
    assert step("refresh", "--yes", "--skip-preview", "--diff") == {"QuerySubscriptions": 1, "GetSubscription": 1}
    assert re.search(r"enabled *: true => false", said[-1])

    project.write(LATER)
    assert step("up", "--yes", "--skip-preview", "--diff") == {
        "QuerySubscriptions": 1,
        "CreateSubscription": 2,
        "UpdateSubscription": 1,
        "DeleteSubscription": 1,
    }
    assert sandbox.request_log()[-1]["operation"] == "DeleteSubscription"
    held = {held["id"]: held for held in sandbox.subscriptions() if held != foreign}
    assert sorted(held) == project.ids()
    assert all(subscription["enabled"] for subscription in held.values())

    said.append(json.dumps(project.export()))
    said += [file.read_text(errors="replace") for file in project.state.rglob("*") if file.is_file()]
    assert step("destroy", "--yes", "--skip-preview") == {"DeleteSubscription": 3}
    assert sandbox.subscriptions() == [foreign]
    for text in said:
        assert token not in text
        assert NUMBER not in text
        assert sandbox.password not in text


def test_two_stacks_leave_each_other_alone(project: Project, sandbox: Sandbox) -> None:
    """On one account: neither touches what the other has, or what a foreign application has."""
    foreign = sandbox.create_subscription(**FOREIGN)
    program = (project.folder / "__main__.py").read_text()
    ours = project.restore(sandbox)
    project.write(program)
    project.pulumi("stack", "init", "prod")
    project.up("--stack", "prod", COUNT="2")
    assert len(sandbox.subscriptions()) == 1 + len(ours) + 2
    destroy(project, "--stack", "prod", COUNT="2")
    assert [held["id"] for held in sandbox.subscriptions()] == [foreign["id"], *ours]
    assert "6 unchanged" in refresh(project).output


def test_a_new_name_keeps_the_subscription(project: Project, sandbox: Sandbox) -> None:
    """With an alias nothing happens at all; without one it is adopted, said so, and not deleted for the old name."""
    ids = project.restore(sandbox)
    program = (project.folder / "__main__.py").read_text()
    alias = 'opts=pulumi.ResourceOptions(aliases=[pulumi.Alias(name="plain")])'
    project.write(program.replace(PLAIN, f'Subscription("two", endpoint=ENDPOINT, {alias})'))
    assert calls(sandbox, project.up) == {}
    project.write(program.replace(PLAIN, 'Subscription("three", endpoint=ENDPOINT)'))
    said = project.up().output
    (adopted,) = set(
        re.findall(r"Subscription three: adopted (\d+), which was on the account and is identical\.", said)
    )
    assert f"{adopted} stays, because another resource of this program holds it now" in said
    assert project.ids() == sorted(held["id"] for held in sandbox.subscriptions()) == ids


def test_targets_and_forced_replacements(project: Project, sandbox: Sandbox) -> None:
    """`--target` touches one; a forced replacement finds its own subscription and keeps it."""
    ids = project.restore(sandbox)
    program = (project.folder / "__main__.py").read_text()
    target = "urn:pulumi:dev::test::pulumi-python:dynamic/callfire:Subscription::plain"
    off = program.replace(PLAIN, 'Subscription("plain", endpoint=ENDPOINT, enabled=False)')
    project.write(off.replace('"from-a-dict", {', '"from-a-dict", {"enabled": False, '))
    made = calls(sandbox, lambda: project.up("--target", target))
    assert made == {"UpdateSubscription": 1}
    project.write(program)
    project.up("--target-replace", target)
    assert sorted(held["id"] for held in sandbox.subscriptions()) == project.ids() == ids
    assert [held["enabled"] for held in sandbox.subscriptions()].count(False) == 1


def test_after_a_rotation_of_the_password(project: Project, sandbox: Sandbox) -> None:
    """The old one is refused in words that help; the new one works, from the environment or with --run-program."""
    for name in ("CALLFIRE_LOGIN", "CALLFIRE_PASSWORD"):
        del project.environ[name]
    project.pulumi("config", "set", "callfire:login", sandbox.login)
    project.pulumi("config", "set", "--secret", "callfire:password", sandbox.password)
    project.up(COUNT="1")
    sandbox.add_account(sandbox.login, "rotated-password")
    refused = destroy(project, check=False, COUNT="1")
    assert refused.status != 0
    assert "refused the login or the password (HTTP 401)" in refused.output
    assert "CALLFIRE_PASSWORD is set or --run-program is given" in refused.output
    assert "Traceback" not in refused.output
    assert len(project.ids()) == len(sandbox.subscriptions()) == 1

    assert "2 unchanged" in refresh(project, COUNT="1", CALLFIRE_PASSWORD="rotated-password").output
    project.pulumi("config", "set", "--secret", "callfire:password", "rotated-password")
    assert "2 unchanged" in refresh(project, "--run-program", COUNT="1").output
    assert "2 unchanged" in project.up(COUNT="1").output
    for file in (file for file in project.state.rglob("*") if file.is_file()):
        assert sandbox.password not in file.read_text(errors="replace")
        assert "rotated-password" not in file.read_text(errors="replace")
    destroy(project, COUNT="1")
    assert sandbox.subscriptions() == []
