"""Data sets too large for memory: images are read, decoded and augmented as they are needed, in worker processes."""

import atexit
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from multiprocessing.connection import wait
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nst.data.augment import UNAUGMENTED, Augmentation
from nst.data.batch import Split, Stream
from nst.data.decode import WHITE, decode, scale_and_shift
from nst.data.parts import Encoded

FINGERPRINTED = 1000
"""Images of a split whose content its fingerprint reads; of the others it has the names and sizes."""

_PRELOAD = ["nst.data.photographs", "datasets"]
"""Modules that are imported before workers fork; `datasets` only where it reads the images."""

_SHIELDED = ("SIGINT", "SIGTERM", "SIGUSR1")  # sent to whole process groups; the run then still needs its batches


class PhotographSplit(Split):
    """Encoded images on disk.

    An image's views cannot be enumerated: an epoch draws a 63-bit view number for each image from (seed, epoch, index), and the
    augmentation is drawn from (index, view).

    Args:
        source: the encoded images.
        rows: [n] int64, which row of the source each image of this split is.
        labels: [n] int64; −1: not labelled.
        augmentation: (pixels, index, view) → [C, size, size].
        mean, std: of the C channels (1 or 3), on the scale 0 … 1.
        background: the colour (R, G, B) behind transparent images.
    """

    def __init__(
        self,
        source: Encoded,
        rows: Tensor,
        labels: Tensor,
        augmentation: Augmentation,
        mean: Sequence[float],
        std: Sequence[float],
        background: Sequence[int] = WHITE,
    ) -> None:
        self.source, self.rows, self.labels, self.augmentation = source, rows, labels, augmentation
        self.mean, self.std, self.background = tuple(mean), tuple(std), tuple(background)
        self.num_views, self.unaugmented = None, UNAUGMENTED
        self.view_key = f"{augmentation.key} {self.background}"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the labels, of the images' names and sizes, and of the content of 1,000 images evenly spread, hex."""
        digest = hashlib.sha256(self.labels.contiguous().numpy().data)
        for description in self.source.describe(self.rows):
            digest.update(description)
        for row in self.rows[:: -(-len(self.rows) // FINGERPRINTED)].tolist():
            digest.update(hashlib.sha256(self.source.read(row)).digest())
        return digest.hexdigest()

    def view_subset(self, k: int) -> Tensor:
        """[n, k] int64: views 0 … k − 1 of each image.

        Augmentation is drawn from (index, view), so these are k random crops of each image, the same for every seed and
        different for every image; those for k are among those for k + 1.
        """
        if k < 1:
            raise ValueError(f"views per image: {k}; it must be at least 1")
        return torch.arange(k).expand(len(self), k)

    def pixels(self, indices: Tensor, views: Tensor) -> Tensor:
        """[B, C, size, size] uint8, channels_last. Raises ValueError, naming the file, for a bad image."""
        size, channels = self.augmentation.size, len(self.mean)
        images = torch.empty(len(indices), size, size, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        for image, index, view in zip(images, indices.tolist(), views.tolist(), strict=True):
            row = int(self.rows[index])
            data = self.source.read(row)
            try:
                image.copy_(self.augmentation(decode(data, channels, self.background), index, view))
            except ValueError as error:
                raise ValueError(f"{self.source.where(row)}: the image {error}") from None
        return images

    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """As `Split.render`."""
        device = indices.device
        return normalise(self.pixels(indices, views).to(device), *self.affine(device), channels_last)

    def affine(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The scale and shift that normalise pixels, each [C, 1, 1], on a device."""
        scale, shift = (values.to(device)[:, None, None] for values in scale_and_shift(self.mean, self.std))
        return scale, shift

    def stream(self, device: torch.device, channels_last: bool, workers: int, keep: bool) -> Stream:
        """As `Split.stream`; workers decode and augment ahead of the batches."""
        affine, read = self.affine(device), Workers(self.pixels, workers, keep=keep, pin=device.type == "cuda")

        def stream(order: Tensor, views: Tensor, parts: Sequence[slice]) -> Iterator[Tensor]:
            for pixels in read([(order[part].numpy(), views[part].numpy()) for part in parts]):
                yield normalise(pixels.to(device, non_blocking=True), *affine, channels_last)

        return stream


def normalise(pixels: Tensor, scale: Tensor, shift: Tensor, channels_last: bool) -> Tensor:
    """[B, C, H, W] uint8 → float32 on the same device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return pixels.to(torch.float32, memory_format=layout).mul_(scale).add_(shift)


Task = tuple[np.ndarray, np.ndarray]
"""Indices and views of the images of one batch; as arrays, which travel to a worker without shared memory."""


class Workers:
    """Runs `decode` on tasks, in order, in `count` processes (0: in this one), ahead of what is asked for.

    A process has one thread, and there are no more of them than cores.

    Args:
        decode: (indices, views) → images; a ValueError it raises is raised here, as it is.
        keep: keep the processes from one run to the next.
        pin: put the images into pinned memory, for a GPU.
    """

    def __init__(self, decode: Callable[[Tensor, Tensor], Tensor], count: int, *, keep: bool, pin: bool) -> None:
        if count < 0:
            raise ValueError(f"trainer.workers: {count}; it must not be negative")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = min(count, cores)
        self.tasks: list[Task] = []  # of one run
        self.loader = DataLoader(
            _Decoding(decode),
            batch_size=None,  # a task is a batch already
            sampler=self.tasks,  # a list: what it holds when a run starts
            num_workers=self.count,
            persistent_workers=keep and count > 0,
            pin_memory=pin,
            worker_init_fn=_start_worker if count else None,
            multiprocessing_context=_START_METHOD if count else None,
            generator=torch.Generator(),  # else each epoch would draw from the global one
        )

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Tensor]:
        """The images of each task.

        Raises:
            ValueError: an image is bad.
            RuntimeError: a worker process died.
        """
        self.tasks[:] = tasks
        if not tasks:
            return
        if self.count:
            _start_server()
        try:
            batches = iter(self.loader)
            if self.count:
                _iterators.add(batches)
            for images in batches:
                if isinstance(images, str):
                    raise ValueError(images)
                yield images
        except (RuntimeError, EOFError, OSError) as error:  # the last two: it died while handing over a batch
            if not self.count or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                raise
            raise RuntimeError(
                "a data worker process died, most often because memory ran out or it was killed, or because a script that "
                'trains with workers has no `if __name__ == "__main__":`; fewer trainer.workers '
                f"(now {self.count}) need less memory. torch says: {error!r}"
            ) from None


class _Decoding(Dataset[Tensor | str]):
    """Pixels of a batch, or the message for a bad image: an exception would arrive wrapped in a traceback."""

    def __init__(self, pixels: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.pixels = pixels

    def __getitem__(self, task: Task) -> Tensor | str:
        try:
            return self.pixels(*(torch.from_numpy(part) for part in task))
        except ValueError as error:
            return str(error)


# Processes. torch ends its workers with their parent, which is the fork server here and outlives a killed main process; and it
# lets the signals reach them that a scheduler or Ctrl-C sends to the whole process group, after which a run still saves.

_START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""Not fork: a process with threads (OpenMP, CUDA, TensorBoard) forks into deadlocks."""

_iterators: WeakSet[Any] = WeakSet()
"""torch's iterators that may have workers."""


def _start_server() -> None:
    """Start the fork server with the shielded signals blocked; the workers inherit that."""
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)  # what is registered last, here after multiprocessing and torch, runs first
    if _START_METHOD != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    forkserver.set_forkserver_preload([name for name in _PRELOAD if name in sys.modules])
    resource_tracker.ensure_running()  # starting it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _SHIELDED])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_workers() -> None:
    """At exit: end workers in an orderly way. multiprocessing would send the SIGTERM that they do not take, and wait for ever."""
    for batches in list(_iterators):
        batches._shutdown_workers()


def _start_worker(_worker: int) -> None:
    """In a worker: leave Ctrl-C to the main process, and end as soon as that is gone, also after SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    if main is None:
        return

    def watch() -> None:
        wait([main.sentinel])  # ready when the main process ends
        os._exit(1)

    threading.Thread(target=watch, name="nst-parent-watch", daemon=True).start()
