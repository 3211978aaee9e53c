"""`python -m provider`: list, import and sweep, as processes of their own beside real stacks."""

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from provider.commands import AT_ONCE, main
from sandbox import Sandbox
from tests.pulumi_kit import ROOT, Done, Project, credentials
from tests.trouble import Trouble, TroubledCallFire, When

pytestmark = pytest.mark.timeout(300)  # a dozen commands of the CLI, on a busy machine
TOKEN = "fedcba9876543210"
NOWHERE = {"PULUMI_BACKEND_URL": "file:///nonexistent"}
TEXTS, CALLS = "INBOUND_TEXT_FINISHED", "INBOUND_CALL_FINISHED"


@pytest.fixture
def foreign(sandbox: Sandbox) -> list[str]:
    """Ids of three subscriptions that no stack holds: one on the stack's own server, two of other applications."""
    made = (
        {"endpoint": f"https://mail.example.com/postback/{TOKEN}", "trigger_event": CALLS},
        {
            "endpoint": f"https://crm.example.com/{TOKEN}",
            "trigger_event": TEXTS,
            "filter": {"to_number": "18186469991"},
        },
        {"endpoint": "ops@example.com", "trigger_event": TEXTS, "notification_format": "EMAIL", "enabled": False},
    )
    return [str(sandbox.create_subscription(**fields)["id"]) for fields in made]


def document(done: Done) -> dict[str, Any]:
    """The JSON on standard output."""
    return dict(json.loads(done.printed))


def ids(sandbox: Sandbox) -> list[str]:
    """What is on the account."""
    return [held["id"] for held in sandbox.subscriptions()]


def test_list_says_which_is_whose(project: Project, sandbox: Sandbox, foreign: list[str]) -> None:
    """By stack and resource, for people and machines, without tokens unless asked."""
    (held, *more) = project.restore(sandbox)
    shown = project.command("list")
    lines = {line.split()[0]: line for line in shown.printed.splitlines()}
    assert set(lines) == {"ID", held, *more, *foreign}
    assert any("dev: plain " in lines[id_] for id_ in (held, *more))
    assert "https://crm.example.com/…" in lines[foreign[1]]
    assert "to_number=18186469991" in lines[foreign[1]]
    assert "8 subscriptions, 5 in local stacks, 3 nobody's." in shown.output
    assert TOKEN not in shown.output

    listed = {
        found["id"]: found for found in document(project.command("list", "--json", "--show-secrets"))["subscriptions"]
    }
    resources = {listed[id_]["resource"] for id_ in (held, *more) if listed[id_]["stack"] == "dev"}
    assert resources == {"plain", "filtered", "from-a-dict", "mail", "plain-http"}
    assert (listed[foreign[2]]["stack"], listed[foreign[2]]["enabled"]) == (None, False)
    assert listed[foreign[1]]["endpoint"] == f"https://crm.example.com/{TOKEN}"


def test_without_stacks_list_says_so(project: Project, foreign: list[str]) -> None:
    """Nobody is called the owner of what cannot be known; that which needs owners does nothing."""
    shown = project.command("list", check=True, **NOWHERE)
    assert "3 subscriptions. Whose they are is not known: `pulumi stack ls" in shown.output
    listed = document(project.command("list", "--json", check=True, **NOWHERE))
    assert listed["stacks_problem"].startswith("`pulumi stack ls")


@pytest.mark.parametrize(
    "words", [("--unowned", "--foreign"), ("--unowned", "--in-stacks", "--yes"), ("--endpoint", "https://", "--yes")]
)
def test_without_stacks_sweep_deletes_nothing(
    project: Project, sandbox: Sandbox, foreign: list[str], words: tuple[str, ...]
) -> None:
    """What it cannot see may be a stack's; only --in-stacks says that this does not matter."""
    refused = project.command("sweep", *words, check=False, **NOWHERE)
    assert refused.status == 1
    assert "so none is deleted. `pulumi stack ls" in refused.output
    assert ("Or say --in-stacks" in refused.output) is ("--unowned" not in words)
    assert ids(sandbox) == foreign


