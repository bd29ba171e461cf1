"""`nst gradients` from a clone: see src/nst/cli/gradients.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("gradients", sys.argv[1:])
