"""`nst reproduce` from a clone: see src/nst/cli/reproduce.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("reproduce", sys.argv[1:])
