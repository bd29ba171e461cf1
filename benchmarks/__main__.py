"""Measure speed and memory: `python -m benchmarks losses --settings crd crd-early --json losses.json`."""

import argparse
from collections.abc import Sequence

from benchmarks import data, losses, step, threads

SUBJECTS = {"losses": losses, "data": data, "step": step, "threads": threads}
"""A subject is a module with HELP, add_arguments(parser) and run(arguments)."""


def main(command_line: Sequence[str] | None = None) -> None:
    """Dispatch to the subject."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, module in SUBJECTS.items():
        module.add_arguments(subjects.add_parser(name, help=module.HELP))
    arguments = parser.parse_args(command_line)
    SUBJECTS[arguments.subject].run(arguments)


if __name__ == "__main__":
    main()
