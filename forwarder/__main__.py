"""`python -m forwarder`: everything an operator does to a forwarder."""

from forwarder.commands import main

if __name__ == "__main__":
    main(prog_name="python -m forwarder")
