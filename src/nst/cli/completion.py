"""Shell completion of `nst COMMAND …`, as Hydra offers it for one command: `eval "$(nst -sc install=bash)"`."""

import os
from collections.abc import Sequence

# Commands whose arguments are a Hydra configuration; the others have few arguments.
HYDRA = ("train", "evaluate", "layers", "gradients", "cache", "export")


def complete(arguments: Sequence[str]) -> None:
    """Install, or print the completions of `COMP_LINE`: commands first, then arguments of the command."""
    from nst.cli.main import COMMANDS, command

    typed = os.environ.get("COMP_LINE", "").split(" ")
    if not any(argument.startswith("query=") for argument in arguments):
        command("train", arguments)
    elif len(typed) <= 2:
        print(" ".join(COMMANDS))
    elif typed[1] in HYDRA:
        os.environ["COMP_LINE"] = " ".join([typed[0], *typed[2:]])
        command(typed[1], arguments)
