"""What a forked process does: a command line of `train.py`, after a fault was set. Each fault patches one place of the program.

Imported once by the fork server, with all that a run needs.
"""

import errno
import io
import itertools
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
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
from nst.losses import NST
from nst.storage import record
from nst.storage.checkpoint import Checkpoints
from nst.teacher import cache


def as_rank(environment: dict[str, str], target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """In a forked process: call `target` with the environment of a rank."""
    # another test may have started the fork server, with the signals blocked that data workers do not take
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    torch.set_num_threads(1)
    os.environ |= environment
    target(*args)


def main(cfg: DictConfig, folder: str, fault: tuple[Any, ...]) -> None:
    """In a working folder, with a fault: a function of this file and its arguments, or (). What is printed goes to a file there."""
    os.chdir(folder)
    file = os.open(f"output{os.environ.get('RANK', '0')}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def me(rank: int) -> bool:
    """Whether this process is that rank; a single process is rank 0."""
    return int(os.environ.get("RANK", "0")) == rank


def kill(signum: int = signal.SIGKILL) -> None:
    """A signal to this process; SIGKILL is what the kernel's memory killer and a power cut look like."""
    os.kill(os.getpid(), signum)


def in_step(number: int, what: Any, rank: int = 0) -> None:
    """On one rank, in the run's `number`-th step, counted from 1: signals, each with time to be noticed; "broken", a fault of the
    program; "nan", images that are not finite; a function, or "killed", between the step and what is logged and saved after it.
    """
    step = loop.Training.step

    def patched(self: loop.Training, batch: Any, targets: Any) -> None:
        now = self.progress.step + 1 == number
        if now and what == "broken":
            raise RuntimeError(f"rank {rank} broke")
        if now and what == "nan":
            batch.images.fill_(float("nan"))
        for signum in what if now and isinstance(what, list) else []:
            kill(signum)
        step(self, batch, targets)
        if now and what == "killed":
            kill()
        if now and callable(what):
            what()

    if me(rank):
        loop.Training.step = patched


def signal_in_evaluation(epoch: int, signum: int) -> None:
    """A signal in the evaluation that ends an epoch."""
    finish = loop.Loop.finish_epoch

    def patched(self: loop.Loop) -> None:
        evaluation = self.evaluation
        if self.training.progress.epoch + 1 == epoch:
            self.evaluation = lambda split, stop: evaluation(split, lambda: kill(signum) or stop())
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

    trial.torch.compile = lambda *_, **__: failing


def infinite_term(number: int) -> None:
    """NST's term is infinite in one step, though its gradient is finite."""
    forward, calls = NST.forward, itertools.count(1)
    NST.forward = lambda *args: forward(*args) + (float("inf") if next(calls) == number else 0.0)


def save_and_die(folder: str, number: int) -> None:
    """No run: write a second checkpoint over a first one, with SIGKILL in the `number`-th place; 0 when there is none.

    The places: around each sync, renaming and deletion, at the beginning of a file and in its middle.
    """
    checkpoints, places = Checkpoints(Path(folder), keep=1), itertools.count()
    checkpoints.save(1, {"weights": torch.full((1000,), 1.0)})

    def place() -> None:
        if next(places) == number:
            kill()

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any, **kwargs: Any) -> Any:
            place()
            result = function(*args, **kwargs)
            place()
            return result

        return patched

    class Halves(io.FileIO):
        def write(self, content: Any) -> int:
            place()
            done = super().write(content[: len(content) // 2])
            place()
            return done + super().write(content[len(content) // 2 :])

    opened = Path.open
    Path.open = lambda path, mode="r", *args, **kwargs: (Halves if mode == "xb" else opened)(
        path, mode, *args, **kwargs
    )
    os.fsync, Path.replace, Path.unlink = map(around, (os.fsync, Path.replace, Path.unlink))
    checkpoints.save(2, {"weights": torch.full((1000,), 2.0)})
    sys.exit(0)


def no_space(step: int, log: bool = False) -> None:
    """After a step there is no space for a log row, or for more than a part of a checkpoint."""
    write_row = record.Record.log

    def logging(self: record.Record, *args: Any) -> None:
        self._lines = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
        write_row(self, *args)

    def fill() -> None:
        if log:
            record.Record.log = logging
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    in_step(step, fill)


def read_only() -> None:
    """The outputs lie in a folder that may be read only (root may write anywhere, so it is acted)."""

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    Path.mkdir = refuse


def other_data() -> None:
    """The data have changed under the run."""
    memory.MemorySplit.fingerprint = "0" * 64  # pyright: ignore[reportAttributeAccessIssue]


def only_rank_0_writes() -> None:
    """Any other rank that opens a file for writing, renames or makes a folder fails; a cache is written by all."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.mkdir", "os.remove", "os.truncate")
        writes |= event == "open" and isinstance(args[1], str) and bool(set(args[1]) & set("wax+"))
        if writes and not any(part in str(args[0]) for part in ("/dev", "/proc", "/cache")):
            raise RuntimeError(f"{event} {args[0]}")

    if not me(0):
        sys.addaudithook(watch)
