"""`nst runs` from a clone: see src/nst/cli/runs.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("runs", sys.argv[1:])
