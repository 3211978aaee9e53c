"""The verbs of `python -m forwarder`. All but `serve` work beside a running forwarder, and none takes its lock.

Lists mask numbers and never hold what a text said; `show` does. Every verb answers with `--json` for programs.
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forwarder.app import router, serve
from forwarder.check import check_everything, check_only_database
from forwarder.errors import ForwarderError, MailServerUnavailable
from forwarder.handover import hand_over
from forwarder.ledger import Entry, Ledger, Quarantined
from forwarder.letters import Letters
from forwarder.log import set_up_logging
from forwarder.mail import Letterhead
from forwarder.migrations import Version, version
from forwarder.moving import move
from forwarder.numbers import mask
from forwarder.outbox import Delivery, Outbox, connect
from forwarder.postback import InboundText
from forwarder.settings import (
    MIN_METADATA_DAYS,
    LogFormat,
    Place,
    Settings,
    load_outbox_place,
    load_place,
    load_settings,
)
from forwarder.smtp import Envelope
from forwarder.status_page import duration

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDE: Final = 240
"""Columns of a table that is not for a terminal."""

as_json = click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
all_of_them = click.option("--all", "everything", is_flag=True, help="All there are.")
to_recipient = click.option("--recipient", help="Only the delivery to this address.")
sure = click.option("--yes", is_flag=True, help="Don't ask.")
text_ids = click.argument("text_ids", metavar="[TEXT_ID]...", type=int, nargs=-1)
idents = click.argument("idents", metavar="[ID]...", type=int, nargs=-1)


class _Verbs(click.Group):
    """Commands whose errors are sentences, one a line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a ForwarderError ends it with its sentences and the exit status 1."""
        try:
            return super().invoke(ctx)
        except ForwarderError as error:
            for line in str(error).splitlines():
                click.echo(f"forwarder: {line}", err=True)
            ctx.exit(1)


@click.group(cls=_Verbs, invoke_without_command=True, context_settings={"max_content_width": 100})
@click.pass_context
def main(context: click.Context) -> None:
    """Turns CallFire's postbacks into emails and loses none. Without a command it serves.

    Settings are environment variables, FORWARDER_…, or stand in a file named by FORWARDER_CONFIG. To look after an
    outbox, FORWARDER_STATE_DIR or FORWARDER_DATABASE_URL is enough.
    """
    if context.invoked_subcommand is None:
        context.invoke(serve_command)


@main.command("serve")
@click.option("--json", "as_json", is_flag=True, help="Log in JSON, whatever FORWARDER_LOG_FORMAT says.")
def serve_command(as_json: bool = False) -> None:  # noqa: FBT001, FBT002 - click calls it by name
    """Take postbacks and send mails until told to stop."""
    settings = load_settings()
    set_up_logging(LogFormat.JSON if as_json else settings.log_format)
    serve(settings)


@main.command()
@click.option("--database", "only_database", is_flag=True, help="Look only at the database.")
@click.option(
    "--way-back",
    type=int,
    metavar="VERSION",
    help="The same; wrong too if a release that knows the tables up to this version could not go on.",
)
@as_json
def check(as_json: bool, only_database: bool, way_back: int | None) -> None:  # noqa: FBT001 - click calls it by name
    """Look at everything, and tell all that is wrong.

    The exit status is 0 if nothing is.
    """
    if only_database or way_back is not None:
        found = check_only_database(load_outbox_place, way_back=way_back)
    else:
        found = asyncio.run(check_everything(load_outbox_place))
    if as_json:
        _print_json({"ok": all(each.ok for each in found), "findings": [asdict(each) for each in found]})
    else:
        for each in found:
            _say(f"{'ok   ' if each.ok else 'WRONG'}  {each.what}{': ' + each.detail if each.detail else ''}")
            for problem in each.problems:
                _say(f"         {problem}")
    sys.exit(0 if all(each.ok for each in found) else 1)


@main.command("send-test")
@click.option("--from", "from_number", default="18185551212", show_default=True, help="Who would have written.")
@click.option("--to", "to_number", default="18186469991", show_default=True, help="The number that was written to.")
@click.option("--message", default="This is a test of callfire-mail.", show_default=True, help="What the text says.")
@click.option("--print", "only_print", is_flag=True, help="Show the mail instead of sending it.")
@as_json
def send_test(as_json: bool, only_print: bool, **text: str) -> None:  # noqa: FBT001 - click calls it by name
    """Send the mails of a text that never was.

    They go past the outbox, by the routes, and what the mail server says is told.
    """
    settings = load_settings()
    route, envelopes = _test_mails(settings, **text)
    outcomes = [(each, "not sent") for each in envelopes] if only_print else asyncio.run(_send(settings, envelopes))
    if as_json:
        _print_json({
            "route": route,
            "mails": [
                {"recipient": each.recipient, "answer": answer, "content": each.content.decode("utf-8", "replace")}
                for each, answer in outcomes
            ],
        })  # fmt: skip
    else:
        _say(f"route {route}" + ("" if envelopes else ": such a text is dropped"))
        for each, answer in outcomes:
            _say(f"{each.recipient}: {answer}")
        if only_print and envelopes:
            _say("\n" + envelopes[0].content.decode("utf-8", "replace").replace("\r\n", "\n"))
    sys.exit(0 if only_print or all(answer.startswith("2") for _, answer in outcomes) else 1)


def _test_mails(settings: Settings, from_number: str, to_number: str, message: str) -> tuple[str, list[Envelope]]:
    """The route of a text, and its mails; its id is one that CallFire never gives."""
    now = time.time()
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    text = InboundText(int(now * 1000) + 2**60, "0", from_number, to_number, created, message, b"")
    routes = settings.all_routes
    route = routes.pick(text)
    letters = Letters(Letterhead(settings.mail_from, b"send-test"), routes, settings.contacts)
    return route.name, [
        letters.write(Delivery(text, route.name, recipient, 0, now, now)) for recipient in route.recipients.everyone
    ]


async def _send(settings: Settings, envelopes: list[Envelope]) -> list[tuple[Envelope, str]]:
    outcomes = []
    for envelope in envelopes:
        try:
            answer = str(await hand_over(settings.mail_server, settings.mail_tls, envelope))
        except MailServerUnavailable as error:
            answer = str(error)
        outcomes.append((envelope, answer))
    return outcomes


@main.command()
@as_json
def status(as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Tell what waits, what needs you, what happened lately."""
    place = load_place()
    ledger = _ledger(place)
    totals, now = ledger.totals(), time.time()
    hour: Counter[str] = sum(map(Counter, ledger.flow(now - 3600, 3600)), start=Counter())
    running = _ask(place)
    oldest = now - totals.oldest_at if totals.oldest_at else None
    if as_json:
        counts = {name: value for name, value in asdict(totals).items() if name != "oldest_at"}
        _print_json({
            **counts, "oldest_delivery_age_seconds": oldest, "last_hour": dict(sorted(hour.items())), "running": running
        })  # fmt: skip
        return
    waiting = f"{totals.waiting}" + (f", the oldest for {duration(oldest)}" if oldest is not None else "")
    waiting += f"; {totals.deferred} deferred" if totals.deferred else ""
    _say(f"forwarder    {_running(place, running)}")
    _say(f"mail server  {running['mail_server'] if running else 'not known'}")
    _say(f"waiting      {waiting}")
    _say(f"dead         {totals.dead}{'   (see: dead list)' if totals.dead else ''}")
    _say(f"quarantine   {totals.quarantined}{'   (see: quarantine list)' if totals.quarantined else ''}")
    _say(f"last hour    {', '.join(f'{hour[kind]} {kind}' for kind in _KINDS if hour[kind]) or 'nothing'}")


