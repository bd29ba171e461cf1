"""`nst layers` from a clone: see src/nst/cli/layers.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("layers", sys.argv[1:])
