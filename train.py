"""The training command: `python train.py model=resnet20 loss=nst_poly` is `nst train model=resnet20 loss=nst_poly`."""

import sys

from nst.cli.main import command

if __name__ == "__main__":
    command("train", sys.argv[1:])
