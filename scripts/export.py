"""`nst export` from a clone: see src/nst/cli/export.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("export", sys.argv[1:])
