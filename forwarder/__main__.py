"""`python -m forwarder`: everything an operator does to a forwarder."""

import sys

from forwarder.commands import main
from forwarder.errors import ForwarderError

if __name__ == "__main__":
    try:
        main(prog_name="python -m forwarder")
    except ForwarderError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"forwarder: {line}\n")
        sys.exit(1)
