"""The command line: `nst COMMAND [arguments]`."""

import difflib
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; without arguments list the commands."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(listing())
        return
    name, *command_arguments = arguments
    if name in ("-sc", "--shell-completion"):
        from nst.cli.completion import complete

        complete(arguments)
        return
    if name == "--version":
        from nst import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean nst {nearest[0]}?" if nearest else f"there are {', '.join(COMMANDS)}"
        if "=" in name:
            hint = f"did you mean nst train {name}?"
        print(f"error: nst {name}: no such command; {hint}", file=sys.stderr)
        sys.exit(1)
    command(name, command_arguments)


def command(name: str, arguments: Sequence[str]) -> None:
    """Run one command. `--help` prints the module's docstring; for training Hydra's help, for benchmarks their own."""
    module = import_module(f"nst.cli.{name}")
    if name not in ("train", "benchmark") and any(argument in ("-h", "--help", "help") for argument in arguments):
        print(getattr(module, "USAGE", module.__doc__ or "").strip())
        return
    module.main(list(arguments))


def listing() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  nst {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["Knowledge distillation of vision networks.", "", *lines, "", "nst COMMAND --help explains one."])
