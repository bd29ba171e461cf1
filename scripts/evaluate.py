"""`nst evaluate` from a clone: see src/nst/cli/evaluate.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("evaluate", sys.argv[1:])
