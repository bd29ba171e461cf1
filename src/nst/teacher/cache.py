"""The teacher cache: targets of every image in K views, computed once and read by all later runs.

A folder with `manifest.json`, which says what it is of, and for each (layer, target, tensor) a memory-mapped array of records
`[images, views]`: a row's CRC-32 and its values. So a killed writer continues with the rows that do not have their checksum, and
damage is found in the row that is read. Until it is complete, an array's file ends in `.part`.
"""

import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain, islice
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.filesize import decimal
from torch import Tensor

from nst.config import differences
from nst.data.batch import Batch, Loader, counted
from nst.dist import Dist
from nst.distiller import Targets, TargetSpec
from nst.files import naming, write_whole
from nst.layers import LOGITS
from nst.losses import Shape
from nst.signals import Interrupted, stop_flag
from nst.teacher.live import BatchAndTargets, LiveTeacher

VERSION = 4
MANIFEST = "manifest.json"
SPARE = 100_000_000  # bytes to leave free on the disk
READ_AHEAD = 4  # batches read while the student trains


@dataclass(frozen=True)
class CachedArray:
    """One tensor of one target, as a cache holds it: `[images, views, *shape]`."""

    spec: str  # key of the target's spec
    tensor: str  # its name in the target
    name: str  # of the array: arrays of one name have the same values, whichever loss needs them
    shape: Shape  # of one image in one view


def cached_arrays(spec: TargetSpec, path: str, teacher_shape: Shape) -> list[CachedArray]:
    """The arrays behind a spec, whose loss has a `target_key`.

    Args:
        path: the layer as a module path of the teacher, so that different names of one layer share an array.
        teacher_shape: of one image's feature at the layer.
    """
    # What the target of logits is does not depend on the student's maps.
    size = "" if path == LOGITS else "x".join(str(side) for side in spec.student_shape[1:])
    stem = ".".join(part for part in (path.replace(":", "_"), spec.loss.target_key, size) if part)
    shapes = spec.loss.target_shapes(spec.student_shape, teacher_shape)
    return [CachedArray(spec.key, tensor, f"{stem}.{tensor}", shape) for tensor, shape in shapes.items()]


def why_live(spec: TargetSpec, teacher_shape: Shape, large: bool) -> str | None:
    """Why a target is not cached but computed by the live teacher; None if it is: with `large`, also if it is as large as the feature."""
    # a `target_key` that is inherited by a class with a `target` of its own does not count
    level = next(level for level in type(spec.loss).__mro__ if {"target", "target_key"} & vars(level).keys())
    if "target_key" not in vars(level) or spec.loss.target_key is None:
        return "its loss does not say what its target depends on (target_key)"
    values = sum(prod(shape) for shape in spec.loss.target_shapes(spec.student_shape, teacher_shape).values())
    feature = prod((teacher_shape[0], *spec.student_shape[1:]))  # at the size at which it is compared
    if large or spec.loss.on_logits or spec.layer == LOGITS or values < feature:
        return None
    return f"its target has {values:,} values an image and view, the feature {feature:,}; cache.large=true caches it"


