"""The command line: `nst COMMAND [arguments]`."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "train a student, from a teacher or without one",
    "evaluate": "measure the accuracy of a finished run, or of any weights on any data set",
    "predict": "classify the images of a folder with a trained student",
    "reproduce": "run a table of results and write its page",
    "runs": "list the runs so far",
    "layers": "list the layers of teacher and student that can be compared",
    "gradients": "compare the gradients of the terms of a loss",
    "cache": "write the teacher cache without training, or check it",
    "export": "write a trained student as files to deploy, with a model card",
    "new": "start a project of your own in a new folder",
    "benchmark": "measure speed and memory (from a clone of the repository)",
}
COMPOSED = ("train", "evaluate", "layers", "gradients", "cache", "export")  # arguments are a Hydra configuration


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; without arguments list the commands."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("Knowledge distillation of vision networks.\n")
        print("\n".join(f"  nst {name.ljust(width)}  {text}" for name, text in COMMANDS.items()))
        print("\nnst COMMAND --help explains one.")
    elif arguments[0] in ("-sc", "--shell-completion"):
        complete(arguments)
    elif arguments[0] == "--version":
        from nst import __version__

        print(__version__)
    elif arguments[0] in COMMANDS:
        command(arguments[0], arguments[1:])
    else:
        nearest = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean nst {nearest[0]}?" if nearest else f"there are {', '.join(COMMANDS)}"
        if "=" in arguments[0]:
            hint = f"did you mean nst train {arguments[0]}?"
        print(f"error: nst {arguments[0]}: no such command; {hint}", file=sys.stderr)
        sys.exit(2)


def command(name: str, arguments: Sequence[str]) -> None:
    """Run one command. `--help` prints the module's docstring; for training Hydra's help, for benchmarks their own."""
    module = import_module(f"nst.cli.{name}")
    if name not in ("train", "benchmark") and any(argument in ("-h", "--help", "help") for argument in arguments):
        print(getattr(module, "USAGE", module.__doc__ or "").strip())
        return
    module.main(list(arguments))


def complete(arguments: Sequence[str]) -> None:
    """Hydra's completion by the shell, `eval "$(nst -sc install=bash)"`, for several commands: their names first."""
    typed = os.environ.get("COMP_LINE", "").split(" ")
    if not any(argument.startswith("query=") for argument in arguments):
        command("train", arguments)
    elif len(typed) <= 2:
        print(" ".join(COMMANDS))
    elif typed[1] in COMPOSED:
        os.environ["COMP_LINE"] = " ".join([typed[0], *typed[2:]])
        command(typed[1], arguments)
