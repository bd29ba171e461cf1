"""The teacher cache: targets of every image in K views, computed once and read by all later runs.

A folder with one memory-mapped array of records `[images, views]` for each (layer, target, tensor), so that losses with equal
targets share it, and `manifest.json`, which says what they are of: the teacher's weights, the data, the view numbering, the dtype,
and how many rows of each array are written.

A record is a row's CRC-32 and its values. So a killed writer continues with the rows that do not have their checksum, each rank
writes its own rows without asking the others, and damage is found in the row that is read.
"""

import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from nst.config import differences
from nst.data.batch import Batch, Loader, progress_bar
from nst.dist import Dist
from nst.distiller import Targets, TargetSpec
from nst.files import locked, naming, write_whole
from nst.layers import LOGITS
from nst.losses import Shape
from nst.signals import Interrupted, stop_flag
from nst.teacher.live import BatchAndTargets, LiveTeacher

VERSION = 3
MANIFEST = "manifest.json"
SPARE = 100_000_000  # bytes to leave free on the disk
READ_AHEAD = 4  # batches read while the student trains
ROWS_TOLERANCE = 0.1  # of a target's largest value, between a cache and its teacher; bfloat16 differs by a few percent between machines


@dataclass(frozen=True)
class CachedArray:
    """One tensor of one target, as a cache holds it: `[images, views, *shape]`."""

    spec: str  # key of the target's spec
    tensor: str  # its name in the target
    name: str  # of the array: arrays of one name have the same values, whichever loss needs them
    shape: Shape  # of one image in one view

    @property
    def term(self) -> str:
        """The configuration's key of the term that needs it."""
        return f"loss.{self.spec.split(':')[0]}"


def cached_arrays(spec: TargetSpec, path: str, teacher_shape: Shape) -> list[CachedArray]:
    """The arrays behind a spec.

    Args:
        spec: of a loss with a `target_key`.
        path: the layer as a module path of the teacher, so that different names of one layer share an array.
        teacher_shape: of one image's feature at the layer.
    """
    # What the target of logits is does not depend on the student's maps.
    size = "" if path == LOGITS else "x".join(str(side) for side in spec.student_shape[1:])
    parts = [path.replace(":", "_"), spec.loss.target_key or "", size]
    stem = ".".join(part for part in parts if part)
    shapes = spec.loss.target_shapes(spec.student_shape, teacher_shape)
    return [CachedArray(spec.key, tensor, f"{stem}.{tensor}", shape) for tensor, shape in shapes.items()]


def why_live(spec: TargetSpec, teacher_shape: Shape, large: bool) -> str | None:
    """Why a target is not cached but computed by the live teacher; None if it is cached.

    Args:
        teacher_shape: of one image's feature at the layer.
        large: cache targets that are as large as the feature, too.
    """
    # a `target_key` that is inherited by a class with a `target` of its own does not count
    level = next(level for level in type(spec.loss).__mro__ if {"target", "target_key"} & vars(level).keys())
    if "target_key" not in vars(level) or spec.loss.target_key is None:
        return "its loss does not say what its target depends on (target_key)"
    values = sum(prod(shape) for shape in spec.loss.target_shapes(spec.student_shape, teacher_shape).values())
    feature = prod((teacher_shape[0], *spec.student_shape[1:]))  # at the size at which it is compared
    if large or spec.loss.on_logits or spec.layer == LOGITS or values < feature:
        return None
    return f"its target has {values:,} values an image and view, the feature {feature:,}; cache.large=true caches it all the same"


