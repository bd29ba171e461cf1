"""`nst evaluate` from a clone: see src/nst/commands/evaluate.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("evaluate", sys.argv[1:])
