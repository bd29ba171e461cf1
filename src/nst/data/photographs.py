"""Data sets too large for memory: images are read, decoded and augmented as they are needed, in worker processes."""

import atexit
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nst.data.augment import UNAUGMENTED, Augmentation
from nst.data.batch import Split, Stream, scale_and_shift
from nst.data.images import WHITE, EncodedImages, decode

FINGERPRINTED = 1000
"""Images of a split whose content its fingerprint reads; of the others it has the names and sizes."""

Task = tuple[np.ndarray, np.ndarray]
"""Indices and views of the images of one batch; as arrays, which travel to a worker without shared memory."""


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
        source: EncodedImages,
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
            digest.update(hashlib.sha256(self.source.read(row)[0]).digest())
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
            data, where = self.source.read(int(self.rows[index]))
            image.copy_(self.augmentation(decode(data, channels, self.background, where), index, view))
        return images

    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """As `Split.render`."""
        return normalise(self.pixels(indices, views).to(indices.device), self._affine(indices.device), channels_last)

    def _affine(self, device: torch.device) -> list[Tensor]:
        return [values.to(device)[:, None, None] for values in scale_and_shift(self.mean, self.std)]

    def stream(self, device: torch.device, channels_last: bool, workers: int, keep: bool) -> Stream:
        """As `Split.stream`; workers, of one thread each and no more than there are cores, decode and augment ahead.

        Raises (when batches are taken):
            ValueError: an image is bad.
            OSError: a worker process died.
        """
        if workers < 0:
            raise ValueError(f"trainer.workers: {workers}; it must not be negative")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        count, tasks = min(workers, cores), list[Task]()
        loader = DataLoader(
            _Decoding(self.pixels),
            batch_size=None,  # a task is a batch already
            sampler=tasks,  # a list: what it holds when an epoch starts
            num_workers=count,
            persistent_workers=keep and count > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker if count else None,
            multiprocessing_context=_START_METHOD if count else None,
            generator=torch.Generator(),  # else each epoch would draw from the global one
        )

        affine = self._affine(device)

        def images(order: Tensor, views: Tensor, parts: Sequence[slice]) -> Iterator[Tensor]:
            tasks[:] = [(order[part].numpy(), views[part].numpy()) for part in parts]
            for pixels in _batches(loader) if tasks else ():
                if isinstance(pixels, str):
                    raise ValueError(pixels)
                yield normalise(pixels.to(device, non_blocking=True), affine, channels_last)

        return images


def normalise(pixels: Tensor, affine: Sequence[Tensor], channels_last: bool) -> Tensor:
    """[B, C, H, W] uint8 → float32 on the same device; `affine`: scale and shift, [C, 1, 1] each."""
    scale, shift = affine
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return pixels.to(torch.float32, memory_format=layout).mul_(scale).add_(shift)


class _Decoding(Dataset[Tensor | str]):
    """Pixels of a batch, or the message for a bad image: an exception would arrive wrapped in a traceback."""

    def __init__(self, pixels: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.pixels = pixels

    def __getitem__(self, task: Task) -> Tensor | str:
        try:
            return self.pixels(*map(torch.from_numpy, task))
        except ValueError as error:
            return str(error)


# Processes. torch ends its workers with their parent, which is the fork server here and outlives a killed main process; and it
# lets the signals reach them that a scheduler or Ctrl-C sends to the whole process group, after which a run still saves.

_START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""Not fork: a process with threads (OpenMP, CUDA, TensorBoard) forks into deadlocks."""


def _batches(loader: DataLoader[Any]) -> Iterator[Tensor | str]:
    """What the loader yields; at exit its workers are ended in an orderly way.

    multiprocessing would send them the SIGTERM that they do not take, and wait for ever.
    """
    if loader.num_workers:
        _start_server()
    batches: Any = iter(loader)
    if loader.num_workers:
        _kill_at_exit()  # runs after the next
        left = weakref.ref(batches)  # what is registered last, here after multiprocessing and torch, runs first
        atexit.register(lambda: (it := left()) and it._shutdown_workers())
    try:
        yield from batches
    except (RuntimeError, EOFError, OSError) as error:  # the last two: it died while it handed over a batch
        if not loader.num_workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        raise OSError(
            "a data worker process died, most often because memory ran out or it was killed, or because a script that trains with "
            'workers has no `if __name__ == "__main__":`; fewer trainer.workers '
            f"(now {loader.num_workers}) need less memory. torch says: {error!r}"
        ) from error


@cache
def _kill_at_exit() -> None:
    """Have the workers that are still there at exit killed, before multiprocessing waits for them."""
    atexit.register(lambda: [child.kill() for child in multiprocessing.active_children() if child.daemon])


def _start_server() -> None:
    """Start the fork server with the signals to a process group blocked; the workers inherit that."""
    if _START_METHOD != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    modules = [__name__, *(["datasets"] if "datasets" in sys.modules else [])]  # imported before workers fork
    forkserver.set_forkserver_preload(modules)
    resource_tracker.ensure_running()  # starting it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_worker: int) -> None:
    """In a worker: leave Ctrl-C to the main process, and end as soon as that is gone, also after SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None

    def watch() -> None:
        wait([main.sentinel])  # ready when the main process ends
        os._exit(1)

    threading.Thread(target=watch, name="nst-parent-watch", daemon=True).start()
