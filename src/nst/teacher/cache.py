"""The teacher cache: targets of every image in K views, computed once and read by all later runs.

A folder with one memory-mapped array `[images, views, …]` for each (layer, target, tensor), so that losses with equal targets
share it, and `manifest.json`, which says what they are of: the teacher's weights, the data, the view numbering, the dtype, and
how many rows of each array are written.

Beside each array lie the CRC-32 of its rows, `[images, views]`, 0 where a row is not written yet. A checksum is written
only after its row is on disk. So a killed writer continues where it was, each rank writes its own rows without asking the others,
and damage is found in the row that is read.
"""

import json
import os
import shutil
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from nst.config import differences
from nst.data.batch import Batch, Loader
from nst.data.progress import Progress
from nst.dist import Dist
from nst.distiller import Targets, TargetSpec
from nst.files import naming, write_whole
from nst.layers import LOGITS
from nst.losses import Shape, TransferLoss
from nst.signals import Interrupted, stop_flag
from nst.teacher.live import BatchAndTargets, LiveTeacher

VERSION = 2
MANIFEST = "manifest.json"
SPARE = 100_000_000  # bytes to leave free on the disk
SYNC_SECONDS = 10.0  # at most this much work is lost when writing is killed
READ_AHEAD = 4  # batches read while the student trains
ROWS_TOLERANCE = 0.1  # of a target's largest value, between a cache and its teacher; bfloat16 differs by a few percent between machines


@dataclass(frozen=True)
class CachedArray:
    """One tensor of one target, as a cache holds it: `[images, views, *shape]`."""

    spec: str  # key of the target's spec
    tensor: str  # its name in the target
    name: str  # of the array: arrays of one name have the same values, whichever loss needs them
    shape: Shape  # of one image in one view


def cached_arrays(spec: TargetSpec, path: str, teacher_shape: Shape) -> list[CachedArray]:
    """The arrays behind a spec.

    Args:
        spec: of a loss with a `target_key`.
        path: the layer as a module path of the teacher, so that different names of one layer share an array.
        teacher_shape: of one image's feature at the layer.
    """
    loss_spec = spec.loss.spec(spec.student_shape, teacher_shape)
    # What the target of logits is does not depend on the student's maps.
    size = "" if path == LOGITS else "x".join(str(side) for side in spec.student_shape[1:])
    parts = [path.replace(":", "_"), spec.loss.target_key or "", loss_spec.implementation.replace(" ", "-"), size]
    stem = ".".join(part for part in parts if part)
    return [CachedArray(spec.key, tensor, f"{stem}.{tensor}", shape) for tensor, shape in loss_spec.target.items()]


def why_live(spec: TargetSpec, teacher_shape: Shape, large: bool) -> str | None:
    """Why a target is not cached but computed by the live teacher; None if it is cached.

    Args:
        teacher_shape: of one image's feature at the layer.
        large: cache targets that are as large as the feature, too.
    """
    if not _has_target_key(spec.loss):
        return "its loss does not say what its target depends on (target_key)"
    values = sum(prod(shape) for shape in spec.loss.spec(spec.student_shape, teacher_shape).target.values())
    feature = prod((teacher_shape[0], *spec.student_shape[1:]))  # at the size at which it is compared
    if large or spec.loss.on_logits or spec.layer == LOGITS or values < feature:
        return None
    return f"its target has {values:,} values an image and view, the feature {feature:,}; cache.large=true caches it all the same"


def _has_target_key(loss: TransferLoss) -> bool:
    """Whether the loss has a `target_key`: an inherited one does not count where a subclass has a `target` of its own."""
    for level in type(loss).__mro__:
        if "target_key" in vars(level):
            return loss.target_key is not None
        if "target" in vars(level):
            return False
    return False


