"""`python -m stacks`: what can be asked of a stack without changing anything."""

import asyncio

import click

from stacks.check import NoConfigError, check, read_config


@click.group()
def main() -> None:
    """Stacks: one file per environment."""


@main.command("check")
@click.option("--stack", help="The stack; the selected one if left out.")
def check_command(stack: str | None) -> None:
    """Prove a stack's settings: CallFire, mail server, servers, DNS name, ports, certificate. Nothing is changed.

    The exit status is 0 if nothing is wrong.
    """
    try:
        name, config, secrets = read_config(stack)
    except NoConfigError as error:
        raise click.ClickException(str(error)) from None
    findings = asyncio.run(check(name, config, secrets))
    for finding in findings:
        click.echo(finding)
    if any(finding.wrong for finding in findings):
        raise click.exceptions.Exit(1)


if __name__ == "__main__":
    main(prog_name="python -m stacks")
