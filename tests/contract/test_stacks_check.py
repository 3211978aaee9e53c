"""`python -m stacks check`: every finding at once, in the words of the stack's file."""

import asyncio
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import yaml

from provider.account import account_of
from sandbox import Sandbox
from stacks.check import Stack, check
from stacks.overlap import ADVICE
from stacks.settings import PROJECT

DECLARED = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text())["config"]
LOCAL = {"mailFrom": "texts@example.com", "mailTo": "office@example.com", "smtpHost": "127.0.0.1"}
SERVER = LOCAL | {"hosting": "server", "serverHosts": "localhost", "domain": "texts.invalid"}


@pytest.fixture
def found(sandbox: Sandbox) -> Callable[..., list[str]]:
    """A function that returns what is found of settings, with the sandbox's CallFire."""

    def find(given: dict[str, str], held: Collection[str] = (), **callfire: str) -> list[str]:
        account_of.cache_clear()  # a process has one listing for all its life
        config = {f"callfire-mail:{name}": str(declared["default"]) for name, declared in DECLARED.items()}
        config |= {f"callfire-mail:{name}": value for name, value in given.items()}
        account = {"login": sandbox.login, "password": sandbox.password, "url": sandbox.url} | callfire
        config |= {f"callfire:{name}": value for name, value in account.items()}
        secrets = {
            "callfire:password",
            *(key for key in config if key.endswith(("databaseUrl", "endpoint")) and config[key]),
        }
        return [str(finding) for finding in asyncio.run(check(Stack("test", config, secrets, held)))]

    return find


def test_a_wrong_setting_hides_only_what_depends_on_it(
    sandbox: Sandbox, found: Callable[..., list[str]], free_ports: Callable[[int], list[int]]
) -> None:
    """All else is looked at in the same run, and what is left out is told with the setting that is to be mended."""
    texts = "INBOUND_TEXT_FINISHED"
    sandbox.plant({"subscriptions": [{"endpoint": "https://crm.example.com/hook", "trigger_event": texts}]})
    right = SERVER | {"serverPort": str(free_ports(1)[0])}
    _, _, *rest = found(right)
    mail_server, server, dns, ports = rest
    assert server.startswith("WRONG  server localhost\n         SSH to localhost: port")
    first = "-      {}: not looked at, {} first".format

    def first_of_outside(name: str) -> list[str]:
        return [first("DNS name", name), first("ports and certificate", name)]

    left_out = {
        "numbers": ("not a number", rest),
        "smtpHost": ("https://smtp.example.com", [first("mail server", "smtpHost"), server, dns, ports]),
        "smtpPort": ("0", [first("mail server", "smtpPort"), server, dns, ports]),
        "mailTo": ("", [first("mail server", "mailTo"), server, dns, ports]),
        "serverPort": ("0", [mail_server, first("server localhost", "serverPort"), dns, ports]),
        "serverHosts": ("a b", [mail_server, first("servers", "serverHosts"), *first_of_outside("serverHosts")]),
        "domain": ("", [mail_server, server, *first_of_outside("domain")]),
        "hosting": ("cloud", [first("mail server and servers", "hosting")]),
    }
    for name, (wrong, expected) in left_out.items():
        settings, callfire, *others = found(right | {name: wrong})
        assert settings.startswith("WRONG  settings\n")
        assert callfire.startswith("ok     CallFire: ")
        unknown = f"who else gets the texts: not looked at, {name} first"
        assert callfire.endswith(unknown if name in {"numbers", "domain", "hosting"} else ADVICE)
        assert others == expected, name
    assert found(LOCAL, timeout="soon")[1] == "-      CallFire: not looked at, its settings first"


def test_one_subscription_is_told_in_the_singular(sandbox: Sandbox, found: Callable[..., list[str]]) -> None:
    """None, one, two."""
    for count in ("0 subscriptions", "1 subscription", "2 subscriptions"):
        assert found(LOCAL)[1].endswith(f"logged in as {sandbox.login}, {count}")
        sandbox.plant({"subscriptions": [{"endpoint": "http://h/", "trigger_event": "INBOUND_CALL_FINISHED"}]})


