"""A subscription's life with the real CLI: declared, left alone, drifted, changed, renamed, destroyed."""

import json
import re
from collections.abc import Callable

from sandbox import Sandbox
from tests.pulumi_kit import Done, Project

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


def calls(sandbox: Sandbox, work: Callable[[], object]) -> dict[str, int]:
    """How many SOAP calls of each kind something makes."""
    before = sandbox.requests()
    work()
    return {
        name: count - before.get(name, 0) for name, count in sandbox.requests().items() if count > before.get(name, 0)
    }


def refresh(project: Project, *options: str, check: bool = True, **environ: str) -> Done:
    """`pulumi refresh` without a preview."""
    return project.pulumi("refresh", "--yes", "--skip-preview", *options, check=check, **environ)


def destroy(project: Project, *options: str, check: bool = True, **environ: str) -> Done:
    """`pulumi destroy` without a preview."""
    return project.pulumi("destroy", "--yes", "--skip-preview", *options, check=check, **environ)


def test_a_life(project: Project, sandbox: Sandbox) -> None:
    """Each step makes the calls that it must and no other, and nowhere stands a secret in plain text."""
    said: list[str] = []

    def step(*words: str) -> dict[str, int]:
        return calls(sandbox, lambda: said.append(project.pulumi(*words).output))

    project.write(LIFE)
    assert step("preview", "--diff") == {}
    assert "5 to create" in re.sub(r"[+ ]+", " ", said[-1])
    assert step("up", "--yes", "--skip-preview") == {"QuerySubscriptions": 1, "CreateSubscription": 3}
    made = {(held["notification_format"], held["trigger_event"]): held for held in sandbox.subscriptions()}
    texts, called = made["XML", "INBOUND_TEXT_FINISHED"], made["XML", "INBOUND_CALL_FINISHED"]
    mail = made["EMAIL", "INBOUND_TEXT_FINISHED"]
    token = texts["endpoint"].rpartition("/")[2]
    assert len(token) > 40
    assert texts["filter"]["to_number"] == NUMBER
    assert (mail["endpoint"], mail["enabled"]) == ("ops@example.com", False)

    assert step("preview", "--expect-no-changes", "--diff") == {}
    assert step("up", "--yes", "--skip-preview") == {}

    sandbox.change_subscription(texts["id"], enabled=False)
    sandbox.delete_subscription(called["id"])
    assert step("refresh", "--yes", "--skip-preview", "--diff") == {"QuerySubscriptions": 1}
    assert re.search(r"enabled *: true => false", said[-1])
    assert step("up", "--yes", "--skip-preview", "--diff") == {
        "QuerySubscriptions": 1,
        "CreateSubscription": 1,
        "UpdateSubscription": 1,
    }
    assert [held["enabled"] for held in sandbox.subscriptions() if held["id"] == texts["id"]] == [True]

    project.write(LATER)
    assert step("up", "--yes", "--skip-preview", "--diff") == {
        "QuerySubscriptions": 1,
        "CreateSubscription": 1,
        "UpdateSubscription": 1,
        "DeleteSubscription": 1,
    }
    written = [call["operation"] for call in sandbox.request_log() if call["operation"][:6] in ("Create", "Delete")]
    assert written[-2:] == ["CreateSubscription", "DeleteSubscription"]
    assert sorted(held["id"] for held in sandbox.subscriptions()) == project.ids()

    said.append(json.dumps(project.export()))
    said += [file.read_text(errors="replace") for file in project.state.rglob("*") if file.is_file()]
    assert step("destroy", "--yes", "--skip-preview") == {"DeleteSubscription": 3}
    assert sandbox.subscriptions() == []
    for text in said:
        assert token not in text
        assert NUMBER not in text
        assert sandbox.password not in text


def test_subscriptions_of_others_are_left_alone(project: Project, sandbox: Sandbox) -> None:
    """Two stacks on one account and a foreign application: none touches what the others have, whatever is done."""
    foreign = sandbox.create_subscription(**FOREIGN)
    one, two = ({"COUNT": "2"}, {"COUNT": "2", "STAGE": "other."})
    program = (project.folder / "__main__.py").read_text()
    project.write(program.replace("mail.example.com", "{os.environ.get('STAGE', '')}mail.example.com"))
    project.up(**one)
    project.pulumi("stack", "init", "prod")
    project.up("--stack", "prod", **two)
    ours = [held["id"] for held in sandbox.subscriptions() if held["endpoint"].startswith("https://mail.")]
    destroy(project, "--stack", "prod", **two)
    assert [held["id"] for held in sandbox.subscriptions()] == [foreign["id"], *ours]
    assert "3 unchanged" in refresh(project, **one).output
    destroy(project, **one)
    assert sandbox.subscriptions() == [foreign]


