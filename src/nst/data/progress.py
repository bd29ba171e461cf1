"""Progress of long work before training: reading, unpacking and hashing images."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from nst.data.batch import Batch

_SILENT = 2.0  # seconds without output


def counted(batches: "Iterable[Batch]", what: str, total: int) -> "Iterator[Batch]":
    """Batches of a long pass over `total` images, with its progress."""
    with Progress(what, total) as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch.labels))


class Progress:
    """A bar on stderr where that is a terminal, else one line once it takes long; of the first rank only.

    Args:
        what: for example "reading 50,000 images of data.root=data".
        total: how many units there are.
        unit: what they are called.
    """

    def __init__(self, what: str, total: int, unit: str = " images") -> None:
        self.what, self.start = what, time.monotonic()
        self.main = os.environ.get("RANK", "0") == "0"
        self.plain = self.main and not sys.stderr.isatty()
        self.bar = tqdm(
            total=total, desc=what, unit=unit, delay=_SILENT, leave=False, disable=None if self.main else True
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, count: int) -> None:
        """`count` more units are done."""
        self.bar.update(count)
        if self.plain and time.monotonic() - self.start > _SILENT:
            print(f"{self.what} …", file=sys.stderr, flush=True)
            self.plain = False