class TeacherCache:
    """The cached targets of one teacher on one training set."""

    def __init__(
        self, folder: str | PathLike[str], key: Mapping[str, Any], images: int, views: int, dtype: str
    ) -> None:
        """Open a cache, or describe one that does not exist yet; nothing is written.

        Args:
            key: what the targets depend on besides the losses (teacher, data, views), as plain values.
            images: in the training set.
            views: cached of each image.
            dtype: "float16" or "float32".

        Raises:
            ValueError: the folder holds a cache with another key (the fields are named), or is damaged.
        """
        self.folder, self.images, self.views, self.dtype = Path(folder), images, views, np.dtype(dtype)
        self.rows = images * views  # of each array; row `index · views + slot`
        self.key = {"version": VERSION, **json.loads(json.dumps(key))}
        self.teacher: dict[str, Any] | None = None  # name, weights and accuracy of the teacher
        self.state: dict[str, dict[str, Any]] = {}  # array → shape of a row, rows written
        self.arrays: dict[str, np.ndarray] = {}  # memory-mapped, [rows] records of `crc` and `value`
        self.reload()

    def reload(self) -> None:
        """Read the manifest again: another process may have written. Raises ValueError as the constructor."""
        if not (self.folder / MANIFEST).is_file():
            return
        manifest = read_manifest(self.folder)
        if different := differences(manifest["key"], self.key):
            raise ValueError(
                f"the teacher cache {self.folder} is of something else: {'; '.join(different)}. Choose another "
                "cache.path, or delete the folder to have it built again"
            )
        self.teacher = manifest["teacher"] or self.teacher
        self.state = {name: state for name, state in manifest["arrays"].items() if self.file(name).is_file()}
        for name, state in self.state.items():
            file, needed = self.file(name), self.record(state["shape"])
            try:
                array = np.load(file, mmap_mode="r")
                if (array.shape, array.dtype) != ((self.images, self.views), needed):
                    raise ValueError(f"it holds {array.shape} {array.dtype}, not {(self.images, self.views)} {needed}")
            except (OSError, ValueError) as error:
                raise ValueError(f"{file} is damaged ({error}); delete it to have it computed again") from error
            self.arrays[name] = array.reshape(-1)

    def file(self, name: str) -> Path:
        """Of an array."""
        return self.folder / f"{name}.npy"

    def record(self, shape: Sequence[int]) -> np.dtype:
        """A row of this shape and its CRC-32, which is 0 where the row is not written yet."""
        return np.dtype([("crc", "<u4"), ("value", self.dtype, tuple(shape))])

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of an array whose rows have this shape."""
        return self.rows * self.record(shape).itemsize

    def missing(self, needed: Sequence[CachedArray]) -> list[CachedArray]:
        """The arrays that are not complete, each name once. Raises ValueError for one that is there with another shape."""
        unique = {array.name: array for array in needed}
        for name, array in unique.items():
            if name in self.state and (shape := tuple(self.state[name]["shape"])) != array.shape:
                raise ValueError(
                    f"{self.file(name)} has {shape} an image, {array.term} now gives {array.shape}: its code has changed; delete the "
                    "file to have it computed again"
                )
        return [array for array in unique.values() if self.rows_written(array.name) < self.rows]

    def rows_written(self, name: str) -> int:
        """Rows of an array that are on disk, by the manifest."""
        return self.state[name]["rows"] if name in self.state else 0

    def create(self, missing: Sequence[CachedArray]) -> None:
        """Make the files of these arrays where there are none.

        Raises:
            ValueError: the disk is too small; names the needed and the free space.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        left = sum(self.size(a.shape) * (self.rows - self.rows_written(a.name)) // self.rows for a in missing)
        free = shutil.disk_usage(self.folder).free
        if left + SPARE > free:
            raise ValueError(
                f"the teacher cache {self.folder} needs {decimal(left)} more, the disk has {decimal(free)} free; ask for fewer cache.views "
                f"(now {self.views}) or another cache.path"
            )
        for array in missing:
            if array.name not in self.state:
                shape = (self.images, self.views)
                np.lib.format.open_memmap(self.file(array.name), "w+", self.record(array.shape), shape)
                self.state[array.name] = {"shape": list(array.shape), "rows": 0}
        self.save()

    def save(self) -> None:
        """Write the manifest."""
        manifest = {"key": self.key, "teacher": self.teacher, "arrays": self.state}
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    @contextmanager
    def locked(self, dist: Dist) -> Iterator[None]:
        """Lock the cache for writing by these ranks, once no other process writes it. Collective."""
        waiting = f"another process is writing {self.folder}; waiting for it"
        with locked(self.folder / "lock", lambda: dist.max(1), waiting) if dist.main else nullcontext():
            while dist.max(0) != [0]:  # 1 each second while the first rank waits
                pass
            self.reload()
            yield

    def write(self, file: BinaryIO, array: CachedArray, first: int, target: Tensor) -> None:
        """The rows from `first` on, `[B, ...]`, with their checksums.

        A plain file: on a full disk a memory map would end the process.

        Raises:
            ValueError: of another shape than the loss says, or not finite in the cache's dtype.
        """
        if target.shape[1:] != array.shape:
            raise ValueError(
                f"{array.term}: its target gives {array.tensor!r} of shape {tuple(target.shape[1:])} an image, its target_shapes {array.shape}; "
                "what relates images belongs into forward"
            )
        stored = target.to(getattr(torch, self.dtype.name))
        if not torch.isfinite(stored).all():
            reason = "values that are not finite: the teacher itself gives them; check teacher.weights, teacher.precision, .mean and .std"
            if torch.isfinite(target).all():
                largest = f"{target.abs().max():.3g}"
                reason = f"values up to {largest}, more than float16 can hold (65,504); use cache.dtype=float32 or cache.views=0"
            raise ValueError(f"{array.term}: its target {array.name} has {reason}")
        records = np.zeros(len(target), self.record(array.shape))
        records["value"] = stored.cpu().numpy()
        records["crc"] = [checksum(value) for value in records["value"]]
        with naming(self.file(array.name)):
            file.seek((first - self.rows) * records.itemsize, os.SEEK_END)
            file.write(records.tobytes())
            file.flush()

    def read(self, name: str, rows: np.ndarray | slice) -> np.ndarray:
        """Rows of an array. Raises ValueError, naming the file, for one that was not written or does not have its checksum."""
        records = self.arrays[name][rows]
        if not (whole := is_whole(records)).all():
            there = records["crc"][~whole].any()
            what = "is damaged: a row does not have its checksum" if there else "is not complete: a row is missing"
            raise ValueError(f"{self.file(name)} {what}; delete it to have it computed again")
        return np.ascontiguousarray(records["value"])

    def whole(self, name: str) -> np.ndarray:
        """`[rows]` bool: which rows of an array have their checksum. Reads all of it."""
        with progress_bar(f"checking {self.file(name)}", self.rows, " rows") as progress:
            parts = []
            for first in range(0, self.rows, 1000):
                parts.append(is_whole(self.arrays[name][first : first + 1000]))
                progress.update(len(parts[-1]))
        return np.concatenate(parts)

    def check(self) -> str:
        """What it holds, one line an array. Raises ValueError for the first complete array with a row that does not have its checksum."""
        lines = []
        for name, state in self.state.items():
            count = int(self.whole(name).sum())
            if count < state["rows"]:
                self.read(name, ~self.whole(name))
            lines.append(f"{name}: {count:,} of {self.rows:,} rows, {decimal(self.size(state['shape']))}")
        return "\n".join(lines)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache: its key, facts about the teacher, its arrays. Raises ValueError if it is damaged."""
    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        return {part: manifest[part] for part in ("key", "teacher", "arrays")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged, or of another version ({error!r}); delete the folder to have it built again"
        ) from error


def checksum(value: np.ndarray) -> int:
    """CRC-32 of a row, never 0."""
    return zlib.crc32(value.tobytes()) or 1


def is_whole(records: np.ndarray) -> np.ndarray:
    """`[n]` bool: which rows are written and have their checksum."""
    found = [
        crc and crc == checksum(value) for crc, value in zip(records["crc"].tolist(), records["value"], strict=True)
    ]
    return np.array(found, bool)


def compare_with_teacher(
    cache: TeacherCache, teacher: LiveTeacher, images: Tensor, needed: Sequence[CachedArray]
) -> None:
    """Compare the rows of the first images in their first view with what the teacher gives now.

    A cache's key does not contain code: this finds one from before a change in the code of the network or of a loss.

    Args:
        teacher: its target specs include those of the arrays.
        images: [B, C, H, W], the first training images in their first cached view.

    Raises:
        ValueError: they differ by more than rounding; names the array. Or a row is damaged.
    """
    targets = teacher.targets(images)
    first = slice(0, len(images) * cache.views, cache.views)
    for array in (array for array in needed if cache.rows_written(array.name) == cache.rows):
        rows = cache.read(array.name, first)
        now = targets[array.spec][array.tensor].float().cpu()
        difference = float((now - torch.from_numpy(rows.astype(np.float32))).abs().max())
        if not difference <= ROWS_TOLERANCE * (largest := float(now.abs().max())):
            raise ValueError(
                f"the teacher cache {cache.folder} is not of this teacher any more: {array.name} of the first {len(images)} images "
                f"differs by up to {difference:.3g} (largest value: {largest:.3g}). If the code of the network or of {array.term} has "
                "changed, delete the folder to have it built again, or name another cache.path; weights that were trained with the "
                "network's old code stay as they are"
            )


def write_cache(
    cache: TeacherCache,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    needed: Sequence[CachedArray],
    dist: Dist,
) -> None:
    """Complete these arrays; rows that are written already stay. Collective.

    Several ranks share the batches. Each batch is the one that a single process would make, so the arrays do not depend on the
    number of ranks, and another number of them may continue.

    Args:
        teacher: its target specs include those of the arrays; afterwards they are those that were missing.
        loader: of the training set, of a single process.
        subset: [images, views] view numbers, from `split.view_subset`.
        dist: the ranks, all of which see the folder.

    Raises:
        ValueError: the disk is too small; a target is not finite in the cache's dtype.
        Interrupted: by a signal, after saving.
    """
    with cache.locked(dist):
        missing, undone = cache.missing(needed), np.zeros(cache.rows, bool)
        for array in missing:
            undone |= ~cache.whole(array.name) if array.name in cache.arrays else True
        dist.barrier()
        if dist.main:
            cache.create(missing)
        dist.barrier()
        cache.reload()
        keys = {array.spec for array in missing}
        teacher.set_target_specs([spec for spec in teacher.target_specs if spec.key in keys])

        # this rank's contiguous share of the batches in which a row is missing
        size, before = loader.batch_size, int(undone.sum())
        starts = np.unique(np.flatnonzero(undone) // size) * size
        rounds = -(-len(starts) // dist.world)  # ranks that have fewer batches wait in the last one
        starts = starts[len(starts) * dist.rank // dist.world : len(starts) * (dist.rank + 1) // dist.world]
        rows = torch.from_numpy(np.concatenate([np.arange(s, min(s + size, cache.rows)) for s in starts] or [starts]))
        indices, slots = rows // cache.views, rows % cache.views
        parts = [slice(first, first + size) for first in range(0, len(rows), size)]
        batches = loader.batches(indices, subset[indices, slots].long(), parts)
        results = zip(starts.tolist(), teacher.add_targets((batch, {}) for batch in batches), strict=True)

        signum = 0
        with ExitStack() as stack:
            title = f"writing the teacher cache {cache.folder}"
            progress, flag = (
                stack.enter_context(progress_bar(title, len(rows), " views")),
                stack.enter_context(stop_flag()),
            )
            files = [stack.enter_context(cache.file(array.name).open("r+b")) for array in missing]
            for _ in range(rounds):
                for start, (batch, targets) in islice(results, 1):
                    for array, file in zip(missing, files, strict=True):
                        cache.write(file, array, start, targets[array.spec][array.tensor])
                    undone[start : start + len(batch.indices)] = False
                    progress.update(len(batch.indices))
                (signum,) = dist.max(flag.signum)
                if signum:
                    break
            for file in files:
                os.fsync(file.fileno())
        left = before - int(sum(written for (written,) in dist.gather(before - int(undone.sum()))))
        if dist.main:
            for array in missing:
                cache.state[array.name]["rows"] = cache.rows - left
            cache.save()
        dist.barrier()
        cache.reload()
    if signum:
        raise Interrupted(signum)


class CachedTeacher:
    """Looks up the targets of each image view of a batch in memory-mapped arrays; the teacher itself is not needed."""

    def __init__(
        self, cache: TeacherCache, needed: Sequence[CachedArray], subset: Tensor, device: torch.device
    ) -> None:
        """Read from a cache.

        Args:
            needed: arrays that are complete in the cache.
            subset: [images, views] view numbers, ascending in each row.
            device: of the targets.
        """
        self.cache, self.needed, self.subset, self.device = cache, tuple(needed), subset, device

    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, by spec key, in the cache's dtype. Raises ValueError for a damaged row."""
        indices, views = torch.stack([batch.indices, batch.views]).cpu()
        rows = (indices * self.cache.views + (self.subset[indices] < views[:, None]).sum(1)).numpy()
        read: dict[str, Tensor] = {}
        for name in dict.fromkeys(array.name for array in self.needed):
            value = torch.from_numpy(self.cache.read(name, rows))
            read[name] = value if self.device.type == "cpu" else value.pin_memory().to(self.device, non_blocking=True)
        targets: Targets = {}
        for array in self.needed:
            targets.setdefault(array.spec, {})[array.tensor] = read[array.name]
        return targets

    def add_targets(self, batches: Iterable[BatchAndTargets]) -> Iterator[BatchAndTargets]:
        """Each batch with its targets added; the next few batches are read on another thread meanwhile."""
        waiting: deque[tuple[Batch, Targets, Any]] = deque()

        def first() -> BatchAndTargets:
            batch, targets, read = waiting.popleft()
            return batch, targets | read.result()

        with ThreadPoolExecutor(1) as thread:
            for batch, targets in batches:
                waiting.append((batch, targets, thread.submit(self, batch)))
                if len(waiting) > READ_AHEAD:
                    yield first()
            while waiting:
                yield first()
