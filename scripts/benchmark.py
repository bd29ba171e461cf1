"""`nst benchmark` from a clone: see src/nst/cli/benchmark.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("benchmark", sys.argv[1:])
