"""The user's cache of recomputable data, outside data.root, which may be read-only."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from nst.files import write_whole


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/nst`, or `~/.cache/nst`. It may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "nst"


@contextmanager
def cache_file(name: str) -> Iterator[Path | None]:
    """The path of one file of the cache, for one process at a time; None where nothing can be written."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    except (OSError, RuntimeError, NotImplementedError):  # read-only, no home, a file system without locks
        yield None
        return
    try:
        yield folder / name
    finally:
        lock.release()


def write_cache(path: Path, content: bytes) -> None:
    """Write a file of the cache atomically. A failure is only logged."""
    try:
        write_whole(path, content)
    except OSError as error:
        print(f"{error.strerror}; the next start takes as long again", file=sys.stderr)
