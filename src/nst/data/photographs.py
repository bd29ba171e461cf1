"""Data sets too large for memory: images are read, decoded and augmented as they are needed, in worker processes."""

import atexit
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nst.data.augment import Augmentation
from nst.data.batch import UNLISTED_VIEWS, Loader, Split, Stream, scale_and_shift
from nst.data.images import WHITE, EncodedImages, decode

FINGERPRINTED = 1000  # images of a split whose content its fingerprint reads; of the others it has the names and sizes


@dataclass(eq=False)
class PhotographSplit(Split, Dataset[Tensor | str]):
    """Encoded images on disk. The augmentation of an image is drawn from its index and a view number of 63 bits."""

    source: EncodedImages
    rows: Tensor  # [n] int64, which row of the source each image of this split is
    labels: Tensor
    augmentation: Augmentation
    mean: Sequence[float]
    std: Sequence[float]
    background: tuple[int, ...] = WHITE  # R, G, B behind transparent images

    def __post_init__(self) -> None:
        self.num_views, self.unaugmented = None, UNLISTED_VIEWS
        self.view_key = f"{self.augmentation.key} {self.background}"
        self._affine = [values[:, None, None] for values in scale_and_shift(self.mean, self.std)]

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
        """[n, k] int64: views 0 … k − 1 of each image, which are k random crops, different for every image."""
        return torch.arange(k).expand(len(self), k)

    def __getitem__(self, task: tuple[np.ndarray, np.ndarray]) -> Tensor | str:
        """Indices and views [B] → [B, C, size, size] uint8, channels_last; or what is wrong with an image, without a traceback."""
        size, channels = self.augmentation.size, len(self.mean)
        images = torch.empty(len(task[0]), size, size, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
        try:
            for image, index, view in zip(images, task[0].tolist(), task[1].tolist(), strict=True):
                data, where = self.source.read(int(self.rows[index]))
                image.copy_(self.augmentation(decode(data, channels, self.background, where), index, view))
        except (ValueError, OSError) as error:
            return str(error)
        return images

    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """As `Split.render`. Raises ValueError for a bad image."""
        pixels = self[indices.cpu().numpy(), views.cpu().numpy()]
        return self._normalised(pixels, indices.device, channels_last)

    def _normalised(self, pixels: Tensor | str, device: torch.device | str, channels_last: bool) -> Tensor:
        if isinstance(pixels, str):
            raise ValueError(pixels)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        pixels = pixels.to(device, non_blocking=True).to(torch.float32, memory_format=layout)
        scale, shift = (values.to(device, non_blocking=True) for values in self._affine)
        return pixels.mul_(scale).add_(shift)

    def stream(self, loader: Loader) -> Stream:
        """As `Split.stream`; workers, of one thread each and no more than there are cores, decode and augment ahead.

        Raises, when images are taken, ValueError for a bad image, OSError where a worker process died.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if not (workers := min(loader.workers, cores)):
            return super().stream(loader)
        tasks: list[tuple[np.ndarray, np.ndarray]] = []  # of an epoch, each a batch
        # a fork server, since with threads (OpenMP, CUDA) fork would deadlock; a generator, else each epoch would draw from the global one
        start: Any = {"multiprocessing_context": "forkserver", "worker_init_fn": _end_with_main}
        start["generator"] = torch.Generator()
        start |= {"num_workers": workers, "persistent_workers": loader.train, "pin_memory": loader.labels.is_cuda}
        processes: DataLoader[Any] = DataLoader(self, batch_size=None, sampler=tasks, **start)
        # not the loader itself, in a circle: collected as one, torch's queues close first, and each worker is waited for 5 s
        device, layout = loader.device, loader.channels_last

        def images(order: Tensor, views: Tensor, parts: list[slice]) -> Iterator[Tensor]:
            indices, numbers = order.cpu().numpy(), views.cpu().numpy()
            tasks[:] = [(indices[part], numbers[part]) for part in parts]
            if not tasks:
                return
            forkserver.set_forkserver_preload([__name__, *(["datasets"] if "datasets" in sys.modules else [])])
            # workers import this before they fork; they take no signal but SIGKILL, so that a run that is told to stop can still save
            resource_tracker.ensure_running()  # else the server starts it, which would lift the block
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
            forkserver.ensure_running()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            batches: Any = iter(processes)
            for worker in batches._workers:  # else torch and multiprocessing send SIGTERM at exit, and wait for ever
                worker._popen.terminate = worker._popen.kill
            left = weakref.ref(batches)  # registered after torch and multiprocessing, it ends workers before they do
            atexit.register(lambda: (it := left()) and it._shutdown_workers())
            try:
                for pixels in batches:
                    yield self._normalised(pixels, device, layout)
            except (RuntimeError, EOFError, OSError) as error:  # the last two: it died while it handed over a batch
                if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                    raise
                reasons = 'killed, out of memory (then lower trainer.workers), or no `if __name__ == "__main__":`'
                raise OSError(f"a data worker died: {reasons} ({error!r})") from error

        return images


def _end_with_main(_worker: int) -> None:
    """In a worker: end with the main process, also after SIGKILL; torch would wait for the end of the fork server."""
    main: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: wait([main.sentinel]) and os._exit(1), daemon=True).start()
