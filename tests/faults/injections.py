"""Faults to set in a run before it starts. Each patches one place of the program in its own process."""

import errno
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nst import loop, trial
from nst.data import memory
from nst.data.batch import Loader
from nst.losses import NST
from nst.storage import record
from nst.storage.checkpoint import Checkpoints
from nst.teacher import cache


def me(rank: int) -> bool:
    """Whether this process is that rank; a single process is rank 0."""
    return int(os.environ.get("RANK", "0")) == rank


def around_step(number: int, before: Callable[[Any], Any] = bool, after: Callable[[], Any] = bool) -> None:
    """Do something before (with its batch) or after the step that is the run's `number`-th, counted from 1."""
    step = loop.Training.step

    def patched(self: loop.Training, batch: Any, targets: Any) -> None:
        now = self.progress.step + 1 == number
        if now:
            before(batch)
        step(self, batch, targets)
        if now:
            after()

    loop.Training.step = patched


def die() -> None:
    """What kill -9, the kernel's memory killer and a power cut look like."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_step(number: int, rank: int = 0) -> None:
    """SIGKILL between a step and what is logged and saved after it."""
    if me(rank):
        around_step(number, after=die)


def signal_in_evaluation(epoch: int, signum: int) -> None:
    """A signal in the evaluation that ends an epoch."""
    finish = loop.Loop.finish_epoch

    def patched(self: loop.Loop) -> None:
        if self.training.progress.epoch + 1 == epoch:
            batches = Loader.batches

            def some(loader: Loader, *args: Any) -> Any:
                for i, batch in enumerate(batches(loader, *args)):
                    if i == 1:
                        os.kill(os.getpid(), signum)
                    yield batch

            Loader.batches = some
        finish(self)

    loop.Loop.finish_epoch = patched


def while_writing(number: int, signum: int, rank: int = 0) -> None:
    """A signal to one rank while its `number`-th batch of a teacher cache is written."""
    write, count = cache.TeacherCache.write, itertools.count(1)

    def patched(*args: Any) -> None:
        if next(count) == number and me(rank):
            os.kill(os.getpid(), signum)
        write(*args)

    cache.TeacherCache.write = patched


def signal_in_compilation(signum: int) -> None:
    """A signal while the step is compiled, which also ends the C++ compiler, as Ctrl-C in a terminal does."""

    def failing(*args: Any) -> None:
        os.kill(os.getpid(), signum)
        raise RuntimeError("the compiler was interrupted")

    trial.disagreement = failing


def signals_in_step(number: int, signums: list[int], rank: int = 0) -> None:
    """Signals in the middle of a step, each with time to be noticed."""
    if me(rank):
        around_step(number, before=lambda _: [os.kill(os.getpid(), s) for s in signums])


def raise_in_step(number: int, rank: int) -> None:
    """A fault of the program on one rank."""

    def fail(_: Any) -> None:
        raise RuntimeError(f"rank {rank} broke")

    if me(rank):
        around_step(number, before=fail)


def nan_in_step(number: int, rank: int = 0) -> None:
    """Images of one step that are not finite, on one rank."""
    if me(rank):
        around_step(number, before=lambda batch: batch.images.fill_(float("nan")))


def infinite_term(number: int) -> None:
    """NST's term is infinite in one step, though its gradient is finite."""
    forward, calls = NST.forward, itertools.count(1)
    NST.forward = lambda *args: forward(*args) + (float("inf") if next(calls) == number else 0.0)


class Points:
    """The places in which a save can be cut short, counted as they are passed."""

    def __init__(self, happens: Callable[[int], None]) -> None:
        self.passed = 0
        self.happens = happens

    def point(self) -> None:
        self.happens(self.passed)
        self.passed += 1

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any, **kwargs: Any) -> Any:
            self.point()
            result = function(*args, **kwargs)
            self.point()
            return result

        return patched

    def in_writes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        points = self

        class Halves(io.FileIO):
            def write(self, content: Any) -> int:
                done = super().write(content[: len(content) // 2])
                points.point()
                return done + super().write(content[len(content) // 2 :])

        def patched(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode != "xb":  # as `write_whole` opens
                return function(path, mode, *args, **kwargs)
            self.point()
            return Halves(path, mode)

        return patched

    def install(self) -> None:
        os.fsync = self.around(os.fsync)
        Path.replace = self.around(Path.replace)
        Path.unlink = self.around(Path.unlink)
        Path.open = self.in_writes(Path.open)


def die_at_point(step: int, number: int) -> None:
    """SIGKILL in the `number`-th place of the save after a step."""

    def happens(passed: int) -> None:
        if passed == number:
            die()

    around_step(step, after=Points(happens).install)


def save_and_die(folder: str, number: int) -> None:
    """No run: write a second checkpoint over a first one, with SIGKILL in the `number`-th place; 0 when there is none."""
    checkpoints = Checkpoints(Path(folder), keep=1)
    checkpoints.save(1, {"weights": torch.full((1000,), 1.0)})

    def happens(passed: int) -> None:
        if passed == number:
            die()

    Points(happens).install()
    checkpoints.save(2, {"weights": torch.full((1000,), 2.0)})
    sys.exit(0)


def no_space(step: int, log: bool = False) -> None:
    """From a step on, checkpoints (half-way) or log rows meet a full disk."""

    def full(*_args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        write, close = staticmethod(full), staticmethod(lambda: None)

    write_row = record.Record.log

    def logging(self: record.Record, *args: Any) -> None:
        self._lines.close()
        self._lines = Full()
        write_row(self, *args)

    def fill() -> None:
        if log:
            record.Record.log = logging
        else:
            Path.open = Points(lambda passed: full() if passed % 2 else None).in_writes(Path.open)

    around_step(step, after=fill)


def read_only() -> None:
    """The outputs lie in a folder that may be read only (root may write anywhere, so it is acted)."""

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    Path.mkdir = refuse


def other_data() -> None:
    """The data have changed under the run."""
    memory.MemorySplit.fingerprint = "0" * 64  # pyright: ignore[reportAttributeAccessIssue]


def only_rank_0_writes() -> None:
    """Any other rank that opens a file for writing, renames or makes a folder fails."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        path = str(args[0]) if args else ""
        if path.startswith(("/dev", "/proc")):
            return
        if event in ("os.rename", "os.mkdir", "os.remove", "os.truncate"):
            raise RuntimeError(f"{event} {path}")
        if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
            raise RuntimeError(f"open {path} for writing")

    if not me(0):
        sys.addaudithook(watch)