def test_import_then_preview_shows_no_change(project: Project, sandbox: Sandbox, foreign: list[str]) -> None:
    """The printed commands, word for word: an imported account previews without a change and can be destroyed."""
    sandbox.create_subscription(
        endpoint="http://10.0.0.7/x", trigger_event=TEXTS, filter={"from_number": "+18185551212", "batch_id": "7"}
    )
    before = sandbox.subscriptions()
    code = bring(project)
    assert (project.folder / "imported" / "import.json").stat().st_mode & 0o077 == 0
    assert TOKEN not in project.checkpoint.read_text()
    project.write(code)
    project.pulumi("preview", "--expect-no-changes", "--refresh")
    assert sandbox.subscriptions() == before
    assert "in a stack already" in project.command("import", check=False).output
    project.pulumi("destroy", "--yes", "--skip-preview")
    assert sandbox.subscriptions() == []


def test_a_second_import_leaves_the_first_as_it_is(project: Project, sandbox: Sandbox) -> None:
    """Both describe themselves alike, and each goes on posting to its own endpoint."""
    made = [
        sandbox.create_subscription(endpoint=f"https://mail.example.com/{TOKEN}/{number}", trigger_event=TEXTS)
        for number in range(2)
    ]
    code = "\n".join([bring(project, "--match", held["id"]) for held in made])
    project.write(code)
    project.pulumi("preview", "--expect-no-changes", "--refresh")
    assert sorted(project.ids()) == ids(sandbox)


def test_import_writes_nothing_that_would_lose_what_is_there(project: Project, foreign: list[str]) -> None:
    """Where the stack's secret cannot be read, or is something else."""
    refused = project.command("import", check=False, **NOWHERE)
    assert refused.status == 1
    assert "subscriptionEndpoints cannot be read" in refused.output
    project.pulumi("config", "set", "--secret", "subscriptionEndpoints", TOKEN)
    refused = project.command("import", check=False)
    assert refused.status == 1
    assert "subscriptionEndpoints in the stack's configuration is not a JSON object." in refused.output
    assert TOKEN not in refused.output
    assert not (project.folder / "imported").exists()


def test_import_says_when_it_cannot_see_what_is_held(project: Project, foreign: list[str]) -> None:
    """Two stacks that hold the same subscription destroy it for each other."""
    project.checkpoint.with_name("prod.json").write_text("{")
    assert "Whether a stack holds them already is not known: `pulumi stack " in project.command("import").output
    assert document(project.command("import", "--json"))["stacks_problem"].startswith("`pulumi stack ")


def bring(project: Project, *words: str) -> str:
    """Import, run the commands that it prints, word for word, and return the code."""
    told = project.command("import", *words)
    commands = re.findall(r"^  \d\. (pulumi (?:config|import) .*)$", told.output, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        project.shell(command)
    code = (project.folder / "imported" / "subscriptions.py").read_text()
    assert TOKEN not in told.output + code
    return code


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [("https://crm.*", [1]), ("INBOUND_CALL*", [0]), ("18186469991", [1]), ("*@example.com", [2])],
)
def test_import_of_some(project: Project, foreign: list[str], pattern: str, chosen: list[int]) -> None:
    """By endpoint, trigger, number or id."""
    report = document(project.command("import", "--json", "--match", pattern))
    assert [found["id"] for found in report["imported"]] == [foreign[index] for index in chosen]