def test_who_else_gets_the_texts_is_told(sandbox: Sandbox, found: Callable[..., list[str]]) -> None:
    """Other stacks and systems, by server; but not what the stack holds, nor what posts to its own address."""
    staging, crm = (
        "https://staging.example.com/postback/0123456789abcdef",
        "https://crm.example.com/hook?key=tell-nobody",
    )
    planted: list[dict[str, Any]] = [
        {"endpoint": staging, "filter": {"to_number": "18186469991"}},
        {"endpoint": staging, "filter": {"to_number": "18186469992"}},
        {"endpoint": staging, "filter": {"to_number": "18186469993"}},
        {"endpoint": crm},
        {"endpoint": crm, "enabled": False},
        {"endpoint": crm, "trigger_event": "INBOUND_CALL_FINISHED"},
        {"endpoint": "https://texts.invalid/postback/a-former-token"},
        {"endpoint": "https://former.example.com/postback/a-token"},
    ]
    hooks = [
        {"id": str(number), "trigger_event": "INBOUND_TEXT_FINISHED"} | hook for number, hook in enumerate(planted, 1)
    ]
    sandbox.plant({"subscriptions": hooks})
    numbers = {"numbers": "+1 818 646 9991, 18186469992"}
    title, *also, advice = found(SERVER | numbers, held=["8"])[1].splitlines()
    assert title.startswith("ok     CallFire: ")
    assert [line.strip() for line in also] == [
        "texts to 18186469991, 18186469992 also go to https://staging.example.com/… (subscriptions 1, 2)",
        "texts to 18186469991, 18186469992 also go to https://crm.example.com/… (subscription 4)",
    ]
    assert "let no number stand in two stacks" in advice
    _, *also, _ = found(SERVER, held=["3", "8"])[1].splitlines()
    assert [line.strip() for line in also] == [
        "texts to 18186469991, 18186469992 also go to https://staging.example.com/… (subscriptions 1, 2)",
        "all texts also go to https://crm.example.com/… (subscription 4)",
    ]
    assert found(SERVER | {"numbers": "67076"}, held=["4", "8"])[1].endswith(", 8 subscriptions")
    external = {"hosting": "external", "endpoint": "https://Staging.example.com:443/postback/a-new-token"}
    assert "staging" not in found(external, held=["4", "7", "8"])[1]


def test_who_else_gets_the_texts_is_told_as_surely_as_it_is_known(
    sandbox: Sandbox, found: Callable[..., list[str]]
) -> None:
    """Another path at the own address is another system; a filter by sender, or no event, may leave texts out."""
    event = {"trigger_event": "INBOUND_TEXT_FINISHED"}
    hooks: list[dict[str, Any]] = [
        {"endpoint": "https://texts.invalid/crm/hook", "filter": {"to_number": "join"}} | event,
        {"endpoint": "http://[2001:db8::1]:8710/a", "filter": {"from_number": "18185551212"}} | event,
        {"endpoint": "https://any.example.com/hook", "trigger_event": "UNDEFINED_EVENT"},
        *(
            {"endpoint": "https://many.example.com/hook", "filter": {"to_number": f"{n}"}} | event
            for n in range(700, 707)
        ),
    ]
    sandbox.plant({"subscriptions": [{"id": str(number)} | hook for number, hook in enumerate(hooks, 1)]})
    _, *also, _ = found(SERVER | {"numbers": "JOIN,700,701,702,703,704,705,706"})[1].splitlines()
    assert [line.strip() for line in also] == [
        "texts to JOIN also go to https://texts.invalid/… (subscription 1)",
        "texts to 700, 701, 702, 703, 704 and 3 more may also go to http://[2001:db8::1]:8710/… (subscription 2)",
        "texts to 700, 701, 702, 703, 704 and 3 more may also go to https://any.example.com/… (subscription 3)",
        (
            "texts to 700, 701, 702, 703, 704 and 2 more also go to https://many.example.com/… "
            "(subscriptions 4, 5, 6, 7, 8 and 2 more)"
        ),
    ]


def test_the_mail_server_is_told_in_the_names_of_the_stack(
    found: Callable[..., list[str]], free_ports: Callable[[int], list[int]]
) -> None:
    """Who reads it can set smtpHost, and no variable of the forwarder's."""
    said = found(LOCAL | {"smtpPort": str(free_ports(1)[0])})[-1]
    assert "connection refused; check smtpHost and smtpPort" in said
    assert "FORWARDER_" not in said


