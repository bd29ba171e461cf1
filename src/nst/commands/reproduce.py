"""Reproduce a table of results: `nst reproduce table=quick/digits`; without words it explains itself."""

from collections.abc import Sequence

import nst.config  # noqa: F401  (registers the schema)
from nst.errors import readable_errors


def main(words: Sequence[str]) -> None:
    """Plan, estimate, run what is missing, report."""
    with readable_errors():
        from nst.reproduce.request import USAGE, parse

        if not words or words[0] in ("-h", "--help", "help"):
            print(USAGE)
            return
        request = parse(words)
        from nst.reproduce.command import reproduce

        reproduce(request)