def test_sweep_deletes_only_when_told(project: Project, sandbox: Sandbox, foreign: list[str]) -> None:
    """Without --yes it shows; what a stack holds and what other applications have stays unless asked for."""
    (held, *more) = project.restore(sandbox)
    dry = project.command("sweep", "--unowned")
    assert "1 would be deleted; say --yes" in dry.output
    assert foreign[0] in dry.printed
    assert TOKEN not in dry.output
    assert ids(sandbox) == [*foreign, held, *more]

    done = project.command("sweep", "--unowned", "--yes")
    assert "1 deleted, 0 failed, 0 kept." in done.output
    assert ids(sandbox) == [*foreign[1:], held, *more]

    done = project.command("sweep", held, foreign[1], "99", "--yes")
    assert f"{held} stays: dev: " in done.output
    assert "99 is not on the account." in done.output
    assert ids(sandbox) == [foreign[2], held, *more]

    report = document(project.command("sweep", "--unowned", "--foreign", "--yes", "--json"))
    assert (report["deleted"], report["failed"]) == ([foreign[2]], {})
    project.command("sweep", held, "--in-stacks", "--yes")
    assert ids(sandbox) == more


def test_what_is_counted_is_counted_in_words_that_fit(project: Project, sandbox: Sandbox) -> None:
    """One is one, and nothing to delete asks for no --yes."""
    held = sandbox.create_subscription(endpoint="https://crm.example.com/x", trigger_event=TEXTS)["id"]
    assert "\n1 subscription, 0 in local stacks, 1 nobody's." in project.command("list").output
    assert "1 would be deleted; say --yes to delete it.\n" in project.command("sweep", held).output
    nothing = project.command("sweep", "1", "2").output
    assert sorted(nothing.splitlines()) == [
        "1 is not on the account.",
        "2 is not on the account.",
        "Nothing would be deleted.",
    ]


def test_without_the_cli_its_folder_is_told(project: Project, pulumi_cli: Path) -> None:
    """As a command that can be pasted, wherever Python lies, for the stacks' settings and for what they hold."""
    (project.folder / "bin").mkdir()
    environment = project.folder / "with space"
    environment.symlink_to(ROOT / ".venv")
    for environ in ({}, {"CALLFIRE_LOGIN": ""}):
        done = subprocess.run(
            [environment / "bin" / "python", "-m", "provider", "list"],
            cwd=project.folder,
            env=project.environ | {"PATH": str(project.folder / "bin")} | environ,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert "There is no Pulumi CLI on PATH. " in done.stderr
        assert "in the project's folder" not in done.stderr
        (told,) = re.findall(r"export PATH=.*:\$PATH\"", done.stderr)
        assert project.shell(f'{told}; echo "$PATH"') == f"{pulumi_cli}:{project.environ['PATH']}\n"


def test_sweep_goes_on_after_an_error(project: Project, sandbox: Sandbox, foreign: list[str]) -> None:
    """And ends with a summary and exit status 1; which of the two has the error is the threads' affair."""
    message = f"{sandbox.password} may not delete {TOKEN}"
    sandbox.trouble("soap-fault", operation="DeleteSubscription", fault="FORBIDDEN", message=message)
    done = project.command("sweep", *foreign[:2], "--in-stacks", "--yes", check=False, **NOWHERE)
    assert done.status == 1
    assert "1 deleted, 1 failed, 0 kept." in done.output
    assert "could not be deleted: CallFire said FORBIDDEN" in done.output
    assert "Whether a stack holds them is not known" in done.output
    assert TOKEN not in done.output
    assert sandbox.password not in done.output
    assert len(ids(sandbox)) == 2


def test_sweep_stops_when_it_is_interrupted(project: Project, sandbox: Sandbox) -> None:
    """What is under way ends, nothing else is begun, and the summary says so."""
    hooks = [{"endpoint": f"https://old.example.com/{number}", "trigger_event": TEXTS} for number in range(50)]
    sandbox.plant({"subscriptions": hooks})
    words = ("sweep", "--endpoint", "https://old.", "--in-stacks")
    with TroubledCallFire(sandbox) as callfire:
        held = [callfire.strike("DeleteSubscription", When.BEFORE, Trouble.HOLD) for _ in range(AT_ONCE)]
        with subprocess.Popen(
            [ROOT / ".venv" / "bin" / "python", "-m", "provider", *words, "--yes"],
            cwd=project.folder,
            env=project.environ | NOWHERE | credentials(sandbox, callfire.url),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            held[-1].wait()
            process.send_signal(signal.SIGINT)
            for strike in held:
                strike.release()
            summary, _ = process.communicate()
    assert process.returncode == 1
    deleted = int(summary.partition(" ")[0])
    assert summary == f"{deleted} deleted, 0 failed, 0 kept, {50 - deleted} not begun because of Ctrl-C.\n"
    assert len(ids(sandbox)) == 50 - deleted > 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "Say which"),
        (("",), "is not the id of a subscription"),
        (("0",), "is not the id of a subscription"),
        (("null",), "is not the id of a subscription"),
        (("--endpoint", "mail"), "must begin with http"),
        (("--foreign", "1"), "--foreign goes with --unowned"),
    ],
)
def test_sweep_refuses_what_it_does_not_understand(
    sandbox: Sandbox, foreign: list[str], words: tuple[str, ...], reason: str
) -> None:
    """Before it asks CallFire anything: above all, there is no empty id that means everything."""
    done = CliRunner(env=credentials(sandbox)).invoke(main, ["sweep", *words, "--yes"])
    assert done.exit_code == 2
    assert reason in done.output
    assert sandbox.requests() == {}


