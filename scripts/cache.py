"""`nst cache` from a clone: see src/nst/cli/cache.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("cache", sys.argv[1:])
