"""One process at a time: ranks of one machine that would otherwise write the same files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file `path`. The lock ends with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
