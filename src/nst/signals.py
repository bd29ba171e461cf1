"""Signals only set a flag; the loop checks it between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """Training stopped on request after saving; the same command continues.

    `status` is the exit status: 128 + the signal's number (SIGINT 130, SIGTERM 143, SIGUSR1 138).
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after saving; the same command continues")
        self.status = 128 + signum


class StopFlag:
    """The number of the first stop signal received, or 0."""

    signum: int = 0


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a flag while the block runs; a second SIGINT stops at once.

    Outside such a block the signals end the process as usual: all results are on disk then.
    """
    flag = StopFlag()

    def handle(signum: int, frame: FrameType | None) -> None:
        if flag.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signum = flag.signum or signum

    watched = STOP_SIGNALS if threading.current_thread() is threading.main_thread() else ()  # Python's rule
    before = {s: signal.getsignal(s) for s in watched}
    try:
        for s in watched:
            signal.signal(s, handle)
        yield flag
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
