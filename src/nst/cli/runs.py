"""List the runs so far: `nst runs data=digits 'loss=*nst*' sort=best`."""

from collections.abc import Sequence

from nst.cli.errors import readable_errors
from nst.report.list_runs import USAGE, list_runs

__all__ = ["USAGE", "main"]


def main(arguments: Sequence[str]) -> None:
    """Run the command with its arguments."""
    with readable_errors():
        list_runs(arguments)
