"""A sandbox as a whole: its ports, its life as an object and as a program, what it keeps, and the pytest plugin."""

import concurrent.futures
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox import PortInUseError, Sandbox, SandboxError
from sandbox.errors import InvalidInputError, NotFoundError
from sandbox.pytest_plugin import PostbackEndpoint
from tests.contract.sandbox_peers import INBOUND_TEXT, post_soap, soap_service

ROOT = Path(__file__).parents[2]
FIELDS = {"endpoint": "http://127.0.0.1:1/", "trigger_event": INBOUND_TEXT}


def port_of(url: str) -> int:
    """The port in an address."""
    return int(url.rpartition(":")[2])


# The object


def test_two_sandboxes_know_nothing_of_each_other() -> None:
    """Ports, accounts, mail, all are their own; ids begin anew in each."""
    with Sandbox() as one, Sandbox() as other:
        assert one.url != other.url
        assert one.create_subscription(**FIELDS)["id"] == other.create_subscription(**FIELDS)["id"]
        one.add_account("extra", "secret")
        one.delete_subscription(19001)
        assert len(other.subscriptions()) == 1
        with pytest.raises(NotFoundError, match="no account 'extra'"):
            other.send_text("Hello", account="extra")


@pytest.mark.parametrize("option", ["port", "smtp_port"])
def test_a_port_in_use_is_named(option: str) -> None:
    """With the option that chooses another; and nothing is left listening."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        ports = {"port": port_of(f":{free.getsockname()[1]}"), option: taken.getsockname()[1]}
        free.close()
        with pytest.raises(PortInUseError, match=rf"Port {ports[option]} is in use: .* --{option.replace('_', '-')}\."):
            Sandbox(**ports).start()
        if option == "smtp_port":
            with Sandbox(port=ports["port"]):
                pass


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"port": 70_000}, r"Cannot listen on 127\.0\.0\.1 port 70000 \(--port\)"),
        ({"host": "192.0.2.1"}, r"Cannot listen on 192\.0\.2\.1 port 0"),
        ({"seed": "none-such"}, "no seed none-such: neither a JSON file nor one of demo"),
        ({"seed": {"textes": []}}, "'textes' is not a field"),
        ({"seed": {"ids": {"text": 0}}}, "ids: text must be a whole number above 0, not 0"),
        ({"state_file": "/none/such/state.json"}, "Cannot write the state file"),
    ],
)
def test_a_sandbox_that_cannot_start_says_why(arguments: dict[str, Any], problem: str) -> None:
    """At once, by an error of its own."""
    with pytest.raises(SandboxError, match=problem):
        Sandbox(**arguments).start()


def test_it_listens_on_loopback_alone_and_answers_to_its_own_names(sandbox: Sandbox) -> None:
    """Other sites' pages and other names for this address are refused; the SOAP API is not guarded."""
    assert sandbox.url.startswith("http://127.0.0.1:")
    health = f"{sandbox.url}/healthz"
    assert requests.get(health, timeout=10).json() == sandbox.about()
    assert requests.get(health.replace("127.0.0.1", "localhost"), timeout=10).ok
    renamed = requests.get(health, headers={"Host": "evil.example"}, timeout=10)
    assert (renamed.status_code, "evil.example" in renamed.json()["error"]) == (403, True)
    foreign = requests.post(f"{sandbox.url}/control/reset", headers={"Origin": "https://evil.example"}, timeout=10)
    assert foreign.status_code == 403
    assert post_soap(sandbox, "<svc:QuerySubscriptions/>", headers={"Host": "www.callfire.com"}).status_code == 200


def test_a_sandbox_can_be_started_once_and_stopped_often() -> None:
    """And started again afterwards, at the same addresses if they were named."""
    sandbox = Sandbox()
    with pytest.raises(SandboxError, match="is not running"):
        sandbox.mails()
    with sandbox:
        with pytest.raises(SandboxError, match="runs already"):
            sandbox.start()
        assert sandbox.mails() == []
    sandbox.stop()
    with sandbox:
        assert sandbox.subscriptions() == []


def test_who_waits_while_a_sandbox_stops_is_told() -> None:
    """Not with a cancellation, which looks like something else."""
    sandbox = Sandbox().start()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(sandbox.wait_for_mail, timeout=60)
        while not sandbox._do(lambda simulation: len(simulation.feed._waiters)):
            pass
        sandbox.stop()
        with pytest.raises(SandboxError, match="the sandbox has stopped"):
            waiting.result(timeout=10)


