"""Reproduce a table of results: `python scripts/reproduce.py table=quick/digits`; without arguments it explains itself."""

import sys

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


def main(words: list[str]) -> None:
    """Plan, estimate, run what is missing, report."""
    from nst.reproduce.command import reproduce
    from nst.reproduce.request import USAGE, parse

    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    reproduce(parse(words))


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
