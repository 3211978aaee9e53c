"""`python -m stacks`: what can be asked of a stack without changing anything."""

import asyncio
import json
from dataclasses import asdict

import click

from provider.errors import ProviderError
from stacks.check import check, read_stack


@click.group()
def main() -> None:
    """Stacks: one file per environment."""


@main.command("check")
@click.option("--stack", help="The stack; the selected one if left out.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def check_command(stack: str | None, *, as_json: bool) -> None:
    """Prove a stack's settings: CallFire, mail server, servers, DNS name, ports, certificate. Nothing is changed.

    The exit status is 0 if nothing is wrong.
    """
    try:
        kept = read_stack(stack)
    except ProviderError as error:
        raise click.ClickException(str(error)) from None
    findings = asyncio.run(check(kept))
    wrong = any(finding.wrong for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            click.echo(finding)
    if wrong:
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main(prog_name="python -m stacks")
