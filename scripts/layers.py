"""`nst layers` from a clone: see src/nst/commands/layers.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("layers", sys.argv[1:])