def readable_bytes(size: float) -> str:
    """In decimal units: 3.4 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


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
        self.key = {"version": VERSION, **json.loads(json.dumps(key))}
        self.teacher: dict[str, Any] | None = None  # name, weights and accuracy of the teacher
        self.state: dict[str, dict[str, Any]] = {}  # array → shape of a row, rows written
        self.reload()

    @property
    def rows(self) -> int:
        """Rows of each array; row `index · views + slot`."""
        return self.images * self.views

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
            self.open(self.file(name), (self.images, self.views, *state["shape"]), self.dtype)
            self.checksums(name)

    def file(self, name: str) -> Path:
        """Of an array."""
        return self.folder / f"{name}.npy"

    def open(self, file: Path, shape: Shape, dtype: np.dtype, mode: Any = "r") -> np.memmap:
        """A memory-mapped array. Raises ValueError, naming the file, if it does not have this shape and dtype or is cut off."""
        try:
            array = np.load(file, mmap_mode=mode)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it to have it computed again") from error
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{file} holds {array.dtype} {array.shape}, {dtype} {shape} is needed; delete it to have it computed again"
            )
        return array

    def checksums(self, name: str, mode: str = "r") -> np.memmap:
        """CRC-32 of each row of an array, `[images, views]` uint32; 0: not written."""
        return self.open(self.folder / f"{name}.crc.npy", (self.images, self.views), np.dtype(np.uint32), mode)

    def size(self, shape: Shape) -> int:
        """Bytes of an array whose rows have this shape."""
        return self.rows * prod(shape) * self.dtype.itemsize

    def missing(self, needed: Sequence[CachedArray]) -> list[CachedArray]:
        """The arrays that are not complete, each name once. Raises ValueError for one that is there with another shape."""
        unique = {array.name: array for array in needed}
        for name, array in unique.items():
            if name in self.state and (shape := tuple(self.state[name]["shape"])) != array.shape:
                raise ValueError(
                    f"{self.file(name)} has {shape} an image, loss.{array.spec.split(':')[0]} now gives {array.shape}: its code has "
                    "changed; delete the file to have it computed again"
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
                f"the teacher cache {self.folder} needs {readable_bytes(left)} more, the disk has "
                f"{readable_bytes(free)} free; ask for fewer cache.views (now {self.views}) or another cache.path"
            )
        for array in missing:
            if array.name not in self.state:
                shape = (self.images, self.views, *array.shape)
                np.lib.format.open_memmap(self.file(array.name), "w+", self.dtype, shape)
                checksums = np.zeros(
                    (self.images, self.views), np.uint32
                )  # really written: a map of a full disk would crash
                np.save(self.folder / f"{array.name}.crc.npy", checksums)
                self.state[array.name] = {"shape": list(array.shape), "rows": 0}
        self.save()

    def save(self) -> None:
        """Count the rows that are written, and write the manifest."""
        for name, state in self.state.items():
            if state["rows"] < self.rows:
                state["rows"] = int(np.count_nonzero(self.checksums(name)))
        manifest = {"key": self.key, "teacher": self.teacher, "arrays": self.state}
        write_whole(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())

    @contextmanager
    def locked(self, ranks: Dist) -> Iterator[None]:
        """Lock the cache for writing by these ranks, once no other process writes it. Collective."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock, said = FileLock(self.folder / "lock"), False
        try:
            while True:
                if ranks.main:
                    with suppress(Timeout):
                        lock.acquire(timeout=0)
                if ranks.max(int(ranks.main and not lock.is_locked)) == [0]:
                    break
                if ranks.main and not said:
                    print(f"another process is writing {self.folder}; waiting for it", flush=True)
                said = True
                time.sleep(1)
            self.reload()
            yield
        finally:
            lock.release()

    def check(self) -> str:
        """What it holds, one line an array. Raises ValueError for the first row that does not have its checksum."""
        lines = []
        for name, state in self.state.items():
            values, checksums = np.load(self.file(name), mmap_mode="r"), self.checksums(name)
            with Progress(f"checking {self.file(name)}", self.images) as progress:
                for index in range(self.images):
                    written = np.flatnonzero(checksums[index])
                    verify_rows(self.file(name), values[index][written], checksums[index][written])
                    progress.update(1)
            lines.append(
                f"{name}: {state['rows']:,} of {self.rows:,} rows, {readable_bytes(self.size(state['shape']))}"
            )
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


def checksum(row: np.ndarray) -> int:
    """CRC-32 of a row, never 0."""
    return zlib.crc32(row.data) or 1


