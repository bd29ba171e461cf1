"""`nst cache` from a clone: see src/nst/commands/cache.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("cache", sys.argv[1:])