def test_stopping_ends_what_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    """A hanging call, a wait, an open stream of changes and an idle mail connection do not hold it up."""
    sandbox = Sandbox().start()
    sandbox.trouble("soap-hang")
    with (
        requests.get(f"{sandbox.url}/control/changes", stream=True, timeout=10) as changes,
        socket.create_connection(("127.0.0.1", sandbox.smtp_port), timeout=10) as mail,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        assert next(changes.iter_lines()) == b"retry: 500"
        assert mail.recv(100).startswith(b"220 ")
        waiting = pool.submit(requests.get, f"{sandbox.url}/mailbox/messages/wait?timeout=60", timeout=10)
        hanging = pool.submit(post_soap, sandbox, "<svc:QuerySubscriptions/>")
        while not sandbox._do(lambda simulation: any(rule.struck for rule in simulation.troubles)):
            pass
        while not sandbox._do(lambda simulation: simulation.feed._waiters):
            pass
        sandbox.stop()
        with pytest.raises(requests.ConnectionError):
            hanging.result(timeout=10)
        assert waiting.result(timeout=10).json() == {"error": "the sandbox has stopped"}
        assert mail.recv(100) == b""
    assert [record.getMessage() for record in caplog.records if record.name.startswith("uvicorn")] == []


def test_a_reset_brings_the_beginning_back() -> None:
    """The seed with its fixed ids and numbers, and nothing else, whatever there was."""
    with Sandbox(seed="demo") as sandbox:

        def events() -> Any:
            return [{name: value for name, value in event.items() if name != "record_id"} for event in sandbox.events()]

        beginning = events()
        assert [text["id"] for text in beginning] == ["1001", "1002", "1003", "1004", "1005"]
        numbers = {number for text in beginning for number in (text["from_number"], text["to_number"])}
        assert all(number[4:9] == "55501" for number in numbers), "numbers that are reserved for fiction"
        sandbox.create_subscription(**FIELDS)
        sandbox.send_text("Hello")
        sandbox.add_account("extra", "secret")
        sandbox.trouble("soap-401", probability=1)
        sandbox.set_quirks(dedupe_request_ids=False)
        sandbox.trouble("mail-greylist", seconds=0, probability=1)
        sandbox.reset()
        assert events() == beginning
        assert (sandbox.subscriptions(), sandbox.postbacks(), sandbox.mails(), sandbox.requests()) == ([], [], [], {})
        assert sandbox.set_quirks() == {"dedupe_request_ids": True, "update_replaces_filter": False}
        assert post_soap(sandbox, "<svc:QuerySubscriptions/>").status_code == 200
        assert sandbox.create_subscription(**FIELDS)["id"] == "19001"
        with pytest.raises(InvalidInputError, match="there is one with id 19001 already"):
            sandbox.create_subscription(**FIELDS, id=19001)


def test_a_new_event_never_has_the_id_of_an_old_one() -> None:
    """Not after a reset and not in the next sandbox: a receiver would take it for a repetition."""
    with Sandbox() as first:
        idents = [first.send_text("one")["id"]]
        first.reset()
        idents.append(first.send_text("two")["id"])
    with Sandbox() as second:
        idents.append(second.send_text("three")["id"])
        idents.append(second.send_text("again", id=7)["id"])
    assert len(set(idents)) == 4
    assert idents[-1] == "7"


# The state file


def test_a_state_file_keeps_accounts_and_subscriptions(tmp_path: Path) -> None:
    """Over a restart, with ids counting on; a reset empties it. Only its owner can read it, as it holds passwords."""
    path = tmp_path / "state.json"
    with Sandbox(state_file=path) as sandbox:
        sandbox.add_account("other", "secret")
        with soap_service(sandbox, login="other", password="secret") as service:
            fields = {"Endpoint": "http://h/", "TriggerEvent": INBOUND_TEXT, "SubscriptionFilter": {"BatchId": 2**62}}
            ident = service.CreateSubscription(Subscription=fields)
        sandbox.set_quirks(dedupe_request_ids=False)
        before = sandbox.subscriptions()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Sandbox(state_file=path, seed="demo") as sandbox:
        assert sandbox.subscriptions() == before
        assert sandbox.set_quirks()["dedupe_request_ids"] is False
        with soap_service(sandbox, login="other", password="secret") as service:
            assert service.GetSubscription(ident).SubscriptionFilter.BatchId == 2**62
            assert service.CreateSubscription(Subscription=fields) > ident
        sandbox.reset()
    with Sandbox(state_file=path) as sandbox:
        assert sandbox.subscriptions() == []


def test_a_killed_sandbox_has_saved_what_is_older_than_a_moment(tmp_path: Path) -> None:
    """The file is written as things happen, and whole at every instant."""
    path = tmp_path / "state.json"
    with running("--state", str(path)) as (about, process):
        requests.post(f"{about['url']}/control/subscriptions", json=FIELDS, timeout=10).raise_for_status()
        while not json.loads(path.read_text())["subscriptions"]:
            pass
        process.kill()
        process.wait()
    with Sandbox(state_file=path) as sandbox:
        assert len(sandbox.subscriptions()) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", r"The state file .*state\.json is not JSON"),
        ("[]", r"The state file .*state\.json must be a JSON object"),
        ('{"accounts": [{"login": "a:b", "password": "x"}]}', "login must have no colon, not 'a:b'"),
    ],
)
def test_a_broken_state_file_is_refused_and_left_alone(tmp_path: Path, content: str, problem: str) -> None:
    """Named, with what is wrong in it."""
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(SandboxError, match=problem):
        Sandbox(state_file=path).start()
    assert path.read_text() == content