def verify_rows(file: Path, rows: np.ndarray, checksums: Iterable[int]) -> None:
    """Raises ValueError, naming the file, for a row that was not written or does not have its checksum."""
    for row, expected in zip(rows, checksums, strict=True):
        if checksum(row) != expected:
            what = "is damaged: a row does not have its checksum" if expected else "is not complete: a row is missing"
            raise ValueError(f"{file} {what}; delete it to have it computed again")


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
    for array in {array.name: array for array in needed}.values():
        if cache.rows_written(array.name) < cache.rows:
            continue
        rows = np.load(cache.file(array.name), mmap_mode="r")[: len(images), 0]
        verify_rows(cache.file(array.name), rows, cache.checksums(array.name)[: len(images), 0])
        now = targets[array.spec][array.tensor].float().cpu()
        difference = float((now - torch.from_numpy(rows.astype(np.float32))).abs().max())
        if not difference <= ROWS_TOLERANCE * (largest := float(now.abs().max())):
            raise ValueError(
                f"the teacher cache {cache.folder} is not of this teacher any more: {array.name} of the first {len(images)} images "
                f"differs by up to {difference:.3g} (largest value: {largest:.3g}). If the code of the network or of "
                f"loss.{array.spec.split(':')[0]} has changed, delete the folder to have it built again, or name another cache.path; "
                "weights that were trained with the network's old code stay as they are"
            )


def write_cache(
    cache: TeacherCache,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    needed: Sequence[CachedArray],
    ranks: Dist,
) -> None:
    """Complete these arrays; rows that are written already stay. Collective.

    Several ranks share the batches. Each batch is the one that a single process would make, so the arrays do not depend on the
    number of ranks, and another number of them may continue.

    Args:
        teacher: its target specs include those of the arrays.
        loader: of the training set, of a single process.
        subset: [images, views] view numbers, from `split.view_subset`.
        ranks: all of which see the folder.

    Raises:
        ValueError: the disk is too small; a target is not finite in the cache's dtype.
        Interrupted: by a signal, after saving.
    """
    with cache.locked(ranks):
        missing = cache.missing(needed)
        if ranks.main:
            cache.create(missing)
        ranks.barrier()
        cache.reload()
        specs = teacher.target_specs
        teacher.set_target_specs([spec for spec in specs if spec.key in {array.spec for array in missing}])
        try:
            _write_share(cache, teacher, loader, subset, missing, ranks)
        finally:
            teacher.set_target_specs(specs)
        ranks.barrier()
        if ranks.main:
            cache.save()
        ranks.barrier()
        cache.reload()