def test_a_new_name_keeps_the_subscription(project: Project, sandbox: Sandbox) -> None:
    """With an alias nothing happens at all; without one it is adopted, said so, and not deleted for the old name."""
    program = 'import pulumi\nfrom provider import Subscription\nSubscription("NAME", endpoint="https://a.example.com/x"OPTS)\n'
    project.write(program.replace("NAME", "one").replace("OPTS", ""))
    project.up()
    ids = project.ids()
    alias = ', opts=pulumi.ResourceOptions(aliases=[pulumi.Alias(name="one")])'
    project.write(program.replace("NAME", "two").replace("OPTS", alias))
    assert calls(sandbox, project.up) == {}
    project.write(program.replace("NAME", "three").replace("OPTS", ""))
    said = project.up().output
    assert f"Subscription three: adopted {ids[0]}, which was on the account and is identical." in said
    assert f"{ids[0]} stays, because another resource of this program holds it now" in said
    assert project.ids() == [held["id"] for held in sandbox.subscriptions()] == ids


def test_targets_and_forced_replacements(project: Project, sandbox: Sandbox) -> None:
    """`--target` touches one; a forced replacement finds its own subscription and keeps it."""
    urn = "urn:pulumi:dev::test::pulumi-python:dynamic/callfire:Subscription::texts-1"
    project.up(COUNT="2")
    ids = project.ids()
    project.up("--target", urn, COUNT="2", ENABLED="false")
    assert [held["enabled"] for held in sandbox.subscriptions()].count(False) == 1
    project.up("--target-replace", urn, COUNT="2")
    assert [held["id"] for held in sandbox.subscriptions()] == project.ids() == ids
    assert all(held["enabled"] for held in sandbox.subscriptions())


def test_after_a_rotation_of_the_password(project: Project, sandbox: Sandbox) -> None:
    """The old one is refused in words that help; the new one works, from the environment or with --run-program."""
    for name in ("CALLFIRE_LOGIN", "CALLFIRE_PASSWORD"):
        del project.environ[name]
    project.pulumi("config", "set", "callfire:login", sandbox.login)
    project.pulumi("config", "set", "--secret", "callfire:password", sandbox.password)
    project.up(COUNT="1")
    sandbox.add_account(sandbox.login, "rotated-password")
    for command in (refresh, destroy):
        refused = command(project, check=False, COUNT="1")
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


WRONG = """\
from provider import Subscription

Subscription(
    "wrong",
    endpoint="ftp://mail.example.com/0123456789abcdef",
    notification_format="YAML",
    enabled="perhaps",
    filter={"to_number": "1 2", "colour": "red"},
)
"""


def test_a_preview_names_every_mistake(project: Project, sandbox: Sandbox) -> None:
    """At once, before any call, and without a secret or a traceback."""
    project.write(WRONG)
    shown = project.pulumi("preview", check=False)
    assert shown.status != 0
    for mistake in (
        "endpoint must be an http:// or https:// URL",
        "notification_format value {YAML} has a problem: must be one of XML",
        "enabled value {perhaps} has a problem: must be true or false",
        "filter.to_number must be a phone number",
        "filter.colour is not a property of a subscription",
    ):
        assert mistake in shown.output
    assert "0123456789abcdef" not in shown.output
    assert "Traceback" not in shown.output
    assert sandbox.requests() == {}


FUNCTIONS = """\
import os
import pulumi
from provider import Subscription, SubscriptionFilterArgs, get_subscription, get_subscriptions

there = Subscription.get("there", os.environ["ID"])
found = get_subscription(os.environ["ID"])
several = get_subscriptions(SubscriptionFilterArgs(to_number="(818) 646-9991"), endpoint_prefix="https://crm.")
pulumi.export("got", there.trigger_event)
pulumi.export("endpoint", there.endpoint)
pulumi.export("found", [found.trigger_event, found.enabled, found.filter, found.endpoint])
pulumi.export("several", [each.id for each in several])
"""


def test_a_program_can_ask_what_is_there(project: Project, sandbox: Sandbox) -> None:
    """`Subscription.get` and both functions; endpoints stay secret, and nothing is ever changed or deleted."""
    sandbox.create_subscription(**FOREIGN)
    two = sandbox.create_subscription(**FOREIGN, filter={"to_number": NUMBER}, enabled=False)
    before = sandbox.subscriptions()
    project.write(FUNCTIONS)
    said = project.up(ID=str(two["id"])).output
    outputs = json.loads(project.pulumi("stack", "output", "--json").output)
    assert outputs == {
        "got": "INBOUND_TEXT_FINISHED",
        "endpoint": "[secret]",
        "found": ["INBOUND_TEXT_FINISHED", False, {"to_number": NUMBER}, "[secret]"],
        "several": [two["id"]],
    }
    for text in (said, json.dumps(outputs), project.checkpoint.read_text()):
        assert FOREIGN["endpoint"] not in text
    refresh(project, ID=str(two["id"]))
    destroy(project, ID=str(two["id"]))
    assert sandbox.subscriptions() == before


def test_a_missing_id_is_an_error(project: Project) -> None:
    """In one paragraph that says how to find the ids."""
    project.write('from provider import get_subscription\nget_subscription("99")\n')
    shown = project.pulumi("preview", check=False)
    assert shown.status != 0
    assert "There is no subscription 99 on the account" in shown.output
    assert "`python -m provider list` shows the ids of the account" in shown.output
