"""`nst runs` from a clone: see src/nst/commands/runs.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("runs", sys.argv[1:])
