"""A stack on servers as an operator drives it, with the real CLI, and the CallFire and mailbox that it uses."""

import json
import os
import re
import shlex
import subprocess
import urllib.request
from collections import Counter
from typing import Any

import yaml

from sandbox.server import Sandbox
from tests.journey.checkout import Checkout
from tests.server.machine import Machine, eventually

PASSWORD = "sandbox-password"


class Stack:
    """A stack of a checkout, driven by the CLI."""

    def __init__(self, checkout: Checkout, name: str, environment: dict[str, str]) -> None:
        self.checkout = checkout
        self.name = name
        self.environment = os.environ | environment
        self.file = checkout.folder / "stacks" / f"Pulumi.{name}.yaml"

    def pulumi(self, *words: str, typed: str = "", status: int = 0) -> str:
        """Return what a command prints, which must end with this exit status (any but 0 counts as 1)."""
        done = subprocess.run(
            ["pulumi", "--non-interactive", *words],
            cwd=self.checkout.folder,
            env=self.environment | {"PULUMI_STACK": self.name},
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == (status != 0), done.stdout
        return done.stdout

    def start(self, settings: dict[str, Any], secrets: dict[str, str]) -> None:
        """Write the stack's file and set its secrets."""
        self.file.write_text(yaml.safe_dump({"config": settings}))
        self.pulumi("stack", "init", self.name)
        for name, value in secrets.items():
            self.pulumi("config", "set", "--secret", name, typed=value)

    def up(self, *words: str) -> str:
        return self.pulumi("up", "--yes", "--skip-preview", *words)

    def check(self, status: int) -> str:
        """Return what `python -m stacks check` prints."""
        return self.shell(f".venv/bin/python -m stacks check --stack {self.name}", status)

    def shell(self, line: str, status: int = 0) -> str:
        """Return what a line of a handbook prints, typed in the checkout."""
        done = subprocess.run(
            shlex.split(line),
            cwd=self.checkout.folder,
            env=self.environment | {"PULUMI_STACK": self.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def provider(self, *words: str, status: int = 0) -> str:
        """Return what a command of the provider's prints, on both outputs."""
        return self.shell(shlex.join([".venv/bin/python", "-m", "provider", *words, "--stack", self.name]), status)

    def exported(self) -> str:
        return self.pulumi("stack", "export")


class CallFire:
    """The sandbox, as this side sees it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.url = sandbox.url
        self.smtp_port = sandbox.smtp_port

    def ask(self, path: str, body: object = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def send_text(self, message: str, to: str = "18186469991") -> None:
        self.ask("/control/texts", {"from": "18185551212", "to": to, "message": message})

    def mails(self) -> Counter[str]:
        """How often each message arrived."""
        found = self.ask("/mailbox/messages")["messages"]
        return Counter(re.findall(r"Text: (.*)", mail["text"])[0] for mail in found)

    def recipients(self, message: str) -> list[str]:
        """Who got a message."""
        found = [mail for mail in self.ask("/mailbox/messages")["messages"] if f"Text: {message}" in mail["text"]]
        return [dict(mail["headers"])["To"] for mail in found]

    def arrives(self, message: str, to: str = "18186469991") -> None:
        """A text becomes one mail."""
        self.send_text(message, to)
        eventually(lambda: self.mails()[message] == 1, f"a mail with {message}")


def settings(machine: Machine, callfire: CallFire, **changes: Any) -> dict[str, Any]:
    """The settings of a stack on this server."""
    told = {
        "hosting": "server",
        "serverHosts": machine.ip,
        "serverUser": "deploy",
        "serverKeyFile": machine.key,
        "serverHostKeys": ",".join(machine.known_hosts),
        "tls": "none",
        "listenOn": machine.ip,
        "publicUrl": f"http://{machine.ip}:8710",
        "numbers": "18186469991",
        "mailFrom": "texts@example.com",
        "mailTo": "office@example.com",
        "smtpHost": machine.gateway,
        "smtpPort": callfire.smtp_port,
        "smtpSecurity": "none",
        **changes,
    }
    return {"callfire:url": callfire.url} | {f"callfire-mail:{name}": value for name, value in told.items()}
