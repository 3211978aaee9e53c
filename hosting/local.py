"""A forwarder as a process of the machine that runs `pulumi up`: for a laptop, a test, or a server one logs in to.

The import path of `LocalForwarderProvider` is part of every stack's state and must never change.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
from pulumi import dynamic

from hosting import process, release
from hosting.errors import HostingError, NotHealthyError, show_errors_without_traceback
from hosting.postback_token import ACCEPTED, RETIRE_AFTER, UNUSED, accepted_tokens, unused

PROJECT = Path(__file__).resolve().parent.parent
DECLARED = ("state_dir", "settings", "secrets", "release", "running")
TOKENS = "FORWARDER_TOKENS"


class LocalForwarderProvider(dynamic.ResourceProvider):
    """Starts, watches, restarts and stops one forwarder per state folder."""

    serialize_as_secret_always = False

    def configure(self, _req: dynamic.ConfigureRequest) -> None:
        """Nothing of the configuration is needed; errors are to be read by people."""
        show_errors_without_traceback()

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> dynamic.DiffResult:
        """Any difference is a restart; another state folder is another forwarder (the old one first: the ports)."""
        differs = any(olds.get(name) != news[name] for name in DECLARED)
        return dynamic.DiffResult(
            changes=differs or olds.get("former_token") == UNUSED,
            replaces=["state_dir"] if olds.get("state_dir") != news["state_dir"] else [],
            delete_before_replace=True,
        )

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Start a forwarder; one that an interrupted run left behind is taken over if it was told the same."""
        outputs = bring_up(props, known_tokens(props), process.find(folder(props)))
        return dynamic.CreateResult(props["state_dir"], outputs)

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Return what runs now: whether it lives, and with which settings and which code."""
        forwarder = known(props)
        seen = {name: props[name] for name in DECLARED} | {"running": False}
        if forwarder:
            told, tokens = forwarder.settings, known_tokens(props)
            if "tokens" in props and told.get(TOKENS) == ",".join(tokens):
                told[TOKENS] = tokens[0]
            seen |= {
                "running": True,
                "release": forwarder.release,
                "secrets": {name: told.pop(name) for name in props["secrets"] if name in told},
                "settings": told,
            }
            props |= identity(forwarder)
            if len(tokens) > 1:
                since = time.time() - RETIRE_AFTER
                retired = unused(process.tokens_used(forwarder), tokens, forwarder.started, since)
                props["former_token"] = UNUSED if retired else ACCEPTED
        return dynamic.ReadResult(id_, props | seen, seen)

    def update(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> dynamic.UpdateResult:
        """Restart with what is declared now. When that fails, the former settings run again: the outbox is the same."""
        before = known_tokens(olds)
        tokens = accepted_tokens(known_tokens(news), before, olds.get("former_token", ""))
        try:
            return dynamic.UpdateResult(bring_up(news, tokens, known(olds)))
        except NotHealthyError as error:
            if not olds.get("running"):
                raise
            try:
                bring_up(olds, before, None)
            except HostingError:
                raise error from None
            raise NotHealthyError(f"{error}\nThe forwarder runs on with its former settings.") from None

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        """Stop the forwarder; what it has not delivered stays in its state folder."""
        forwarder = known(props)
        if forwarder:
            process.stop(forwarder)


def known(props: Mapping[str, Any]) -> process.Forwarder | None:
    """Return the forwarder that `props` tells of, or one that was started for its folder and not written down."""
    return process.identify(int(props["pid"]), float(props["started"])) or process.find(folder(props))


def known_tokens(props: Mapping[str, Any]) -> list[str]:
    """Return the tokens that `props` tells of, the current one first."""
    return props.get("tokens") or str(props["secrets"][TOKENS]).split(",")


def bring_up(props: Mapping[str, Any], tokens: Sequence[str], forwarder: process.Forwarder | None) -> dict[str, Any]:
    """Make a healthy forwarder run as `props` declares, in place of `forwarder` if need be; return the outputs."""
    told = props["settings"] | props["secrets"] | {TOKENS: ",".join(tokens)}
    as_declared = forwarder and (forwarder.settings, forwarder.release) == (told, props["release"])
    if forwarder and not (as_declared and process.healthy(forwarder)):
        process.stop(forwarder)
        forwarder = None
    forwarder = forwarder or process.start(folder(props), told, props["release"])
    former = ACCEPTED if len(tokens) > 1 else "none"
    return {name: props[name] for name in DECLARED} | {"tokens": tokens, "former_token": former} | identity(forwarder)


def identity(forwarder: process.Forwarder) -> dict[str, Any]:
    """Return the outputs that tell this process from every other."""
    return {"pid": str(forwarder.process.pid), "started": str(forwarder.started)}


def folder(props: Mapping[str, Any]) -> Path:
    """Return the state folder as an absolute path; in the state it is relative to the project, which may be moved."""
    return PROJECT / str(props["state_dir"])


class LocalForwarder(dynamic.Resource, module="hosting", name="LocalForwarder"):
    """A forwarder on this machine, as a process that outlives `pulumi up`.

    Its settings are the environment variables of `docs/forwarder.md`; those given as `secrets` are secret in the state.
    `token` is the postback token; those before it are accepted, too, until none of them was used for a day.
    The state folder (relative to the project) holds outbox and log, and stays when the forwarder goes.
    """

    pid: pulumi.Output[str]
    started: pulumi.Output[str]

    def __init__(  # noqa: PLR0913 - each is a word of the declaration
        self,
        name: str,
        *,
        state_dir: str,
        token: pulumi.Input[str],
        host: str = "127.0.0.1",
        port: int,
        settings: Mapping[str, pulumi.Input[str]],
        secrets: Mapping[str, pulumi.Input[str]],
        files: Mapping[str, Path] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {
            "state_dir": state_dir,
            "settings": {
                **settings,
                **{name: str(path) for name, path in (files or {}).items()},
                "FORWARDER_HOST": host,
                "FORWARDER_PORT": str(port),
                "FORWARDER_STATE_DIR": str(PROJECT / state_dir),
            },
            "secrets": pulumi.Output.secret({**secrets, TOKENS: token}),
            "release": release.fingerprint(*(files or {}).values()),
            "running": True,
            "pid": None,
            "started": None,
        }
        secret = pulumi.ResourceOptions(additional_secret_outputs=["secrets", "tokens"])
        super().__init__(LocalForwarderProvider(), name, props, pulumi.ResourceOptions.merge(secret, opts))
        self.url = f"http://{host}:{port}"
        told = pulumi.Output.secret(token)
        # Said only of a forwarder that is healthy: CallFire is told an address that answers.
        self.endpoint: pulumi.Output[str] = pulumi.Output.all(self.pid, told).apply(
            lambda both: f"{self.url}/postback/{both[1]}"
        )
