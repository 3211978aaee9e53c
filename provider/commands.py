"""The command line: what is on the account, how to bring it under Pulumi, how to clean it up.

Endpoints are shown without their tokens unless asked. What is for a machine goes to standard output, the rest to
standard error.
"""

import fnmatch
import json
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from provider import canonical, imports
from provider.account import account_of
from provider.errors import ProviderError
from provider.redaction import describe_endpoint, endpoint_secrets, redact
from provider.remote import RemoteSubscription
from provider.stacks import Holder, Stacks, StacksUnknown

AT_ONCE = 4
"""Deletions under way at the same time."""

WIDTH = 1000
"""Columns of a table that no terminal bounds, so that each subscription is one line for `grep`."""

F = TypeVar("F", bound=Callable[..., Any])


class _Failed(click.ClickException):
    """One line on standard error, exit status 1."""


def _telling_errors(command: F) -> F:
    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ProviderError as error:
            raise _Failed(redact(str(error), os.environ.get("CALLFIRE_PASSWORD", ""))) from None

    return run  # type: ignore[return-value]  # wraps keeps the signature


_stack_option = click.option(
    "--stack", help="Reach CallFire with the settings of this stack; the environment's CALLFIRE_* win."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_secrets_option = click.option("--show-secrets", is_flag=True, help="Show endpoints whole, with their tokens.")


@click.group()
def main() -> None:
    """CallFire subscriptions: see them, import them into a stack, clean them up.

    The login, password and URL come from CALLFIRE_LOGIN, CALLFIRE_PASSWORD and CALLFIRE_URL, or from the stack.
    """


@main.command("list")
@_stack_option
@_json_option
@_secrets_option
@_telling_errors
def list_(stack: str | None, *, as_json: bool, show_secrets: bool) -> None:
    """Show the account's subscriptions and which local stack each belongs to."""
    view = _View(stack)
    if as_json:
        listed = [view.as_json(s, show_secrets=show_secrets) for s in view.subscriptions]
        _print_json({"subscriptions": listed, "stacks_problem": view.stacks_problem})
        return
    _print_table(view, view.subscriptions, show_secrets=show_secrets)
    held = sum(s.id in view.holders for s in view.subscriptions)
    total = len(view.subscriptions)
    counted = f"{total} subscription{'s' * (total != 1)}"
    if view.stacks_problem is None:
        click.echo(f"{counted}, {held} in local stacks, {total - held} nobody's.", err=True)
    else:
        click.echo(f"{counted}. Whose they are is not known: {view.stacks_problem}", err=True)


@main.command("import")
@click.option(
    "--match",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only these: an id, or a shell pattern for the endpoint, the trigger or a number. May be repeated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("imported"),
    show_default=True,
    help="The folder to write to.",
)
@_stack_option
@_json_option
@_telling_errors
def import_(patterns: tuple[str, ...], output: Path, stack: str | None, *, as_json: bool) -> None:
    """Write the file for `pulumi import`, and the Python code to paste.

    Subscriptions that a local stack holds already are left out, and what was imported before stays as it is.
    """
    view = _View(stack)
    wanted = [s for s in view.subscriptions if not patterns or any(_matches(s, pattern) for pattern in patterns)]
    free = [s for s in wanted if s.id not in view.holders]
    if not free:
        raise _Failed(
            f"Nothing to import: {len(view.subscriptions)} subscriptions on the account, {len(wanted)} match, "
            f"{len(wanted) - len(free)} of them are in a stack already (see `python -m provider list`)."
        )
    endpoints = view.imported_endpoints()
    named = imports.name_resources(free, {holder.resource for holder in view.holders.values()}, endpoints)
    _write_import(output, named, endpoints)
    held = [s.id for s in wanted if s.id in view.holders]
    report = {
        "imported": [{"name": name, "id": found.id} for name, found in named.items()],
        "already_in_a_stack": held,
        "file": str(output / "import.json"),
        "endpoints": str(output / "endpoints.json"),
        "code": str(output / "subscriptions.py"),
        "stacks_problem": view.stacks_problem,
    }
    if as_json:
        _print_json(report)
        return
    option = f" --stack {stack}" if stack else ""
    click.echo(
        f"""Wrote {len(named)} subscriptions to {output} (the folder holds secrets and is ignored by git). Now:
  1. pulumi config set --secret {imports.CONFIG_KEY}{option} < '{output}/endpoints.json'
  2. pulumi import --file '{output}/import.json' --generate-code=false --protect=false{option}
  3. paste {output}/subscriptions.py into the program
  4. pulumi preview{option}      (shows no change)
  5. rm -r '{output}'"""
    )
    if held:
        click.echo(f"Left out, because a stack holds them: {', '.join(held)}.", err=True)
    if view.stacks_problem is not None:
        click.echo(f"Whether a stack holds them already is not known: {view.stacks_problem}", err=True)


@main.command("sweep")
@click.argument("ids", nargs=-1)
@click.option("--endpoint", metavar="PREFIX", help="Those whose endpoint begins so, host and all.")
@click.option(
    "--unowned", is_flag=True, help="Those in no local stack whose endpoint is on a server that a stack uses."
)
@click.option("--foreign", is_flag=True, help="With --unowned: those of other servers, so other applications, too.")
@click.option("--in-stacks", is_flag=True, help="Delete even what a local stack holds or may hold.")
@click.option("--yes", is_flag=True, help="Delete. Without it, only show what would be deleted.")
@_stack_option
@_json_option
@_secrets_option
@_telling_errors
def sweep(  # noqa: PLR0913 - one per option
    ids: tuple[str, ...],
    endpoint: str | None,
    stack: str | None,
    *,
    unowned: bool,
    foreign: bool,
    in_stacks: bool,
    yes: bool,
    as_json: bool,
    show_secrets: bool,
) -> None:
    """Delete subscriptions: by id, by endpoint, or those in no local stack."""
    if not ids and not endpoint and not unowned:
        raise click.UsageError("Say which: ids, --endpoint PREFIX or --unowned.")
    if endpoint is not None and "://" not in endpoint and "@" not in endpoint:
        raise click.UsageError("--endpoint must begin with http:// or https://, or be an email address.")
    if foreign and not unowned:
        raise click.UsageError("--foreign goes with --unowned.")
    wanted_ids = {_parse_id(text) for text in ids}
    view = _View(stack)
    if view.stacks_problem is not None and (unowned or (yes and not in_stacks)):
        advice = "" if unowned else " Or say --in-stacks, to delete what a stack may hold."
        raise _Failed(f"Whose subscriptions these are is not known, so none is deleted. {view.stacks_problem}{advice}")
    chosen = [
        s
        for s in view.subscriptions
        if s.id in wanted_ids
        or (endpoint is not None and s.properties["endpoint"].startswith(endpoint))
        or (unowned and s.id not in view.holders and (foreign or view.on_our_servers(s)))
    ]
    kept = [s for s in chosen if s.id in view.holders and not in_stacks]
    chosen = [s for s in chosen if in_stacks or s.id not in view.holders]
    outcome = _Outcome(missing=sorted(wanted_ids - {s.id for s in view.subscriptions}, key=int))
    if yes:
        _delete(view, chosen, outcome, quiet=as_json)
    _report_sweep(view, chosen, kept, outcome, yes=yes, as_json=as_json, show_secrets=show_secrets)
    if outcome.failed or outcome.interrupted:
        sys.exit(1)


class _View:
    """The account and the stacks, read once."""

    def __init__(self, stack: str | None) -> None:
        self._stack, self._stacks = stack, Stacks()
        settings = self._stacks.settings(stack)
        self.account = account_of(settings)
        self._password = settings.password
        try:
            self.subscriptions = sorted(self.account.all(), key=lambda s: int(s.id))
        except ProviderError as error:
            raise type(error)(self.redact(error.said), error.what_to_do) from None
        self.holders: dict[str, Holder] = {}
        self.stacks_problem: str | None = None
        try:
            self.holders = self._stacks.holders(settings)
        except StacksUnknown as error:
            self.stacks_problem = str(error)
        self._ours = {_server(s) for s in self.subscriptions if s.id in self.holders}

    def redact(self, text: str, *subscriptions: RemoteSubscription) -> str:
        """Return `text` without the password and without what is secret in these subscriptions."""
        endpoints = (subscription.properties["endpoint"] for subscription in subscriptions)
        return redact(text, self._password.value, *(s for endpoint in endpoints for s in endpoint_secrets(endpoint)))

    def imported_endpoints(self) -> dict[str, str]:
        """What the stack's secret holds from former imports, by the name of the resource."""
        try:
            return self._stacks.secret_object(self._stack, imports.CONFIG_KEY)
        except ProviderError as error:
            advice = "The file to set it from would lose what it holds, so nothing is written."
            raise _Failed(f"The stack's {imports.CONFIG_KEY} cannot be read. {advice} {error}") from None

    def on_our_servers(self, subscription: RemoteSubscription) -> bool:
        """Whether its endpoint is on a server that a subscription of a local stack posts to."""
        return _server(subscription) in self._ours

    def as_json(self, subscription: RemoteSubscription, *, show_secrets: bool) -> dict[str, Any]:
        """All that is known of it."""
        holder = self.holders.get(subscription.id)
        return {
            "id": subscription.id,
            **subscription.properties,
            "endpoint": _shown(subscription, show_secrets=show_secrets),
            "stack": holder.stack if holder else None,
            "resource": holder.resource if holder else None,
        }


@dataclass(slots=True)
class _Outcome:
    missing: list[str]
    deleted: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def _delete(view: _View, chosen: list[RemoteSubscription], outcome: _Outcome, *, quiet: bool) -> None:
    """Delete them, a few at a time; Ctrl-C lets those end that are under way, and begins no other."""

    def delete(subscription: RemoteSubscription) -> tuple[str, str | None]:
        try:
            view.account.delete(subscription.id, None)
        except ProviderError as error:
            return subscription.id, view.redact(str(error), subscription)
        return subscription.id, None

    under_way: list[Future[tuple[str, str | None]]] = []
    with (
        Progress(console=Console(stderr=True), disable=quiet or not sys.stderr.isatty()) as progress,
        ThreadPoolExecutor(AT_ONCE) as threads,
    ):
        try:
            under_way.extend(threads.submit(delete, subscription) for subscription in chosen)
            for future in progress.track(under_way, description="Deleting"):
                future.exception()
        except KeyboardInterrupt:
            outcome.interrupted = True
            threads.shutdown(cancel_futures=True)
    for id_, error in (future.result() for future in under_way if not future.cancelled()):
        if error is None:
            outcome.deleted.append(id_)
        else:
            outcome.failed[id_] = error


def _report_sweep(  # noqa: PLR0913 - what there is to tell
    view: _View,
    chosen: list[RemoteSubscription],
    kept: list[RemoteSubscription],
    outcome: _Outcome,
    *,
    yes: bool,
    as_json: bool,
    show_secrets: bool,
) -> None:
    if as_json:
        _print_json(
            {
                "dry_run": not yes,
                "chosen": [view.as_json(s, show_secrets=show_secrets) for s in chosen],
                "deleted": outcome.deleted,
                "failed": outcome.failed,
                "interrupted": outcome.interrupted,
                "missing": outcome.missing,
                "kept_in_stacks": [s.id for s in kept],
                "stacks_problem": view.stacks_problem,
            }
        )
        return
    if not yes and chosen:
        _print_table(view, chosen, show_secrets=show_secrets)
    if view.stacks_problem is not None:
        click.echo(f"Whether a stack holds them is not known: {view.stacks_problem}", err=True)
    for subscription in kept:
        holder = view.holders[subscription.id]
        click.echo(f"{subscription.id} stays: {holder} holds it (`pulumi destroy`, or --in-stacks).", err=True)
    for id_ in outcome.missing:
        click.echo(f"{id_} is not on the account.", err=True)
    for id_, error in outcome.failed.items():
        click.echo(f"{id_} could not be deleted: {error}", err=True)
    if yes:
        left = len(chosen) - len(outcome.deleted) - len(outcome.failed)
        told = f"{len(outcome.deleted)} deleted, {len(outcome.failed)} failed, {len(kept)} kept"
        click.echo(f"{told}, {left} not begun because of Ctrl-C." if outcome.interrupted else f"{told}.")
    elif chosen:
        click.echo(f"{len(chosen)} would be deleted; say --yes to delete {'it' if len(chosen) == 1 else 'them'}.")
    else:
        click.echo("Nothing would be deleted.")


def _print_table(view: _View, subscriptions: Iterable[RemoteSubscription], *, show_secrets: bool) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(_table(view, subscriptions, show_secrets=show_secrets))


def _table(view: _View, subscriptions: Iterable[RemoteSubscription], *, show_secrets: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("ID", "STACK: RESOURCE", "EVENT", "FORMAT", "ON", "FILTER", "ENDPOINT"):
        table.add_column(heading, overflow="fold")
    for subscription in subscriptions:
        properties = subscription.properties
        table.add_row(
            subscription.id,
            str(view.holders.get(subscription.id, "-")),
            properties.get("trigger_event") or "every event",
            properties["notification_format"],
            "yes" if properties["enabled"] else "no",
            " ".join(f"{name}={value}" for name, value in properties.get("filter", {}).items()),
            _shown(subscription, show_secrets=show_secrets),
        )
    return table


def _shown(subscription: RemoteSubscription, *, show_secrets: bool) -> str:
    endpoint: str = subscription.properties["endpoint"]
    return endpoint if show_secrets else describe_endpoint(endpoint)


def _server(subscription: RemoteSubscription) -> str:
    endpoint: str = subscription.properties["endpoint"]
    return endpoint if canonical.is_email(endpoint) else describe_endpoint(endpoint)


def _matches(subscription: RemoteSubscription, pattern: str) -> bool:
    properties = subscription.properties
    filter_ = properties.get("filter", {})
    candidates = (
        subscription.id,
        properties["endpoint"],
        properties.get("trigger_event", ""),
        filter_.get("from_number", ""),
        filter_.get("to_number", ""),
    )
    return any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates)


def _parse_id(text: str) -> str:
    try:
        return canonical.record_id(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is not the id of a subscription; ids are whole numbers above 0.") from None


def _write_import(folder: Path, named: dict[str, RemoteSubscription], endpoints: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    _write_private(folder / "import.json", json.dumps(imports.import_file(named), indent=1))
    _write_private(folder / "endpoints.json", json.dumps(endpoints | imports.endpoints_file(named)))
    (folder / "subscriptions.py").write_text(imports.python_code(named), encoding="utf-8")


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2))