def test_sweep_sees_beyond_the_first_thousand(project: Project, sandbox: Sandbox) -> None:
    """By the beginning of the endpoint, the 1001st included, with a progress bar on a terminal."""
    sandbox.plant(
        {
            "subscriptions": [
                {"endpoint": f"https://crm.example.com/{number}", "trigger_event": TEXTS} for number in range(1000)
            ]
            + [{"endpoint": f"https://old.example.com/{number}", "trigger_event": TEXTS} for number in range(3)]
        }
    )
    shown = on_a_terminal(project, "sweep", "--endpoint", "https://old.example.com/", "--in-stacks", "--yes")
    assert "Deleting" in shown
    assert "100%" in shown
    assert "3 deleted, 0 failed, 0 kept." in shown
    assert len(ids(sandbox)) == 1000


def on_a_terminal(project: Project, *words: str) -> str:
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [ROOT / ".venv" / "bin" / "python", "-m", "provider", *words],
        cwd=project.folder,
        env=project.environ | NOWHERE | {"TERM": "xterm"},
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # how Linux says that nobody holds the other end any more
            pass
        os.close(ours)
    assert process.returncode == 0
    return shown.decode()


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"CALLFIRE_PASSWORD": "a wrong password"}, "refused the login or the password (HTTP 401)"),
        ({"CALLFIRE_URL": "http://mail.example.com"}, "would send the password to mail.example.com in clear"),
        ({"CALLFIRE_LOGIN": "", "PATH": "/nonexistent"}, "Neither CALLFIRE_LOGIN and CALLFIRE_PASSWORD nor a stack"),
    ],
)
def test_errors_are_one_line_and_exit_status_1(project: Project, environ: dict[str, str], reason: str) -> None:
    """On standard error, without a traceback or a password."""
    done = project.command("list", check=False, **environ)
    assert (done.status, done.printed) == (1, "")
    assert reason in done.output
    assert "Traceback" not in done.output
    assert "a wrong password" not in done.output


def test_the_stack_says_how_to_reach_callfire(project: Project, sandbox: Sandbox, foreign: list[str]) -> None:
    """Where the environment does not."""
    for name in ("CALLFIRE_LOGIN", "CALLFIRE_PASSWORD"):
        del project.environ[name]
    project.pulumi("config", "set", "callfire:login", sandbox.login)
    project.pulumi("config", "set", "--secret", "callfire:password", sandbox.password)
    assert [
        found["id"] for found in document(project.command("list", "--json", "--stack", "dev"))["subscriptions"]
    ] == foreign
