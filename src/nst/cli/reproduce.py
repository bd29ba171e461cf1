"""Reproduce a table of results: `nst reproduce table=quick/digits`; without arguments it prints its usage."""

from collections.abc import Sequence

from nst.cli.errors import readable_errors
from nst.config import CONFIGS
from nst.reproduce.request import USAGE, parse
from nst.reproduce.table import read_table

__all__ = ["USAGE", "main"]


def main(arguments: Sequence[str]) -> None:
    """Plan, estimate, run what is missing, report."""
    with readable_errors():
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(USAGE)
            return
        request = parse(arguments)
        read_table(request.table, CONFIGS)  # a misspelt name fails at once; the imports below take seconds
        from nst.reproduce.command import reproduce

        reproduce(request)
