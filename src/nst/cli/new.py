"""Start a project of your own: `nst new NAME` writes a folder with a network, images, a loss, an experiment and a test.

It runs as it is: `cd NAME && nst train experiment=first`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from nst.cli.errors import readable_errors

TEMPLATE = Path(__file__).parent / "template"


def main(arguments: Sequence[str]) -> None:
    """Write the folder."""
    with readable_errors():
        if len(arguments) != 1 or "=" in arguments[0]:
            raise ValueError("nst new NAME: one word is needed, the folder of the new project")
        folder = Path(arguments[0]).expanduser()
        if folder.exists():
            raise ValueError(f"{folder} exists already; choose another folder")
        shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        print(f"written: {folder}\nnext: cd {folder} && nst train experiment=first")
