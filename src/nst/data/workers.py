"""Decoding in worker processes, with handling of signals, dead workers and the global generator beyond torch's DataLoader."""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Task = tuple[np.ndarray, np.ndarray]
"""Indices and views of the images of one batch; as arrays, which travel to a worker without shared memory."""

_PRELOAD = ["torch", "torchvision.transforms.v2", "pyarrow.parquet", "PIL.Image", "nst.data.encoded_split"]
"""Modules that are imported before workers fork. Names that cannot be imported are ignored."""

_SHIELDED = ("SIGTERM", "SIGUSR1")  # a scheduler signals whole process groups; the run then still needs its batches


class Workers:
    """Runs `decode` on each task, in order, in `count` processes (0: in this one), with prefetching.

    Args:
        decode: (indices, views) → images; a ValueError it raises is raised here, as it is.
        count: processes, with one thread each; no more than there are cores.
        keep: keep the processes from one run to the next.
        pin: put the images into pinned memory, for a GPU.
    """

    def __init__(self, decode: Callable[[Tensor, Tensor], Tensor], count: int, *, keep: bool, pin: bool) -> None:
        if count < 0:
            raise ValueError(f"trainer.workers: {count}; it must not be negative")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count = min(count, cores)
        self._tasks = _Tasks()
        self._loader = DataLoader(
            _Decode(decode),
            batch_size=None,  # a task is a batch already
            sampler=self._tasks,
            num_workers=count,
            persistent_workers=keep and count > 0,
            pin_memory=pin,
            worker_init_fn=_start if count else None,
            multiprocessing_context=_context() if count else None,
            generator=torch.Generator(),  # else each epoch would draw from the global one
        )

    def run(self, tasks: Sequence[Task]) -> Iterator[Tensor]:
        """The images of each task.

        Raises:
            ValueError: an image is bad.
            RuntimeError: a worker process died.
        """
        self._tasks.tasks = tasks
        if not tasks:
            return
        if self._loader.num_workers:
            _start_server()
        try:
            batches = iter(self._loader)
            if self._loader.num_workers:
                _iterators.add(batches)
            for images in batches:
                if isinstance(images, str):
                    raise ValueError(images)
                yield images
        except (RuntimeError, EOFError, OSError) as error:  # the last two: it died while handing over a batch
            if not self._loader.num_workers or (
                isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)
            ):
                raise
            raise RuntimeError(
                "a data worker process died, most often because memory ran out or it was killed; fewer "
                f"trainer.workers (now {self._loader.num_workers}) need less memory. torch says: {error!r}"
            ) from None


_iterators: WeakSet[Any] = WeakSet()
"""torch's iterators that may have workers."""


def _end_workers() -> None:
    """At exit: end workers in an orderly way. multiprocessing would send the one SIGTERM that they ignore and wait for ever."""
    for batches in list(_iterators):
        batches._shutdown_workers()


class _Tasks:
    """A sampler whose tasks change from run to run."""

    tasks: Sequence[Task] = ()

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


class _Decode(Dataset[Tensor | str]):
    """Returns the message for a bad image: an exception would arrive wrapped in a traceback."""

    def __init__(self, decode: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.decode = decode

    def __getitem__(self, task: Task) -> Tensor | str:
        try:
            return self.decode(*(torch.from_numpy(part) for part in task))
        except ValueError as error:
            return str(error)


def _context() -> BaseContext:
    """Not fork: a process with threads (OpenMP, CUDA, TensorBoard) forks into deadlocks."""
    forkserver = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forkserver else "spawn")
    if forkserver:
        context.set_forkserver_preload(_PRELOAD)
    return context


def _start_server() -> None:
    """Start the fork server with the scheduler's signals blocked; the workers inherit that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver, resource_tracker

    atexit.unregister(_end_workers)
    atexit.register(_end_workers)  # what is registered last, here after multiprocessing and torch, runs first
    resource_tracker.ensure_running()  # starting it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _SHIELDED])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """In a worker: end as soon as the main process is gone, also after SIGKILL."""
    main = multiprocessing.parent_process()
    if main is None:
        return
    sentinel = main.sentinel  # ready when the main process ends

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="nst-parent-watch", daemon=True).start()


def _start(_worker: int) -> None:
    """In a worker: ignore Ctrl-C and a scheduler's signals, which the main process handles; a second SIGTERM ends it."""

    def once(_signal: int, _frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1])