@dataclass
class TeacherCache:
    """The cached targets of one teacher on one training set; nothing is written before `write_cache`.

    Raises:
        ValueError: the folder holds a cache with another key (the fields are named), or is damaged.
    """

    folder: Path
    key: dict[str, Any]  # what the targets depend on besides the losses (teacher, data, views), as plain values
    images: int  # in the training set
    views: int  # cached of each image
    dtype: str  # "float16" or "float32"

    def __post_init__(self) -> None:
        self.rows = self.images * self.views  # of each array; row `index · views + slot`
        self.key = {"version": VERSION, **json.loads(json.dumps(self.key))}
        self.teacher: dict[str, Any] | None = None  # name, weights and accuracy of the teacher
        self.arrays: dict[str, np.ndarray] = {}  # complete ones, memory-mapped: [rows] records of `crc` and `value`
        self.load()

    def load(self) -> None:
        """Read what the folder holds, also again: another process may have written. Raises ValueError as the constructor."""
        manifest = read_manifest(self.folder)
        if not manifest["key"]:
            return
        if different := differences(manifest["key"], self.key):
            remedy = "name another cache.path, or delete it"
            raise ValueError(f"the teacher cache {self.folder} is of something else: {'; '.join(different)}; {remedy}")
        self.teacher = manifest["teacher"] or self.teacher
        self.arrays = {file.stem: open_rows(file) for file in sorted(self.folder.glob("*.npy"))}

    def file(self, name: str, part: str = "") -> Path:
        """Of an array; with ".part" while it is written."""
        return self.folder / f"{name}.npy{part}"

    def record(self, shape: Shape) -> np.dtype:
        """A row of this shape and its CRC-32, which is 0 where the row is not written yet."""
        return np.dtype([("crc", "<u4"), ("value", self.dtype, shape)])

    def missing(self, needed: Sequence[CachedArray]) -> list[CachedArray]:
        """The arrays that are not complete, each name once."""
        return [array for name, array in {array.name: array for array in needed}.items() if name not in self.arrays]

    def write(self, file: BinaryIO, array: CachedArray, first: int, target: Tensor) -> None:
        """The rows from `first` on, `[B, ...]`, with their checksums, to a plain file: on a full disk a memory map would end the process.

        Raises:
            ValueError: of another shape than the loss says, or not finite in the cache's dtype.
        """
        stored = target.to(getattr(torch, self.dtype))
        term = f"loss.{array.spec.split(':')[0]}: its target {array.name}"
        if (shape := tuple(target.shape[1:])) != array.shape:
            raise ValueError(f"{term} has shape {shape} an image, its target_shapes says {array.shape}")
        if not torch.isfinite(stored).all():
            hint = "cache.dtype=float32 may hold it" if torch.isfinite(target).all() else "check teacher.weights"
            raise ValueError(f"{term} is not finite in {self.dtype}: {hint}")
        records = np.zeros(len(target), self.record(array.shape))
        records["value"] = stored.cpu().numpy()
        records["crc"] = [checksum(value) for value in records["value"]]
        with naming(self.file(array.name)):
            file.seek((first - self.rows) * records.itemsize, os.SEEK_END)
            file.write(records.tobytes())
            file.flush()

    def read(self, name: str, rows: np.ndarray | slice) -> np.ndarray:
        """Rows of an array that is complete. Raises ValueError, naming the file, for one that does not have its checksum."""
        records = self.arrays[name][rows]
        if not is_whole(records).all():
            raise ValueError(f"{self.file(name)} is damaged: a row does not have its checksum; delete it")
        return np.ascontiguousarray(records["value"])

    def check(self) -> str:
        """What it holds, one line an array. Raises ValueError, naming the file, for a row that does not have its checksum."""
        for name in self.arrays:
            self.read(name, ~whole_rows(self.file(name)))
        return "\n".join(f"{name}: {self.rows:,} rows, {decimal(array.nbytes)}" for name, array in self.arrays.items())


def read_manifest(folder: str | PathLike[str]) -> dict[str, Any]:
    """The `key` of a cache and facts about its `teacher`; {} and None where there is none. Raises ValueError if it is damaged."""
    file = Path(folder) / MANIFEST
    try:
        manifest = json.loads(file.read_text())
        return {part: manifest[part] for part in ("key", "teacher")}
    except FileNotFoundError:
        return {"key": {}, "teacher": None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); delete the folder to have it built again") from error


def checksum(value: np.ndarray) -> int:
    """CRC-32 of a row, never 0."""
    return zlib.crc32(value.tobytes()) or 1


def is_whole(records: np.ndarray) -> np.ndarray:
    """`[n]` bool: which rows are written and have their checksum."""
    rows = zip(records["crc"].tolist(), records["value"], strict=True)
    return np.array([crc and crc == checksum(value) for crc, value in rows], bool)


