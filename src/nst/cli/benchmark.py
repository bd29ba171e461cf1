"""Measure speed and memory: `nst benchmark losses`, data or step; from a clone of the repository."""

import sys
from collections.abc import Sequence
from pathlib import Path

from nst.cli.errors import readable_errors


def main(arguments: Sequence[str]) -> None:
    """Hand over to the repository's benchmarks."""
    with readable_errors():
        root = Path(__file__).parents[3]
        if not (root / "benchmarks" / "__main__.py").is_file():
            raise ValueError("the benchmarks are not part of the installed package; run nst benchmark from a clone")
        sys.path.insert(0, str(root))
        from benchmarks.__main__ import main as benchmark

        benchmark(list(arguments))