def test_a_state_that_cannot_be_saved_at_the_end_is_an_error(tmp_path: Path) -> None:
    """What is lost must not be lost silently."""
    folder = tmp_path / "folder"
    folder.mkdir()
    sandbox = Sandbox(state_file=folder / "state.json").start()
    (folder / "state.json").unlink()
    folder.rmdir()
    with pytest.raises(SandboxError, match=r"Cannot write the state file .*No such file or directory"):
        sandbox.stop()


# The program


@contextmanager
def running(*options: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """`python -m sandbox --json` on free ports, and what its first line says."""
    command = [sys.executable, "-m", "sandbox", "--port", "0", "--smtp-port", "0", "--json", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield json.loads(process.stdout.readline()), process
        finally:
            process.kill()


def command(*arguments: str, url: str | None = None) -> tuple[int, str]:
    """The exit code and the output of `python -m sandbox …`."""
    environment = os.environ | ({"SANDBOX_URL": url} if url else {})
    program = [sys.executable, "-m", "sandbox", *arguments]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_program_says_where_it_is_and_ends_when_told(stop: signal.Signals) -> None:
    """One line of JSON when ready; at a signal it leaves quietly, also with a stream open."""
    with running() as (about, process):
        assert sorted(about) == ["login", "password", "smtp_port", "url", "wsdl"]
        assert requests.get(about["wsdl"], timeout=10).ok
        assert (about["login"], about["password"]) == ("sandbox", "sandbox-password")
        with requests.get(f"{about['url']}/control/changes", stream=True, timeout=10):
            process.send_signal(stop)
            assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0


def test_without_json_it_speaks_to_people() -> None:
    """Where the page, the WSDL and the mailbox are, and how to stop it."""
    program = [sys.executable, "-m", "sandbox", "--port", "0", "--smtp-port", "0"]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(5)]
        process.terminate()
    assert "open it in a browser" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["WSDL", "login,", "mailbox", "Stop"]


def test_the_program_names_a_port_in_use() -> None:
    """And what to do, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = command("--port", str(port), "--smtp-port", "0")
    assert code == 1
    assert output == (f"Error: Port {port} is in use: stop what listens there, or choose another port with --port.\n")


def test_the_command_line_makes_events_happen(sandbox: Sandbox, postback_endpoint: PostbackEndpoint) -> None:
    """Texts, calls and campaigns; what came of it in a sentence, or in full as JSON."""
    sandbox.create_subscription(**FIELDS | {"endpoint": postback_endpoint.url})
    code, output = command("text", "--from", "18185550101", "--to", "18185550199", "Hello", url=sandbox.url)
    assert (code, output.split(": ")) == (0, [output.split(": ")[0], "posted to 1 subscription\n"])
    assert output.startswith("INBOUND_TEXT_FINISHED ")
    code, output = command("text", "--outbound", "--id", "77", "--json", "Hello", url=sandbox.url)
    text = json.loads(output)
    assert (text["id"], text["trigger"], text["postbacks"]) == ("77", "OUTBOUND_TEXT_FINISHED", [])
    assert command("call", "--duration", "9", "--result", "AM", "--id", "78", url=sandbox.url) == (
        0,
        "INBOUND_CALL_FINISHED 78: no subscription wanted it\n",
    )
    assert command("campaign", "started", "--id", "79", url=sandbox.url) == (
        0,
        "CAMPAIGN_STARTED 79: no subscription wanted it\n",
    )
    assert command("reset", url=sandbox.url) == (0, "The sandbox is as it was at its start.\n")
    assert sandbox.subscriptions() == []


def test_the_command_line_tells_which_postback_went_wrong(
    sandbox: Sandbox, postback_endpoint: PostbackEndpoint
) -> None:
    """And how: refused, lost, or answered with something else than a success. The event has happened all the same."""
    postback_endpoint.status = 503
    for endpoint in (FIELDS["endpoint"], postback_endpoint.url):
        sandbox.create_subscription(**FIELDS | {"endpoint": endpoint})
    code, output = command("text", "--id", "77", "Hello", url=sandbox.url)
    first, refused, answered = output.splitlines()
    assert (code, first) == (0, "INBOUND_TEXT_FINISHED 77: posted to 2 subscriptions, 2 went wrong:")
    assert refused.startswith("  http://127.0.0.1:1/ did not answer: ConnectError: ")
    assert answered == f"  {postback_endpoint.url} answered 503"
    sandbox.trouble("postback-lost")
    assert "  http://127.0.0.1:1/ was told nothing: postback-lost\n" in command("text", "Hi", url=sandbox.url)[1]


def test_one_postback_can_be_asked_for(sandbox: Sandbox) -> None:
    """As it stands, or once it is over."""
    sandbox.create_subscription(**FIELDS)
    sandbox.trouble("postback-swapped")
    (held,) = sandbox.send_text("held back")["postbacks"]
    address = f"{sandbox.url}/control/postbacks/{held}"
    assert requests.get(address, timeout=10).json()["state"] == "waiting"
    sandbox.send_text("overtakes")
    assert requests.get(address, params={"timeout": "30"}, timeout=60).json()["state"] == "failed"
    assert requests.get(f"{sandbox.url}/control/postbacks/99", timeout=10).status_code == 404


@pytest.mark.parametrize("spelled", ["+1 (818) 555-1213", "1.818.555.1213", "1-818-555-1213", "HELLO"])
def test_numbers_may_be_spelled_as_people_do(sandbox: Sandbox, spelled: str) -> None:
    """What is otherwise a number becomes one; a keyword stays what it is."""
    text = sandbox.send_text("Hello", from_number=spelled)
    assert text["from_number"].lstrip("+") in {"18185551213", "HELLO"}


def test_the_command_line_makes_trouble(sandbox: Sandbox) -> None:
    """Once, so often, or with a probability; and takes it back."""
    assert command("trouble", "soap-503", "--times", "2", url=sandbox.url) == (0, "soap-503: the next 2\n")
    assert command("trouble", "postback-late", "--seconds", "5", url=sandbox.url) == (
        0,
        "postback-late: the next one\n",
    )
    options = ("--probability", "0.5", "--seed", "7", "--operation", "GetSubscription")
    assert command("trouble", "soap-401", *options, url=sandbox.url) == (0, "soap-401: 50 % of them\n")
    assert post_soap(sandbox, "<svc:QuerySubscriptions/>").status_code == 503
    assert command("trouble", "--clear", url=sandbox.url) == (0, "Nothing goes wrong any more.\n")
    assert post_soap(sandbox, "<svc:QuerySubscriptions/>").status_code == 200
    code, output = command("trouble", url=sandbox.url)
    assert (code, "name what is to go wrong, or --clear" in output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("text", "--to", "office", "--from", "1818555x", "Hi"), "Error: a text: from must be a string like"),
        (("text", "--from", "a-b", "Hi"), "digits with an optional +, or a keyword of letters, not 'a-b'"),
        (("text", "--account", "nobody", "Hi"), "Error: no account 'nobody' in the sandbox"),
        (("campaign", "paused"), "is not one of 'started', 'stopped', 'finished'"),
        (("trouble", "soap-slow"), "Error: trouble: soap-slow needs seconds"),
    ],
)
def test_the_command_line_says_what_is_wrong(sandbox: Sandbox, arguments: tuple[str, ...], problem: str) -> None:
    """In one line, with what would be right."""
    code, output = command(*arguments, url=sandbox.url)
    assert code != 0
    assert problem in output
    assert "Traceback" not in output


def test_a_sandbox_that_is_not_there_is_missed() -> None:
    """By its address, with how to start one."""
    code, output = command("text", "Hello", "--url", "http://127.0.0.1:1")
    assert code == 1
    assert output == (
        "Error: No sandbox answers at http://127.0.0.1:1: start one with `python -m sandbox`, or name another with "
        "--url.\n"
    )


# The pytest plugin


def test_the_plugin_gives_each_test_an_empty_sandbox(tmp_path: Path) -> None:
    """In a project of somebody else's, with one line in its conftest."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["sandbox.pytest_plugin"]\n')
    (tmp_path / "test_texts.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_text(sandbox, postback_endpoint, number):\n"
        "    assert sandbox.subscriptions() == []\n"
        "    sandbox.create_subscription(endpoint=postback_endpoint.url, trigger_event='INBOUND_TEXT_FINISHED')\n"
        "    sandbox.send_text('Hello')\n"
        "    assert b'<Message>Hello</Message>' in postback_endpoint.take().body\n"
        "    assert sandbox.wait_for_postback()['answer']['status'] == 200\n"
    )
    program = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
