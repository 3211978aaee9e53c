"""The whole chain as a newcomer types it: `make up`, a text, a mail, what breaks in between, `make down`."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forwarder_kit import http
from tests.journey.checkout import Checkout, end_group, eventually

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("pulumi_cli")]

MAIL = """\
From: 18185551212
  To: 18186469991
Time: """
OPERATIONS = ("CreateSubscription", "GetSubscription", "QuerySubscriptions", "UpdateSubscription", "DeleteSubscription")


@pytest.fixture(scope="module")
def checkout(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]], pulumi_cli: Path
) -> Iterator[Checkout]:
    """A checkout in a folder with a space in its name; whatever a test leaves running is ended."""
    made = Checkout(tmp_path_factory.mktemp("a check out"), free_ports(4))
    try:
        yield made
    finally:
        made.make("down")


@pytest.fixture(scope="module")
def up(checkout: Checkout) -> str:
    """What the first `make up` prints. Each test leaves the stack up as it found it."""
    return checkout.make("up")


def calls(checkout: Checkout) -> dict[str, int]:
    """How often each SOAP operation was called since the sandbox started."""
    counted = checkout.ask("/control/requests")["counts"]
    return {name: counted.get(name, 0) for name in OPERATIONS}


def timeless(printed: str) -> list[str]:
    """The lines of `printed` without times, in alphabetical order: the CLI's own varies with them."""
    times = r"\(\d+(\.\d+)?s\)|Duration: \d+s|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    return sorted(re.sub(times, "TIME", line).rstrip() for line in printed.rstrip().splitlines())


def arrives(checkout: Checkout) -> bool:
    """Tell whether a new text becomes exactly one mail."""
    before = checkout.ask("/mailbox/messages")["messages"]
    checkout.send_text("Are you there?")
    newest = max((mail["id"] for mail in before), default=0)
    mail = checkout.ask(f"/mailbox/messages/wait?after={newest}&timeout=20")
    return (
        "Text: Are you there?" in mail["text"] and len(checkout.ask("/mailbox/messages")["messages"]) == len(before) + 1
    )


def test_up_shows_the_mail_that_a_text_became(up: str) -> None:
    """The tutorial's four lines stand on the screen, and then where things run."""
    assert "Subject: 18186469991 received a new SMS from 18185551212" in up
    assert all("    " + line in up for line in MAIL.splitlines())
    assert "    Text: Hello, World!" in up
    assert up.rstrip().endswith("make down")


def test_up_again_changes_nothing(up: str, checkout: Checkout) -> None:
    """A second `make up` only looks (one query), and a preview or an `up` without refresh does not even call."""
    before = calls(checkout)
    again = checkout.make("up")
    assert "Text: Hello, World!" in again
    assert "unchanged" in again
    assert not any(word in again for word in ("created", "updated", "deleted", "replaced"))
    assert calls(checkout) == before | {"QuerySubscriptions": before["QuerySubscriptions"] + 1}

    quiet = calls(checkout)
    checkout.pulumi("preview", "--expect-no-changes")
    assert "unchanged" in checkout.pulumi("up", "--yes", "--skip-preview")
    assert calls(checkout) == quiet


def test_the_readme_shows_what_one_gets(up: str, checkout: Checkout) -> None:
    """Both blocks of output in the README are what is printed, but for times."""
    shown = (checkout.folder / "README.md").read_text()
    down = checkout.make("down")
    checkout.make("up")
    for verb, printed in (("up", up), ("down", down)):
        block = re.search(rf"```\n\$ make {verb}\n(.*?)\n```", shown, re.DOTALL)
        assert block is not None
        assert timeless(checkout.with_default_ports(printed)) == timeless(block[1])


def test_git_status_stays_clean(up: str, checkout: Checkout) -> None:
    """Nothing that `make up` writes shows in git."""
    assert checkout.git("status", "--porcelain") == ""


def test_refresh_and_up_restart_a_killed_forwarder(up: str, checkout: Checkout) -> None:
    """A forwarder that died shows as a change, and `up` mends it; the subscription is left alone."""
    subscriptions = checkout.subscriptions()
    checkout.kill("forwarder")
    checkout.pulumi("refresh", "--yes", "--skip-preview")
    assert "running" in checkout.pulumi("preview", "--diff")
    checkout.pulumi("up", "--yes", "--skip-preview")
    assert checkout.subscriptions() == subscriptions
    assert arrives(checkout)


