"""`nst reproduce` from a clone: see src/nst/commands/reproduce.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("reproduce", sys.argv[1:])
