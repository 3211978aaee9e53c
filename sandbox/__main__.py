"""The command line: `python -m sandbox` runs a sandbox in the foreground; its commands make things happen in one."""

import json
import signal
import time
from typing import Any

import click
import httpcore

from sandbox.errors import SandboxError
from sandbox.postbacks import PostbackState
from sandbox.server import HTTP_PORT, SMTP_PORT, Sandbox
from sandbox.soap import FaultCode, Operation
from sandbox.trouble import Trouble

TOLD = 100
"""Postbacks of one event, the last ones, of which a command tells what went wrong."""
PATIENCE = 10.0
"""Seconds that a command waits for what becomes of its event's postbacks."""

_STOP = {signal.SIGINT, signal.SIGTERM}

at_url = click.option(
    "--url",
    default=f"http://127.0.0.1:{HTTP_PORT}",
    show_default=True,
    envvar="SANDBOX_URL",
    help="The sandbox; $SANDBOX_URL is as good.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the whole answer as one line of JSON.")
in_account = click.option("--account", help="Login of the account; the default account if left out.")


@click.group(invoke_without_command=True)
@click.option("--port", default=HTTP_PORT, show_default=True, help="Port of CallFire's API and of the page; 0 is any.")
@click.option("--smtp-port", default=SMTP_PORT, show_default=True, help="Port of the mailbox; 0 is any.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Nothing here is protected!")
@click.option("--seed", help='What there is at the start and after a reset: a JSON file, or "demo".')
@click.option("--state", "state_file", help="Keep accounts and subscriptions in this file over a restart.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when ready.")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Play CallFire and a mailbox on this machine, until Ctrl-C.

    With a command: make something happen in a sandbox that runs.
    """
    if context.invoked_subcommand is None:
        _run(**options)


@main.command()
@click.option("--from", "from_", default="18185551212", show_default=True, help="Number of the sender.")
@click.option("--to", default="18186469991", show_default=True, help="Number of the receiver.")
@click.option("--id", "ident", help="Id of the text; the next free one if left out.")
@click.option("--outbound", is_flag=True, help="The account sent it.")
@in_account
@at_url
@as_json
@click.argument("message")
def text(message: str, from_: str, to: str, ident: str | None, **options: Any) -> None:
    """A text is received, or with --outbound sent."""
    document = {"from": from_, "to": to, "id": ident, "message": message, "inbound": not options["outbound"]}
    _happen("texts", document, **options)


@main.command()
@click.option("--from", "from_", default="18185551212", show_default=True, help="Number of the caller.")
@click.option("--to", default="18186469991", show_default=True, help="Number that was called.")
@click.option("--duration", default=3, show_default=True, help="Seconds.")
@click.option("--result", default="LA", show_default=True, help="How it ended, in CallFire's words.")
@click.option("--outbound", is_flag=True, help="The account made it.")
@click.option("--id", "ident", help="Id of the call; the next free one if left out.")
@in_account
@at_url
@as_json
def call(from_: str, to: str, ident: str | None, **options: Any) -> None:
    """A phone call has ended."""
    how = {name: options.pop(name) for name in ("duration", "result")}
    document = {"from": from_, "to": to, "id": ident, "inbound": not options["outbound"], **how}
    _happen("calls", document, **options)


@main.command()
@click.option("--name", default="Sandbox campaign", show_default=True, help="Its name.")
@click.option("--id", "ident", help="Its id; the next free one if left out.")
@in_account
@at_url
@as_json
@click.argument("change", type=click.Choice(["started", "stopped", "finished"]), default="finished")
def campaign(change: str, name: str, ident: str | None, **options: Any) -> None:
    """A text campaign has started, stopped or (if left out) finished."""
    _happen("campaigns", {"change": change.upper(), "name": name, "id": ident}, **options)


@main.command()
@click.argument("kind", type=click.Choice([str(kind) for kind in Trouble]), required=False, metavar="KIND")
@click.option(
    "--operation", type=click.Choice([str(kind) for kind in Operation]), help="Strike this SOAP operation only."
)
@click.option("--times", type=int, help="How often it strikes; once if left out.")
@click.option("--probability", type=float, help="How likely it strikes each one it could, 0 to 1.")
@click.option("--skip", default=0, show_default=True, help="How many it lets pass first.")
@click.option("--seconds", type=float, help="How long, for kinds that take time.")
@click.option("--fault", type=click.Choice([str(kind) for kind in FaultCode]), help="Code of a soap-fault.")
@click.option("--seed", default=0, show_default=True, help="Of the probability's random numbers.")
@click.option("--clear", is_flag=True, help="Take all trouble back.")
@at_url
def trouble(kind: str | None, url: str, *, clear: bool, **rule: Any) -> None:
    """Something goes wrong from now on: KIND is where and what, such as soap-503, postback-twice or mail-4xx."""
    if clear:
        _ask(url, "DELETE", "trouble")
        click.echo("Nothing goes wrong any more.")
        return
    if kind is None:
        raise click.UsageError("name what is to go wrong, or --clear")
    made = _ask(url, "POST", "trouble", {"kind": kind, **rule})
    often = (
        f"{made['probability']:.0%} of them".replace("%", " %")
        if made["times"] is None
        else f"the next {made['times']}"
    )
    click.echo(f"{kind}: {'the next one' if made['times'] == 1 else often}")


@main.command()
@at_url
def reset(url: str) -> None:
    """Back to the beginning: no subscriptions, no mails, nothing logged."""
    _ask(url, "POST", "reset")
    click.echo("The sandbox is as it was at its start.")


def _run(*, as_json: bool, **options: Any) -> None:
    # Blocked before any thread starts, so that all threads leave them to sigwait below.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        sandbox = Sandbox(**options).start()
    except SandboxError as error:
        raise click.ClickException(str(error)) from error
    about = sandbox.about()
    if as_json:
        click.echo(json.dumps({key: about[key] for key in ("url", "wsdl", "login", "password", "smtp_port")}))
    else:
        click.echo(f"CallFire sandbox   {sandbox.url}   (open it in a browser)")
        click.echo(f"  WSDL             {sandbox.wsdl}")
        click.echo(f"  login, password  {sandbox.login}, {sandbox.password}")
        click.echo(f"  mailbox (SMTP)   {options['host']}:{sandbox.smtp_port}")
        click.echo("Stop it with Ctrl-C.")
    signal.sigwait(_STOP)
    try:
        sandbox.stop()
    except SandboxError as error:
        raise click.ClickException(str(error)) from error


def _happen(what: str, document: dict[str, Any], *, url: str, as_json: bool, account: str | None, **_: Any) -> None:
    answer = _ask(url, "POST", what, {**document, "account": account})
    if as_json:
        click.echo(json.dumps(answer))
        return
    click.echo(f"{answer['trigger']} {answer['id']}: {_outcome(url, answer['postbacks'])}")


def _outcome(url: str, idents: list[int]) -> str:
    """What became of an event's postbacks, as far as it shows within the patience."""
    if not idents:
        return "no subscription wanted it"
    ends = time.monotonic() + PATIENCE
    postbacks = []
    for ident in idents[-TOLD:]:
        left = max(0.0, ends - time.monotonic())
        postbacks.append(_ask(url, "GET", f"postbacks/{ident}?timeout={left:.3f}"))
    wrong = [f"\n  {postback['endpoint']} {what}" for postback in postbacks if (what := _went_wrong(postback))]
    posted = f"posted to {len(idents)} subscription{'s' * (len(idents) != 1)}"
    return f"{posted}, {len(wrong)} went wrong:{''.join(wrong)}" if wrong else posted


def _went_wrong(postback: dict[str, Any]) -> str | None:
    match postback["state"], postback["answer"]["status"]:
        case PostbackState.FAILED, _:
            return f"did not answer: {postback['error']}"
        case PostbackState.LOST, _:
            return f"was told nothing: {postback['trouble']}"
        case PostbackState.ANSWERED, int(status) if status // 100 != 2:  # noqa: PLR2004 - HTTP's success
            return f"answered {status}"
        case PostbackState.ANSWERED, _:
            return None
        case _:
            return f"has not answered within {PATIENCE:g} s"


def _ask(url: str, method: str, what: str, document: dict[str, Any] | None = None) -> Any:
    address = f"{url.rstrip('/')}/control/{what}"
    try:
        answer = httpcore.request(
            method, address, headers={"Content-Type": "application/json"}, content=json.dumps(document).encode()
        )
        found = json.loads(answer.content)
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ValueError) as error:
        raise click.ClickException(
            f"No sandbox answers at {url}: start one with `python -m sandbox`, or name another with --url."
        ) from error
    if not answer.status // 100 == 2:  # noqa: PLR2004 - HTTP's success
        raise click.ClickException(found["error"])
    return found


if __name__ == "__main__":
    main()