def test_a_callfire_that_cannot_be_reached_is_told_without_limits_that_were_not_kept(
    found: Callable[..., list[str]], free_ports: Callable[[int], list[int]]
) -> None:
    """The check has a time limit of its own, so it does not speak of callfire:timeout."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    said = found(LOCAL, url=url)[1]
    assert f"Check callfire:url and the way to {url}." in said
    assert "callfire:timeout" not in said


def test_a_refused_password_is_told_in_two_lines(found: Callable[..., list[str]]) -> None:
    """What happened, and what to do."""
    [title, said, advice] = found(LOCAL, password="wrong")[1].splitlines()
    assert title == "WRONG  CallFire"
    assert said.strip() == "CallFire refused the login or the password (HTTP 401)."
    assert advice.strip().startswith("Check callfire:login and callfire:password (those of the API, not")


def test_a_name_that_does_not_resolve_is_no_matter_of_a_firewall(
    found: Callable[..., list[str]], free_ports: Callable[[int], list[int]]
) -> None:
    """It is told once, as DNS; and why SSH has no answer is told in the system's words, not in a library's."""
    ssh, dns, ports = found(SERVER | {"serverPort": str(free_ports(1)[0])})[-3:]
    assert "does not answer (Connection refused)" in ssh
    assert dns.startswith("WRONG  DNS name texts.invalid\n")
    assert ports == "-      ports and certificate: not looked at, the DNS name first"


def test_a_server_that_does_not_answer_is_not_waited_for(found: Callable[..., list[str]]) -> None:
    """Nothing was just made; it is tried twice only because it may have a key of another kind."""
    tries = []

    class Cut(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            tries.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), Cut) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        said = found(SERVER | {"serverHosts": "127.0.0.1", "serverPort": str(listener.server_address[1])})[-3]
        listener.shutdown()
    assert "does not answer" in said
    assert len(tries) == 2


def test_a_refused_port_is_not_called_reachable(
    found: Callable[..., list[str]], free_ports: Callable[[int], list[int]]
) -> None:
    """Before the first `up` nobody listens, and a firewall may look the same."""
    ssh, port = map(str, free_ports(2))
    files = {"tls": "files", "tlsCertificate": "/etc/ssl/a.pem", "tlsKey": "/etc/ssl/a.key", "domain": "localhost"}
    said = found(SERVER | files | {"serverPort": ssh, "forwarderPort": port})
    assert f"ok     port {port}: free: nobody listens yet (or a firewall rejects it)" in said


@pytest.mark.parametrize("character", ["[", "\u2100", "#"])
def test_a_database_url_that_is_none_is_told_without_its_password(
    found: Callable[..., list[str]], character: str
) -> None:
    """A password has to be quoted in it; whatever stands there, it ends in a sentence that does not repeat it."""
    url = f"postgresql://callfire:tell{character}nobody@192.0.2.1/outbox"
    said = "\n".join(found(SERVER | {"databaseUrl": url}))
    assert "WRONG  database\n" in said
    assert "nobody" not in said


def test_without_the_cli_the_project_s_own_is_named(tmp_path: Path) -> None:
    """The set-up has one: the line that puts it on PATH is told."""
    done = run({"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert 'export PATH="$(.venv/bin/python tools/pulumi_cli.py path):$PATH"' in done.stderr


def test_a_stack_that_does_not_exist_is_told_once(tmp_path: Path, pulumi_cli: Path) -> None:
    """The CLI's sentence, with one `Error:` before it, and what to do."""
    done = run(
        {
            "PATH": f"{pulumi_cli}{os.pathsep}{os.environ['PATH']}",
            "PULUMI_BACKEND_URL": f"file://{tmp_path}",
            "PULUMI_HOME": str(tmp_path),
        }
    )
    assert done.stderr == (
        "Error: `pulumi config --json --show-secrets --stack nonesuch` failed: no stack named 'nonesuch' found. Run "
        "the command where `pulumi stack ls` shows it: in the project's folder, with backend and passphrase set.\n"
    )


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Check a stack that does not exist, as a command."""
    return subprocess.run(
        [sys.executable, "-m", "stacks", "check", "--stack", "nonesuch"],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
