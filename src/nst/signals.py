"""Signals only set a flag; the loop checks it between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """Training stopped on request after saving. `status` is the exit status: 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after saving; the same command continues")
        self.status = 128 + signum


class StopFlag:
    """The number of the first stop signal received, or 0."""

    signum: int = 0


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a flag while the block runs; a second SIGINT stops at once."""
    flag = StopFlag()

    def handle(signum: int, frame: FrameType | None) -> None:
        if flag.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signum = flag.signum or signum

    main = threading.current_thread() is threading.main_thread()  # Python's rule
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if main else ()
    before = [signal.signal(s, handle) for s in watched]
    try:
        yield flag
    finally:
        for s, handler in zip(watched, before, strict=True):
            signal.signal(s, handler)
