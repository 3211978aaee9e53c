"""`python -m forwarder`: everything an operator does to a forwarder."""

import sys

import click

from forwarder.app import serve
from forwarder.errors import ForwarderError
from forwarder.log import set_up_logging
from forwarder.settings import load_settings


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Turns CallFire's postbacks into emails and loses none. Without a command it serves."""
    if context.invoked_subcommand is None:
        context.invoke(serve_command)


@main.command("serve")
def serve_command() -> None:
    """Take postbacks and send mails until told to stop."""
    set_up_logging()
    serve(load_settings())


if __name__ == "__main__":
    try:
        main(prog_name="python -m forwarder")
    except ForwarderError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"forwarder: {line}\n")
        sys.exit(1)
