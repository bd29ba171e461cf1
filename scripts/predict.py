"""`nst predict` from a clone: see src/nst/cli/predict.py."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("predict", sys.argv[1:])