def _write_share(
    cache: TeacherCache,
    teacher: LiveTeacher,
    loader: Loader,
    subset: Tensor,
    missing: Sequence[CachedArray],
    ranks: Dist,
) -> None:
    """This rank's contiguous share of the batches in which a row is missing."""
    undone = np.zeros(cache.rows, bool)
    for array in missing:
        undone |= cache.checksums(array.name).ravel() == 0
    size = loader.batch_size
    starts = np.unique(np.flatnonzero(undone) // size) * size
    rounds = -(-len(starts) // ranks.world)  # ranks that have fewer batches wait in the last one
    starts = starts[len(starts) * ranks.rank // ranks.world : len(starts) * (ranks.rank + 1) // ranks.world]
    rows = torch.from_numpy(np.concatenate([np.arange(s, min(s + size, cache.rows)) for s in starts] or [starts]))
    indices, slots = rows // cache.views, rows % cache.views
    parts = [slice(first, first + size) for first in range(0, len(rows), size)]
    batches = loader.batches(indices, subset[indices, slots].long(), parts)
    results = zip(starts.tolist(), teacher.add_targets((batch, {}) for batch in batches), strict=True)
    title = f"writing the teacher cache {cache.folder}"
    with ExitStack() as stack:
        writers = [stack.enter_context(ArrayWriter(cache, array)) for array in missing]
        progress, flag = stack.enter_context(Progress(title, len(rows), " views")), stack.enter_context(stop_flag())
        saved = time.monotonic()
        for number in range(rounds):
            for start, (batch, targets) in islice(results, 1):
                for writer in writers:
                    writer.write(start, targets[writer.array.spec][writer.array.tensor])
                progress.update(len(batch.indices))
            (signum,) = ranks.max(flag.signum)
            if signum or number == rounds - 1 or time.monotonic() - saved > SYNC_SECONDS:
                for writer in writers:
                    writer.save()
                if ranks.main:
                    cache.save()
                saved = time.monotonic()
            if signum:
                raise Interrupted(signum)


class ArrayWriter:
    """Writes rows of one array, then their checksums. A plain file: on a full disk a memory map would end the process."""

    def __init__(self, cache: TeacherCache, array: CachedArray) -> None:
        """Open the array's files, which exist."""
        self.array, self.path = array, cache.file(array.name)
        shape = (cache.images, cache.views, *array.shape)
        self.offset = cache.open(self.path, shape, cache.dtype).offset  # pyright: ignore[reportAttributeAccessIssue]
        self.row_bytes = prod(array.shape) * cache.dtype.itemsize
        self.dtype = torch.float16 if cache.dtype == np.float16 else torch.float32
        self.checksums = cache.checksums(array.name, "r+")
        self.unsaved: dict[int, list[int]] = {}  # first row → checksums of the rows from there on
        self.file = self.path.open("r+b")

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, first: int, target: Tensor) -> None:
        """The rows from `first` on: `[B, ...]`.

        Raises:
            ValueError: of another shape than the loss says, or not finite in the cache's dtype.
        """
        name = f"loss.{self.array.spec.split(':')[0]}"
        if target.shape[1:] != self.array.shape:
            raise ValueError(
                f"{name}: its target gives {self.array.tensor!r} of shape {tuple(target.shape[1:])} an image, "
                f"its spec says {self.array.shape}; what relates images belongs into forward"
            )
        stored = target.to(self.dtype)
        if not torch.isfinite(stored).all():
            if torch.isfinite(target).all():
                largest = f"{target.abs().max():.3g}"
                raise ValueError(
                    f"{name}: its target {self.array.name} has values up to {largest}, more than float16 can hold (65,504); "
                    "use cache.dtype=float32 or cache.views=0"
                )
            raise ValueError(
                f"{name}: its target {self.array.name} has values that are not finite: the teacher itself gives them; check "
                "teacher.weights, teacher.precision and teacher.mean and teacher.std"
            )
        rows = np.ascontiguousarray(stored.cpu().numpy())
        with naming(self.path):
            self.file.seek(self.offset + first * self.row_bytes)
            self.file.write(rows.data)
        self.unsaved[first] = [checksum(row) for row in rows]

    def save(self) -> None:
        """Return when all rows, then their checksums, are on disk."""
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        flat = self.checksums.reshape(-1)
        for first, checksums in self.unsaved.items():
            flat[first : first + len(checksums)] = checksums
        self.checksums.flush()
        self.unsaved = {}


class CachedTeacher:
    """Looks up the targets of each image view of a batch in memory-mapped arrays; the teacher itself is not needed."""

    def __init__(
        self, cache: TeacherCache, needed: Sequence[CachedArray], subset: Tensor, device: torch.device
    ) -> None:
        """Open the arrays.

        Args:
            needed: arrays that are complete in the cache.
            subset: [images, views] view numbers, ascending in each row.
            device: of the targets.
        """
        self.cache, self.needed, self.subset, self.device = cache, tuple(needed), subset, device
        self.arrays = {array.name: (self._rows(array), cache.checksums(array.name).ravel()) for array in needed}

    def _rows(self, array: CachedArray) -> Tensor:
        """[images · views, ...]"""
        shape = (self.cache.images, self.cache.views, *array.shape)
        # torch wants a writable array; copy-on-write leaves the file unchanged
        return torch.from_numpy(self.cache.open(self.cache.file(array.name), shape, self.cache.dtype, "c")).flatten(
            0, 1
        )

    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, by spec key, in the cache's dtype. Raises ValueError for a damaged row."""
        indices, views = torch.stack([batch.indices, batch.views]).cpu()
        rows = indices * self.cache.views + (self.subset[indices] < views[:, None]).sum(1)
        read: dict[str, Tensor] = {}
        for name, (values, checksums) in self.arrays.items():
            value = values.index_select(0, rows)
            verify_rows(self.cache.file(name), value.numpy(), checksums[rows.numpy()])
            read[name] = value if self.device.type == "cpu" else value.pin_memory().to(self.device, non_blocking=True)
        targets: Targets = {}
        for array in self.needed:
            targets.setdefault(array.spec, {})[array.tensor] = read[array.name]
        return targets

    def add_targets(self, batches: Iterable[BatchAndTargets]) -> Iterator[BatchAndTargets]:
        """Each batch with its targets added; the next few batches are read on another thread meanwhile."""
        waiting: deque[tuple[Batch, Targets, Future[Targets]]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for batch, targets in batches:
                waiting.append((batch, targets, thread.submit(self, batch)))
                if len(waiting) > READ_AHEAD:
                    yield _with_result(waiting.popleft())
            while waiting:
                yield _with_result(waiting.popleft())


def _with_result(read: tuple[Batch, Targets, Future[Targets]]) -> BatchAndTargets:
    batch, targets, future = read
    return batch, targets | future.result()