def open_rows(file: Path) -> np.ndarray:
    """All records of a file, memory-mapped. Raises ValueError if it is damaged."""
    try:
        return np.load(file, mmap_mode="r").reshape(-1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it") from error


def whole_rows(file: Path) -> np.ndarray:
    """As `is_whole`, of all rows in a file."""
    records = open_rows(file)
    blocks = [records[first : first + 1000] for first in range(0, len(records), 1000)]
    return np.concatenate([is_whole(block) for block in counted(blocks, f"checking {file}", len(records), " rows")])


def write_cache(
    cache: TeacherCache, teacher: LiveTeacher, loader: Loader, subset: Tensor, needed: Sequence[CachedArray], dist: Dist
) -> None:
    """Complete these arrays; rows that are written already stay. Collective.

    Several ranks, all of which see the folder, share the batches that a single process would make; another number may continue.

    Args:
        teacher: its target specs include those of the arrays.
        loader: of the training set, of a single process.
        subset: [images, views] view numbers, from `split.view_subset`.

    Raises:
        ValueError: the disk is too small; a target is not finite in the cache's dtype.
        Interrupted: by a signal, after saving.
    """
    signum, lock, tries = 0, FileLock(cache.folder / "lock"), 0
    if dist.main:
        cache.folder.mkdir(parents=True, exist_ok=True)
    try:
        while dist.max(int(dist.main and not lock.is_locked)) == [1]:  # each second while the first rank waits
            if dist.main and tries == 1:
                print(f"another process is writing {cache.folder}; waiting for it", flush=True)
            with suppress(Timeout):
                if dist.main:
                    lock.acquire(timeout=min(tries, 1))
            tries += 1
        cache.load()
        missing, undone = cache.missing(needed), np.zeros(cache.rows, bool)
        paths = [cache.file(array.name, ".part") for array in missing]
        if dist.main:
            manifest = {"key": cache.key, "teacher": cache.teacher}
            write_whole(cache.folder / MANIFEST, json.dumps(manifest, indent=1).encode())
            for array, path in zip(missing, paths, strict=True):
                if not path.is_file():
                    shape, made = (cache.images, cache.views), path.with_suffix(".tmp")
                    np.lib.format.open_memmap(made, "w+", cache.record(array.shape), shape)
                    made.rename(path)
        dist.barrier()
        for path in paths:
            undone |= ~whole_rows(path)
        left = int(undone.sum()) * sum(cache.record(array.shape).itemsize for array in missing)
        if left and left + SPARE > (free := shutil.disk_usage(cache.folder).free):
            raise ValueError(f"{cache.folder} needs {decimal(left)} more, {decimal(free)} are free; lower cache.views")
        dist.barrier()  # none writes while another looks

        # this rank's contiguous share of the batches in which a row is missing
        size = loader.batch_size
        starts = np.unique(np.flatnonzero(undone) // size) * size
        rounds = -(-len(starts) // dist.world)  # ranks that have fewer batches wait in the last one
        starts = starts[len(starts) * dist.rank // dist.world : len(starts) * (dist.rank + 1) // dist.world]
        rows = torch.from_numpy(np.concatenate([np.arange(s, min(s + size, cache.rows)) for s in starts] or [starts]))
        indices, slots = rows // cache.views, rows % cache.views
        parts = [slice(first, first + size) for first in range(0, len(rows), size)]
        batches = loader.batches(indices, subset[indices, slots].long(), parts)
        batches = counted(batches, f"writing the teacher cache {cache.folder}", len(rows), " views")
        results = zip(starts.tolist(), teacher.add_targets((batch, {}) for batch in batches), strict=True)

        with stop_flag() as flag, ExitStack() as stack:
            files = [stack.enter_context(path.open("r+b")) for path in paths]
            for _ in range(rounds):
                for start, (_, targets) in islice(results, 1):
                    for array, file in zip(missing, files, strict=True):
                        cache.write(file, array, start, targets[array.spec][array.tensor])
                (signum,) = dist.max(flag.signum)
                if signum:
                    break
            for file in files:
                os.fsync(file.fileno())
        dist.barrier()
        if dist.main and not signum:
            for array, path in zip(missing, paths, strict=True):
                path.rename(cache.file(array.name))
        dist.barrier()
        cache.load()
    finally:
        lock.release()
    if signum:
        raise Interrupted(signum)


@dataclass
class CachedTeacher:
    """Looks up the targets of each image view of a batch in memory-mapped arrays; the teacher itself is not needed."""

    cache: TeacherCache
    needed: Sequence[CachedArray]  # complete in the cache
    subset: Tensor  # [images, views] view numbers, ascending in each row
    device: torch.device  # of the targets

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
        with ThreadPoolExecutor(1) as thread:
            for pair in chain(batches, [None] * READ_AHEAD):
                if pair is not None:
                    waiting.append((*pair, thread.submit(self, pair[0])))
                if waiting and (pair is None or len(waiting) > READ_AHEAD):
                    batch, targets, read = waiting.popleft()
                    yield batch, targets | read.result()
