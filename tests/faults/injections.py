"""What a forked process does: a command line of `train.py`, after a fault was set. Each fault patches one place of the program.

Imported once by the fork server, with all that a run needs.
"""

import errno
import io
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sklearn.datasets  # noqa: F401  (the digits)
import torch
import torch._inductor.compile_fx  # long to import
import torch.distributed
from omegaconf import DictConfig

import nst.run  # noqa: F401
from nst import loop, trial
from nst.cli.compose import readable_errors
from nst.cli.train import run
from nst.data import memory
from nst.data.batch import Loader
from nst.losses import NST
from nst.storage import record
from nst.storage.checkpoint import Checkpoints
from nst.teacher import cache


def main(cfg: DictConfig, folder: str, output: str, environment: dict[str, str], fault: tuple[Any, ...]) -> None:
    """Ends the process with the status of the command.

    Args:
        folder: the working folder.
        output: the file in it to which all is appended that the command prints.
        fault: a function of this file and its arguments, or ().
    """
    # another test may have started the fork server, with the signals blocked that data workers do not take
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    torch.set_num_threads(1)
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ |= environment
    status: Any = 1
    try:
        if fault:
            globals()[fault[0]](*fault[1:])
        with readable_errors() as end:
            end.status = 1
            run(cfg)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def me(rank: int) -> bool:
    """Whether this process is that rank; a single process is rank 0."""
    return int(os.environ.get("RANK", "0")) == rank


def kill(signum: int = signal.SIGKILL) -> None:
    """A signal to this process; SIGKILL is what the kernel's memory killer and a power cut look like."""
    os.kill(os.getpid(), signum)


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


def in_step(number: int, what: Any, rank: int = 0) -> None:
    """On one rank, in a step: signals, each with time to be noticed; "broken", a fault of the program; "nan", images that are not
    finite. "killed": between a step and what is logged and saved after it.
    """

    def before(batch: Any) -> None:
        if what == "broken":
            raise RuntimeError(f"rank {rank} broke")
        if what == "nan":
            batch.images.fill_(float("nan"))
        for signum in what if isinstance(what, list) else []:
            kill(signum)

    if me(rank):
        around_step(number, before, kill if what == "killed" else bool)


def signal_in_evaluation(epoch: int, signum: int) -> None:
    """A signal in the evaluation that ends an epoch."""
    finish, batches = loop.Loop.finish_epoch, Loader.batches

    def some(loader: Loader, *args: Any) -> Any:
        for i, batch in enumerate(batches(loader, *args)):
            if i == 1:
                kill(signum)
            yield batch

    def patched(self: loop.Loop) -> None:
        if self.training.progress.epoch + 1 == epoch:
            Loader.batches = some
        finish(self)

    loop.Loop.finish_epoch = patched


def while_writing(number: int, signum: int, rank: int = 0) -> None:
    """A signal to one rank while its `number`-th batch of a teacher cache is written."""
    write, count = cache.TeacherCache.write, itertools.count(1)

    def patched(*args: Any) -> None:
        if next(count) == number and me(rank):
            kill(signum)
        write(*args)

    cache.TeacherCache.write = patched


def signal_in_compilation(signum: int) -> None:
    """A signal while the step is compiled, which also ends the C++ compiler, as Ctrl-C in a terminal does."""

    def failing(*args: Any) -> None:
        kill(signum)
        raise RuntimeError("the compiler was interrupted")

    trial.disagreement = failing


def infinite_term(number: int) -> None:
    """NST's term is infinite in one step, though its gradient is finite."""
    forward, calls = NST.forward, itertools.count(1)
    NST.forward = lambda *args: forward(*args) + (float("inf") if next(calls) == number else 0.0)


class Points:
    """The places in which a save can be cut short, counted as they are passed."""

    def __init__(self, happens: Callable[[int], None]) -> None:
        self.happens, self.numbers = happens, itertools.count()

    def point(self) -> None:
        self.happens(next(self.numbers))

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
        os.fsync, Path.replace, Path.unlink = map(self.around, (os.fsync, Path.replace, Path.unlink))
        Path.open = self.in_writes(Path.open)


def save_and_die(folder: str, number: int) -> None:
    """No run: write a second checkpoint over a first one, with SIGKILL in the `number`-th place; 0 when there is none."""
    checkpoints = Checkpoints(Path(folder), keep=1)
    checkpoints.save(1, {"weights": torch.full((1000,), 1.0)})
    Points(lambda passed: kill() if passed == number else None).install()
    checkpoints.save(2, {"weights": torch.full((1000,), 2.0)})
    sys.exit(0)


def no_space(step: int, log: bool = False) -> None:
    """From a step on, checkpoints (half-way) or log rows meet a full disk."""
    write_row = record.Record.log

    def full(*_args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def logging(self: record.Record, *args: Any) -> None:
        self._lines.close()
        self._lines = SimpleNamespace(write=full, close=bool)
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