_NO_DELIVERY: Final = "Nothing is dead."
_NO_POSTBACK: Final = "The quarantine is empty."
_KINDS: Final = ("received", "duplicate", "ignored", "quarantined", "sent", "retried", "dead", "replayed", "dropped")


def _ask(place: Place) -> dict[str, Any] | None:
    """What the forwarder of this machine says of itself; None if none answers."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{place.admin_port}/readyz", timeout=5.0, trust_env=False)
        found = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return found if isinstance(found, dict) and "mail_server" in found else None


def _running(place: Place, running: dict[str, Any] | None) -> str:
    page = f"http://127.0.0.1:{place.admin_port}/"
    if running is None:
        return f"none answers at {page} (FORWARDER_ADMIN_PORT)"
    return f"runs; its page is {page}" if running["ready"] else f"runs, but: {running['database']}"


@main.group()
def dead() -> None:
    """Deliveries that were given up: replay or drop them."""


@dead.command("list")
@as_json
def dead_list(as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """List them, the last one first."""
    entries = _ledger(load_place()).dead()
    if as_json:
        _print_json({"dead": [_shown(entry) for entry in entries]})
        return
    _table(
        ("text", "from", "recipient", "route", "died", "tries", "reason"),
        [
            (
                str(entry.text_id),
                mask(entry.from_number),
                entry.recipient,
                entry.route,
                _ago(entry.changed_at),
                str(entry.attempts),
                entry.answer or "",
            )
            for entry in entries
        ],
        _NO_DELIVERY,
    )


@dead.command("show")
@click.argument("text_id", type=int)
@as_json
def dead_show(text_id: int, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Show a text of which a delivery is dead, with what it says."""
    found = _ledger(load_place()).dead_text(text_id)
    first = found.entries[0]
    if as_json:
        whole = {"from_number": first.from_number, "to_number": first.to_number}
        _print_json({
            "text_id": text_id, **whole, "created": found.created, "subscription_id": found.subscription_id,
            "message": found.message, "deliveries": [_shown(entry) | whole for entry in found.entries],
        })  # fmt: skip
        return
    _say(f"text {text_id}, through subscription {found.subscription_id}")
    _say(f"From: {first.from_number}\n  To: {first.to_number}\nTime: {found.created}\nText: {found.message}\n")
    for entry in found.entries:
        tries = _many(entry.attempts, "time", "times")
        _say(f"{entry.recipient}: died {_ago(entry.changed_at)}, tried {tries}\n  {entry.answer}")


