"""`python -m provider`."""

from provider.commands import main

main(prog_name="python -m provider")
