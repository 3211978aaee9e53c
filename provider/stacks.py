"""The local Pulumi stacks, asked through the CLI: their CallFire settings, and which subscriptions they hold.

Reading only. It never asks for secrets but those of the one stack that a command names.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from provider.errors import InvalidSettings, ProviderError
from provider.settings import DEFAULT_URL, Settings, read_settings

TYPE: Final = "pulumi-python:dynamic/callfire:Subscription"
_CLI_TOOL: Final = Path(__file__).parents[1] / "tools" / "pulumi_cli.py"


class StacksUnknown(ProviderError):  # noqa: N818 - as in errors.py
    """The stacks cannot be read, so nobody can say which subscriptions they hold."""

    advice = (
        "Run the command where `pulumi stack ls` shows it: in the project's folder, with backend and passphrase set."
    )


@dataclass(frozen=True, slots=True)
class Holder:
    """The resource of a stack that holds a subscription."""

    stack: str
    resource: str

    def __str__(self) -> str:
        """Name both."""
        return f"{self.stack}: {self.resource}"


def held(exported: Mapping[str, Any]) -> dict[str, str]:
    """Return the subscriptions that an exported stack holds: the name of each one's resource, by id."""
    deployment = exported.get("deployment") or {}
    return {
        resource["id"]: resource["urn"].rpartition("::")[2]
        for resource in deployment.get("resources") or []
        if resource["type"] == TYPE and resource.get("id") and not resource.get("external")
    }


def pulumi_cli(cwd: Path | None, *words: str) -> str:
    """Return what the Pulumi CLI prints in a folder; None is this one.

    Raises:
        StacksUnknown: it refuses, or is not there.
    """
    pulumi = shutil.which("pulumi")
    if pulumi is None:
        get = " ".join(shlex.quote(os.path.relpath(path)) for path in (sys.executable, _CLI_TOOL))
        raise StacksUnknown("There is no Pulumi CLI on PATH.", f'Put it there: export PATH="$({get} path):$PATH"')
    done = subprocess.run(  # noqa: S603 - the Pulumi CLI, with arguments of our own
        [pulumi, *words, "--non-interactive"], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = " ".join(done.stderr.removeprefix("error: ").split())  # the other output may hold secrets
        raise StacksUnknown(f"`pulumi {' '.join(words)}` failed: {reason or f'exit status {done.returncode}'}.")
    return done.stdout


class Stacks:
    """The stacks that the Pulumi CLI sees from here.

    Args:
        cwd: the project's folder.
    """

    def __init__(self, cwd: Path | None = None) -> None:
        self._cwd = cwd

    def settings(self, stack: str | None) -> Settings:
        """Read the settings: from the environment, and what is missing there from a stack's configuration.

        Args:
            stack: its name; None for the one that is selected.
        """
        if stack is None and os.environ.get("CALLFIRE_LOGIN") and os.environ.get("CALLFIRE_PASSWORD"):
            return read_settings(lambda _: None)
        try:
            config = self._config(stack, "--show-secrets")
        except StacksUnknown as error:
            raise InvalidSettings(
                f"Neither CALLFIRE_LOGIN and CALLFIRE_PASSWORD nor a stack say how to reach CallFire. {error.said}",
                f"Set both, or let the stack say it. {error.what_to_do}",
            ) from None
        return read_settings(config.get)

    def secret_object(self, stack: str | None, key: str) -> dict[str, Any]:
        """Return an object of the project's own configuration in a stack; an empty one where there is none.

        Args:
            stack: its name; None for the one that is selected.
            key: without the project's name.

        Raises:
            InvalidSettings: what is there is no JSON object.
            StacksUnknown: the stack's configuration could not be read.
        """
        config = self._config(stack, "--show-secrets")
        text = next((value for name, value in config.items() if name.partition(":")[2] == key), "{}")
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise InvalidSettings(f"{key} in the stack's configuration is not a JSON object.")
        return value

    def holders(self, settings: Settings) -> dict[str, Holder]:
        """Return who holds what, by id, in all stacks of the backend that use this account.

        A stack whose configuration names another login or another CallFire is left out: its ids mean something else.

        Raises:
            StacksUnknown: any stack could not be read.
        """
        found: dict[str, Holder] = {}
        for stack in self._names():
            if not self._uses_another_account(stack, settings):
                found |= self._held_in(stack)
        return found

    def _names(self) -> list[str]:
        return [entry["name"] for entry in self._json("stack", "ls", "--all", "--json")]

    def _held_in(self, stack: str) -> dict[str, Holder]:
        return {id_: Holder(stack, name) for id_, name in held(self._json("stack", "export", "--stack", stack)).items()}

    def _uses_another_account(self, stack: str, settings: Settings) -> bool:
        try:
            config = self._config(stack)
        except StacksUnknown:
            return False  # a stack of another project: its configuration is not here
        login, url = config.get("callfire:login"), config.get("callfire:url") or DEFAULT_URL
        known = login is not None and "CALLFIRE_URL" not in os.environ
        return (login is not None and login != settings.login) or (known and url.rstrip("/") != settings.url)

    def _config(self, stack: str | None, *options: str) -> dict[str, str]:
        selected = ("--stack", stack) if stack else ()
        values: Mapping[str, Any] = self._json("config", "--json", *options, *selected)
        return {name: entry["value"] for name, entry in values.items() if isinstance(entry.get("value"), str)}

    def _json(self, *arguments: str) -> Any:
        return json.loads(pulumi_cli(self._cwd, *arguments))