def test_refresh_and_up_bring_a_deleted_subscription_back(up: str, checkout: Checkout) -> None:
    """A subscription that was deleted behind Pulumi's back is made again."""
    checkout.delete_subscription(checkout.subscriptions()[0]["id"])
    assert checkout.subscriptions() == []
    checkout.pulumi("refresh", "--yes", "--skip-preview")
    checkout.pulumi("up", "--yes", "--skip-preview")
    assert len(checkout.subscriptions()) == 1
    assert arrives(checkout)


def test_up_mends_everything_after_a_reboot(up: str, checkout: Checkout) -> None:
    """With every process killed and only files left, `make up` works as the first time."""
    checkout.kill("forwarder", "sandbox")
    assert "Text: Hello, World!" in checkout.make("up")
    assert set(checkout.processes()) == {"forwarder", "sandbox"}


def test_a_token_rotation_keeps_the_former_one(up: str, checkout: Checkout) -> None:
    """By whatever number: CallFire posts to the new address, the former one is answered, too; back again as well."""
    endpoints = [checkout.subscriptions()[0]["endpoint"]]
    for version in ("3", "1"):
        checkout.pulumi("config", "set", "postbackTokenVersion", version)
        checkout.pulumi("up", "--yes")
        endpoints.append(checkout.subscriptions()[0]["endpoint"])
        assert arrives(checkout)
    assert len(set(endpoints)) == 3
    assert [http(endpoint).status for endpoint in endpoints] == [405] * 3  # whose token is wrong is answered 404
    checkout.pulumi("refresh", "--yes", "--skip-preview", "--expect-no-changes")
    exported = checkout.pulumi("stack", "export")
    assert not any(endpoint.rpartition("/")[2] in exported for endpoint in endpoints)
    checkout.git("checkout", "--", "stacks")


def test_no_secret_is_readable_in_the_state_or_on_the_screen(up: str, checkout: Checkout) -> None:
    """The token, and with it the endpoint, and CallFire's password stand nowhere in plain text."""
    endpoint = checkout.subscriptions()[0]["endpoint"]
    token = endpoint.rpartition("/")[2]
    assert len(token) > 40
    exported = checkout.pulumi("stack", "export")
    deployed = [resource["type"] for resource in json.loads(exported)["deployment"]["resources"]]
    assert "pulumi-python:dynamic/callfire:Subscription" in deployed
    shown = [
        up,
        exported,
        checkout.pulumi("stack"),
        checkout.pulumi("preview", "--diff"),
        checkout.pulumi("refresh", "--yes", "--skip-preview", "--diff"),
        checkout.pulumi("up", "--yes", "--skip-preview", environment={"CALLFIRE_PASSWORD": "wrong-password"}),
        checkout.pulumi("refresh", "--yes", environment={"CALLFIRE_PASSWORD": "wrong-password"}, status=1),
        *(path.read_text(errors="replace") for path in (checkout.folder / ".local" / "forwarder").rglob("*.log")),
        *(path.read_text(errors="replace") for path in (checkout.folder / ".local" / "state").rglob("*.json*")),
    ]
    for text in shown:
        assert token not in text
        assert "sandbox-password" not in text
        assert "wrong-password" not in text


def test_down_leaves_nothing(up: str, checkout: Checkout) -> None:
    """`make down` takes the subscription back, then stops forwarder and sandbox; git stays clean; twice is fine."""
    printed = checkout.make("down")
    gone = [printed.index(f"{kind} deleted") for kind in ("callfire:Subscription texts", "LocalForwarder forwarder")]
    assert gone == sorted(gone)
    assert checkout.processes() == {}
    assert checkout.git("status", "--porcelain") == ""
    checkout.make("down")


def test_up_and_down_work_after_being_cut_off(checkout: Checkout) -> None:
    """Killed by SIGKILL right after the forwarder came to be, `up` and `down` find everything again."""
    for verb in ("up", "down"):
        checkout.make("down")
        cut_off = checkout.start_make("up")
        eventually(lambda: "forwarder" in checkout.processes(), "a forwarder")
        end_group(cut_off)
        printed = checkout.make(verb)
        assert ("Text: Hello, World!" in printed) == (verb == "up")
        if verb == "up":
            assert len(checkout.subscriptions()) == 1
        assert set(checkout.processes()) == ({"forwarder", "sandbox"} if verb == "up" else set())
    assert checkout.left_by_pulumi() == []


def test_a_port_in_use_is_named(checkout: Checkout) -> None:
    """A port that somebody else has is named, with where to choose another one; `down` works afterwards."""
    checkout.make("down")
    for port in (checkout.sandbox, checkout.forwarder):
        with socket.create_server(("127.0.0.1", port)):
            assert f"{port}" in checkout.make("up", status=2)
        checkout.make("down")
        assert checkout.processes() == {}
