"""`nst predict` from a clone: see src/nst/commands/predict.py."""

import sys

from nst.commands.main import command

if __name__ == "__main__":
    command("predict", sys.argv[1:])
