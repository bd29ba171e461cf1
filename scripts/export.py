"""`nst export` from a clone: see src/nst/commands/export.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("export", sys.argv[1:])