@dead.command("replay")
@text_ids
@all_of_them
@to_recipient
@as_json
def dead_replay(text_ids: tuple[int, ...], everything: bool, recipient: str | None, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Queue them again, as new.

    A running forwarder sends them within a second or two.
    """
    count = _ledger(load_place()).replay_dead(_which(text_ids, everything), recipient)
    _done(as_json, {"replayed": count}, _deliveries(count, "queued again", recipient))


@dead.command("drop")
@text_ids
@all_of_them
@to_recipient
@sure
@as_json
def dead_drop(text_ids: tuple[int, ...], everything: bool, recipient: str | None, yes: bool, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Give them up for good: nobody gets these mails."""
    ledger, which = _ledger(load_place()), _which(text_ids, everything)
    if which is None and not yes and (dead := ledger.totals().dead):
        click.confirm(f"Give up all {dead} dead deliveries for good?", abort=True, err=True)
    count = ledger.drop_dead(which, recipient)
    _done(as_json, {"dropped": count}, _deliveries(count, "dropped", recipient))


@main.group()
def quarantine() -> None:
    """Postbacks that nobody could read: replay or drop them."""


@quarantine.command("list")
@as_json
def quarantine_list(as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """List them, the last one first."""
    found = _ledger(load_place()).quarantined()
    if as_json:
        _print_json({"quarantine": [_without_body(each) for each in found]})
        return
    _table(
        ("id", "came", "bytes", "reason"),
        [(str(each.id), _ago(each.received_at), str(each.size), each.reason) for each in found],
        _NO_POSTBACK,
    )


@quarantine.command("show")
@click.argument("ident", metavar="ID", type=int)
@as_json
def quarantine_show(ident: int, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Show one with its whole body."""
    found = _ledger(load_place()).quarantined_body(ident)
    body = found.body.decode("utf-8", "replace")
    if as_json:
        _print_json(_without_body(found) | {"body": body})
        return
    _say(f"postback {found.id}, came {_ago(found.received_at)}, {found.size} bytes, {found.content_type or 'no type'}")
    _say(f"{found.reason}\n\n{body}")


@quarantine.command("replay")
@idents
@all_of_them
@as_json
def quarantine_replay(idents: tuple[int, ...], everything: bool, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Read them again with this release.

    What can be read is queued, what cannot be stays. The routes decide, so this needs all settings.
    """
    settings = load_settings()
    found = _ledger(settings).replay_quarantined(_which(idents, everything), router(settings.all_routes))
    words = (
        f"{_many(found.texts, 'text', 'texts')} found; {_many(found.left, 'postback', 'postbacks')} still unreadable"
    )
    _done(as_json, {"texts": found.texts, "still_unreadable": found.left}, words)
    sys.exit(1 if found.left else 0)


@quarantine.command("drop")
@idents
@all_of_them
@sure
@as_json
def quarantine_drop(idents: tuple[int, ...], everything: bool, yes: bool, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Forget them."""
    ledger, which = _ledger(load_place()), _which(idents, everything)
    if which is None and not yes and (held := ledger.totals().quarantined):
        click.confirm(f"Forget all {held} postbacks in quarantine?", abort=True, err=True)
    count = ledger.drop_quarantined(which)
    _done(as_json, {"dropped": count}, f"{_many(count, 'postback', 'postbacks')} dropped" if count else _NO_POSTBACK)


@main.command()
@click.option("--text-days", type=click.FloatRange(0), help="Instead of FORWARDER_KEEP_TEXT_DAYS.")
@click.option(
    "--metadata-days", type=click.FloatRange(MIN_METADATA_DAYS), help="Instead of FORWARDER_KEEP_METADATA_DAYS."
)
@as_json
def purge(text_days: float | None, metadata_days: float | None, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Forget now what is old.

    A running forwarder does so every hour. What is not sent stays, and so do the dead and the quarantine.
    """
    place = load_place()
    text_days = place.keep_text_days if text_days is None else text_days
    metadata_days = place.keep_metadata_days if metadata_days is None else metadata_days
    if metadata_days < text_days:
        raise click.UsageError(
            f"A message cannot outlive its text: {metadata_days:g} days for metadata are less than "
            f"{text_days:g} for messages. Give both, --text-days and --metadata-days."
        )
    purged = _ledger(place).purge(text_days, metadata_days)
    words = (
        f"forgot {_many(purged.messages, 'message', 'messages')} and {_many(purged.texts, 'text', 'texts')} altogether"
    )
    _done(as_json, asdict(purged), words)


@main.command("move")
@click.argument("source", metavar="FROM")
@as_json
def move_command(source: str, as_json: bool) -> None:  # noqa: FBT001 - click calls it by name
    """Copy a stopped forwarder's outbox into an empty database.

    FROM is its SQLite file, or its postgresql:// URL; it stays as it is. The settings name the database to move to.
    """
    if "://" not in source and not Path(source).is_file():
        raise ForwarderError(f"there is no outbox at {source}: name the file outbox.db in the old state folder")
    url = source if "://" in source else f"sqlite:///{Path(source).resolve()}"
    with closing(Outbox(connect(url))) as old, closing(Outbox(connect(load_place().outbox_url))) as new:
        moved = move(old, new)
    words = f"moved {_many(moved['text'], 'text', 'texts')} and {_many(moved['delivery'], 'delivery', 'deliveries')}"
    _done(as_json, dict(moved), words)


def _ledger(place: Place) -> Ledger:
    file = place.sqlite_file
    if file is not None and not file.exists():
        raise ForwarderError(
            f"there is no outbox at {file}: a forwarder makes it when it first starts; "
            "set FORWARDER_STATE_DIR or FORWARDER_DATABASE_URL to the one you mean"
        )
    outbox = Outbox(connect(place.outbox_url))
    click.get_current_context().call_on_close(outbox.close)
    with outbox.reading() as connection:
        found = version(connection)
    if found is Version.NONE:
        raise ForwarderError("there is no outbox in this database yet: a forwarder makes it when it first starts")
    if found not in {Version.CURRENT, Version.NEWER}:
        raise ForwarderError(
            f"the outbox is {'an earlier' if found is Version.EARLIER else 'a newer'} release's: use that release's "
            "command line, or start this release's forwarder, which brings an earlier outbox to its own version"
        )
    return Ledger(outbox)


def _which(named: Sequence[int], everything: bool) -> Sequence[int] | None:  # noqa: FBT001 - the two ways to say which
    if everything and named:
        raise click.UsageError("Name some or say --all, not both.")
    if not everything and not named:
        raise click.UsageError("Name at least one, or say --all.")
    return None if everything else named


def _shown(entry: Entry) -> dict[str, Any]:
    return asdict(entry) | {"from_number": mask(entry.from_number), "to_number": mask(entry.to_number)}


def _without_body(found: Quarantined) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name != "body"}


def _ago(seconds: float) -> str:
    return f"{duration(time.time() - seconds)} ago"


def _many(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _deliveries(count: int, done: str, recipient: str | None) -> str:
    if not count:
        return f"Nothing to {recipient} is dead." if recipient else _NO_DELIVERY
    return f"{_many(count, 'delivery', 'deliveries')} {done}"


def _done(as_json: bool, document: dict[str, Any], words: str) -> None:  # noqa: FBT001 - passed on
    if as_json:
        _print_json(document)
    else:
        _say(words)


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _say(words: str) -> None:
    """Print; what others wrote cannot steer the terminal."""
    click.echo(_CONTROLS.sub("\ufffd", words))


def _table(heads: Iterable[str], rows: Sequence[Iterable[str]], nothing: str) -> None:
    if not rows:
        _say(nothing)
        return
    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(_CONTROLS.sub("\ufffd", cell), overflow="fold") for cell in row))
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
