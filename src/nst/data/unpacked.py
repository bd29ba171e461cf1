"""Parquet shards unpacked into one file of images, since single rows of a shard cannot be read."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from nst.data.parquet import read_labels, row_count, row_groups
from nst.data.progress import Progress


class UnpackedImages:
    """All images of some shards, one after the other in one file."""

    def __init__(self, file: Path, ends: Tensor, shards: Sequence[Path], last_rows: Tensor, sha256: str) -> None:
        self.file, self.ends, self.shards, self.last_rows = file, ends, tuple(shards), last_rows
        self.sha256 = sha256

    def read(self, row: int) -> bytes:
        start, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise ValueError(f"{self.file}: cannot be read ({error.strerror})") from None
        if len(data) != end - start:
            raise ValueError(f"{self.file}: ends before row {row}; delete it and it is unpacked again")
        return data

    def where(self, row: int) -> str:
        shard = int(torch.searchsorted(self.last_rows, row, right=True))
        first = int(self.last_rows[shard - 1]) if shard else 0
        return f"{self.shards[shard]}, row {row - first}"

    def fingerprint(self, rows: Tensor) -> str:
        digest = hashlib.sha256(self.sha256.encode())
        digest.update(rows.numpy().data)
        return digest.hexdigest()


class _Index(NamedTuple):
    """The index of a file of images."""

    ends: Tensor  # [rows] int64, where each image ends in the file
    labels: Tensor  # [rows] int64
    last_rows: Tensor  # [shards] int64, how many rows the shards up to each have
    sha256: str  # of the images, where they end, and the labels
    shards: str  # their part and folder


def unpack(shards: Sequence[Path], label_column: str, folder: Path) -> tuple[UnpackedImages, Tensor]:
    """The images and labels of parquet shards, unpacked once into `folder`.

    The file is used as long as the shards' names, sizes, times and labels do not change; else they are unpacked again and the
    old file is deleted.

    Raises:
        ValueError: a shard is damaged, or `folder` cannot be written or is too small.
    """
    part = shards[0].stem.partition("-")[0]
    source = f"{part} of {shards[0].parent.resolve()}"
    stem = folder / f"{part}-{_state(shards, label_column)[:16]}"
    index_file, file = stem.with_suffix(".npz"), stem.with_suffix(".images")
    index = _read_index(index_file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if index is None:
            with FileLock(folder / ".lock"):
                index = _read_index(index_file)  # another process may have written it meanwhile
                if index is None:
                    index = _write(shards, label_column, index_file, file, source)
                    _delete_others(index_file, source)
    except OSError as error:
        raise ValueError(f"{folder}: cannot unpack there ({error}); data.unpacked=… names another folder") from None
    if not file.is_file() or file.stat().st_size != int(index.ends[-1]):
        raise ValueError(f"{file}: missing or of the wrong size; delete {index_file} and it is unpacked again")
    return UnpackedImages(file, index.ends, shards, index.last_rows, index.sha256), index.labels


def _write(shards: Sequence[Path], label_column: str, index_file: Path, file: Path, source: str) -> _Index:
    """The index is written last: if it exists, the file of images is complete."""
    needed, free = sum(path.stat().st_size for path in shards), shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    sizes, labels, last_rows, digest = [], [], [], hashlib.sha256()
    partial, rows = file.with_suffix(".partial"), sum(row_count(path, label_column) for path in shards)
    if not rows:
        raise ValueError(f"{shards[0]}: holds no images")
    with partial.open("wb") as out, Progress(f"unpacking {rows:,} images into {file.parent}", rows) as progress:
        for path in shards:
            for group in row_groups(path, label_column):
                for data in group.encoded:
                    out.write(data)
                    digest.update(data)
                sizes += [len(data) for data in group.encoded]
                labels.append(group.labels)
                progress.update(len(group.encoded))
            last_rows.append(len(sizes))
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
    ends, all_labels = np.cumsum(sizes), torch.cat(labels)
    digest.update(ends.data)
    digest.update(all_labels.numpy().data)
    index = _Index(torch.from_numpy(ends), all_labels, torch.tensor(last_rows), digest.hexdigest(), source)
    temporary = index_file.with_suffix(".tmp.npz")
    np.savez(
        temporary, ends=ends, labels=all_labels.numpy(), last_rows=last_rows, sha256=index.sha256, shards=index.shards
    )  # fmt: skip
    temporary.replace(index_file)
    return index


def _read_index(file: Path) -> _Index | None:
    """None if there is none or it is damaged: then the shards are unpacked again."""
    try:
        with file.open("rb") as raw, np.load(raw) as arrays:
            ends, labels, last_rows = (torch.from_numpy(arrays[key]) for key in ("ends", "labels", "last_rows"))
            return _Index(ends, labels, last_rows, str(arrays["sha256"]), str(arrays["shards"]))
    except Exception:  # a damaged archive raises nearly anything
        return None


def _delete_others(current: Path, source: str) -> None:
    """Files unpacked from an earlier state of the shards. A run that still reads one ends with an error."""
    for file in current.parent.glob("*.npz"):
        index = _read_index(file)
        if file != current and index is not None and index.shards == source:
            file.unlink(missing_ok=True)
            file.with_suffix(".images").unlink(missing_ok=True)


def _state(shards: Sequence[Path], label_column: str) -> str:
    """SHA-256 of the state of the shards, without reading the images."""
    digest = hashlib.sha256()
    for path in shards:
        about = path.stat()
        digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode())
        digest.update(read_labels(path, label_column).numpy().data)
    return digest.hexdigest()
