"""`nst gradients` from a clone: see src/nst/commands/gradients.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("gradients", sys.argv[1:])
