"""`nst benchmark` from a clone: see src/nst/commands/benchmark.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("benchmark", sys.argv[1:])
