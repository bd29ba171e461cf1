"""List the runs of `outputs/`: `python scripts/runs.py data=digits 'loss=*nst*' sort=best`; `--help` explains itself."""

import sys

from nst.errors import readable_errors
from nst.report.list_runs import list_runs


def main(words: list[str]) -> None:
    """Print the listing."""
    list_runs(words)


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
