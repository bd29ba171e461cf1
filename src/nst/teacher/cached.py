"""Targets read from a teacher cache: from the device's memory, the host's, or the disk, by size."""

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nst.data.batch import Batch
from nst.data.progress import Progress
from nst.distiller import Targets
from nst.teacher.available import available_memory
from nst.teacher.cache import TeacherCache
from nst.teacher.layout import Array

Residence = Literal["device", "host", "disk"]
SHARE = 0.5  # of the free memory, at most, for cached targets
PREFETCH_BATCHES = 4  # batches gathered ahead, if the arrays are not in the device's memory


class CachedTeacher:
    """Looks up the targets of each image view of a batch; the teacher itself is not needed."""

    def __init__(
        self,
        cache: TeacherCache,
        needed: Sequence[Array],
        subset: Tensor,
        device: torch.device,
        ranks: int = 1,
        residence: str = "auto",
    ) -> None:
        """Open the arrays, in memory where they fit, and check them against the manifest.

        Arrays in memory are checked completely; of arrays on disk only the first and the last view.

        Args:
            needed: arrays that are complete in the cache.
            subset: [images, views] view numbers, ascending in each row.
            device: of the batches.
            ranks: processes that share this machine's memory.
            residence: where the arrays are kept: "device", "host", "disk", or "auto": by size.

        Raises:
            ValueError: a file does not have the content that the manifest says.
        """
        self.images, self.needed, self.device = cache.images, tuple(needed), device
        unique = {array.name: array for array in needed}
        size = sum(cache.bytes(array.shape) for array in unique.values())
        self.residence = choose_residence(size, device, ranks) if residence == "auto" else residence
        self.arrays = {name: self._open(cache, name) for name in unique}
        all_views = bool((subset == torch.arange(subset.shape[1])).all())
        self.subset = None if all_views else subset.to(device)  # None: all views, so a view's number is its slot
        direct = self.residence == "device" or (self.residence == "host" and device.type == "cpu")
        self.prefetch_batches = 0 if direct else PREFETCH_BATCHES
        self._pool = None if direct else ThreadPoolExecutor(2)
        self._prefetched: deque[tuple[Batch, Future[dict[str, Tensor]]]] = deque()

    def _open(self, cache: TeacherCache, name: str) -> Tensor:
        """An array as `[views · images, ...]`."""
        # torch wants a writable array; copy-on-write leaves the file unchanged
        memory = np.load(cache.file(name), mmap_mode="c")
        if self.residence == "disk":
            for slot in {0, cache.views - 1}:
                cache.check(name, slot, cache.digest(name, slot))
            return torch.from_numpy(memory).flatten(0, 1)
        dtype = torch.float16 if cache.dtype == np.float16 else torch.float32
        place = self.device if self.residence == "device" else torch.device("cpu")
        tensor = torch.empty(memory.shape, dtype=dtype, device=place)
        with Progress(f"reading {cache.views} views of {name} from {cache.folder}", cache.views, " views") as progress:
            for slot in range(cache.views):
                view = np.array(memory[slot])
                cache.check(name, slot, hashlib.sha256(view.data).hexdigest())
                tensor[slot].copy_(torch.from_numpy(view))
                progress.update(1)
        return tensor.flatten(0, 1)

    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, by spec key; in the cache's dtype."""
        if self._prefetched and self._prefetched[0][0] is batch:
            arrays = self._prefetched.popleft()[1].result()
        else:
            arrays = self._gather(self.rows(batch))
        targets: Targets = {}
        for array in self.needed:
            targets.setdefault(array.spec, {})[array.tensor] = arrays[array.name]
        return targets

    def prefetch(self, batch: Batch) -> None:
        """Gather a later batch on another thread."""
        if self._pool is not None:
            self._prefetched.append((batch, self._pool.submit(self._gather, self.rows(batch))))

    def compile(self, batch_size: int) -> None:
        """A lookup has nothing to compile."""

    def rows(self, batch: Batch) -> Tensor:
        """Rows of the batch's image views in the arrays: [B] int64."""
        if self.subset is None:
            return batch.views * self.images + batch.indices
        slots = (self.subset[batch.indices] < batch.views[:, None]).sum(1)
        return slots * self.images + batch.indices

    def _gather(self, rows: Tensor) -> dict[str, Tensor]:
        if self._pool is None:
            return {name: values.index_select(0, rows) for name, values in self.arrays.items()}
        on_host = rows.cpu()
        gathered = {name: values.index_select(0, on_host) for name, values in self.arrays.items()}
        if self.device.type == "cpu":
            return gathered
        return {name: values.pin_memory().to(self.device, non_blocking=True) for name, values in gathered.items()}


def choose_residence(size: int, device: torch.device, ranks: int) -> Residence:
    """The device's memory, else the host's, else the disk: the first where `size` bytes take at most half of what is free."""
    if device.type == "cuda" and size <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "host" if size * ranks <= SHARE * available_memory() else "disk"
