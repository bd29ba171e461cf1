"""The teacher cache: a folder of arrays, `[views, images, ...]` each, and a manifest that identifies them.

`manifest.json` names the teacher's weights, the data, the views and the dtype; for each array how many rows are written, and
a SHA-256 for each finished view. It is replaced atomically, and only after the rows it counts are on disk, so interrupted
writing continues from there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nst.config import differences
from nst.files import locked, naming, write_whole
from nst.losses import Shape
from nst.teacher.layout import Array, readable_bytes

VERSION = 1
MANIFEST = "manifest.json"
SPARE = 100_000_000  # bytes to leave free on the disk


class TeacherCache:
    """The cached targets of one teacher on one training set."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], images: int, views: int, dtype: str) -> None:
        """Open a cache, or describe one that does not exist yet; nothing is written.

        Args:
            identity: teacher, data and settings of the cache, as plain values; see `nst.runs.teacher_cache.cache_identity`.
            images: in the training set.
            views: cached of each image.
            dtype: "float16" or "float32".

        Raises:
            ValueError: the folder holds a cache with another identity (the fields are named), or is damaged.
        """
        self.folder, self.images, self.views, self.dtype = folder, images, views, np.dtype(dtype)
        self.identity = {"version": VERSION, **json.loads(json.dumps(identity))}
        self.teacher: dict[str, Any] | None = None  # name, weights and accuracy of the teacher
        self.state: dict[str, dict[str, Any]] = {}  # array → shape, rows written, a digest for each finished view
        self.choices: dict[str, dict[str, Any]] = {}  # array → whether to cache it, and why, if decided by cost
        self.reload()

    @property
    def rows(self) -> int:
        """Rows of each array: views times images; row `slot · images + index`."""
        return self.views * self.images

    def reload(self) -> None:
        """Read the manifest again: another process may have written."""
        file = self.folder / MANIFEST
        if not file.is_file():
            return
        try:
            manifest = json.loads(file.read_text())
            identity, arrays = manifest["identity"], manifest["arrays"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete the folder to have it built again") from error
        different = differences(identity, self.identity)
        if different:
            raise ValueError(
                f"the teacher cache {self.folder} is of something else: {'; '.join(different)}. Choose another "
                "cache.path, or delete the folder to have it built again"
            )
        self.teacher = manifest["teacher"] or self.teacher
        self.choices = manifest.get("choices", {})
        self.state = {name: state for name, state in arrays.items() if self.file(name).is_file()}
        for name, state in self.state.items():
            self.offset(name, tuple(state["shape"]))

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def bytes(self, shape: Shape) -> int:
        """Size of an array's data for this shape of one row."""
        return self.rows * int(np.prod(shape)) * self.dtype.itemsize

    def offset(self, name: str, shape: Shape) -> int:
        """Where the data of an array's file begins. Raises ValueError for a file of another size, shape or dtype."""
        try:
            memory = np.load(self.file(name), mmap_mode="r")
        except ValueError as error:
            raise ValueError(f"{self.file(name)} is damaged ({error}); delete it to have it computed again") from error
        if memory.shape != (self.views, self.images, *shape) or memory.dtype != self.dtype:
            raise ValueError(f"{self.file(name)} holds {memory.dtype} {memory.shape}; delete it to have it built again")
        return int(memory.offset)  # pyright: ignore[reportAttributeAccessIssue]

    def missing(self, needed: Sequence[Array]) -> list[Array]:
        """The arrays that are not complete, each name once. Raises ValueError for one that is there with another shape."""
        unique = {array.name: array for array in needed}
        for name, array in unique.items():
            if name in self.state and (shape := tuple(self.state[name]["shape"])) != array.shape:
                raise ValueError(
                    f"{self.file(name)} has {shape} an image, loss.{array.spec.split(':')[0]} now plans {array.shape}: its code has "
                    "changed; delete the file to have it computed again"
                )
        return [a for a in unique.values() if self.written(a.name) < self.rows]

    def written(self, name: str) -> int:
        """Rows of an array that are on disk."""
        return self.state[name]["rows"] if name in self.state else 0

    def reserve(self, needed: Sequence[Array]) -> None:
        """Create the files of new arrays.

        Raises:
            ValueError: the disk is too small; names the needed and the free space.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        size = sum(int(self.bytes(a.shape) * (1 - self.written(a.name) / self.rows)) for a in needed)
        free = shutil.disk_usage(self.folder).free
        if size + SPARE > free:
            raise ValueError(
                f"the teacher cache {self.folder} needs {readable_bytes(size)} more, the disk has "
                f"{readable_bytes(free)} free; ask for fewer cache.views (now {self.views}) or another cache.path"
            )
        for array in needed:
            if array.name not in self.state:
                shape = (self.views, self.images, *array.shape)
                np.lib.format.open_memmap(self.file(array.name), "w+", self.dtype, shape)
                self.state[array.name] = {"shape": list(array.shape), "rows": 0, "sha256": []}

    def save(self, rows: Mapping[str, int]) -> None:
        """Record how many rows of these arrays are on disk, and the digests of newly complete views."""
        for name, written in rows.items():
            state = self.state[name]
            state["rows"] = written
            for slot in range(len(state["sha256"]), written // self.images):
                state["sha256"].append(self.digest(name, slot))
        write_whole(self.folder / MANIFEST, json.dumps(self.manifest(), indent=1).encode())

    def manifest(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        manifest: dict[str, Any] = {"identity": self.identity, "teacher": self.teacher, "arrays": self.state}
        return manifest | ({"choices": self.choices} if self.choices else {})

    def choose(self, names: Sequence[str], cached: bool, why: str) -> None:
        """Record whether these arrays are cached, for all runs that decide by cost. The cache must be locked."""
        self.choices |= {name: {"cached": cached, "why": why} for name in names}
        self.save({})

    def digest(self, name: str, slot: int) -> str:
        """SHA-256 of one view of an array."""
        return hashlib.sha256(np.array(np.load(self.file(name), mmap_mode="r")[slot]).data).hexdigest()

    def check(self, name: str, slot: int, digest: str) -> None:
        """Raises ValueError when a view of an array does not have the SHA-256 that the manifest names."""
        if digest != self.state[name]["sha256"][slot]:
            raise ValueError(
                f"{self.file(name)} is damaged: view {slot} has another SHA-256 than {MANIFEST} says; "
                "delete the file to have it computed again"
            )

    def check_all(self) -> None:
        """Raises ValueError for the first finished view of any array that is damaged."""
        for name, state in self.state.items():
            for slot in range(len(state["sha256"])):
                self.check(name, slot, self.digest(name, slot))

    @contextmanager
    def locked(self, each_second: Callable[[], object]) -> Iterator[None]:
        """Lock the cache for writing; while another process holds the lock, `each_second` is called every second."""
        waiting = f"another process is writing {self.folder}; waiting for it"
        with locked(self.folder / "lock", each_second, waiting):
            self.reload()
            yield


class Writer:
    """Writes rows of one array."""

    def __init__(self, cache: TeacherCache, name: str, shape: Shape) -> None:
        self.path = cache.file(name)
        self.file = self.path.open("r+b")
        self.start = cache.offset(name, shape)
        self.row_bytes = cache.bytes(shape) // cache.rows
        self.dtype = torch.float16 if cache.dtype == np.float16 else torch.float32

    def write(self, row: int, values: np.ndarray) -> None:
        """Rows from `row` on: `[B, ...]` of the cache's dtype."""
        with naming(self.path):
            self.file.seek(self.start + row * self.row_bytes)
            self.file.write(np.ascontiguousarray(values).data)

    def sync(self) -> None:
        """Return when all rows are on disk."""
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
