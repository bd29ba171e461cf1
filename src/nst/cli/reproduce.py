"""Reproduce a table of results: `nst reproduce table=quick/digits`; without arguments it prints its usage."""

from collections.abc import Sequence

from nst.cli.errors import readable_errors
from nst.tables.file import read_table
from nst.tables.request import USAGE, parse

__all__ = ["USAGE", "main"]


def main(arguments: Sequence[str]) -> None:
    """Plan, run what is missing, report."""
    if not arguments:
        print(USAGE)
        return
    with readable_errors(status=2):
        request = parse(arguments)
        read_table(request.table)  # a misspelt name fails at once; the imports below take seconds
    with readable_errors():
        from nst.tables.command import reproduce

        reproduce(request)
