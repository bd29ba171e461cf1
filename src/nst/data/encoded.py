"""Where encoded images lie: class folders of image files, or one file unpacked from parquet shards."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nst.data.decode import SUFFIXES
from nst.data.lock import one_process_at_a_time
from nst.data.parquet import row_groups


class Encoded(Protocol):
    """Rows of encoded images. Cheap to send to a worker process."""

    def read(self, row: int) -> bytes:
        """The image's bytes. Raises ValueError, naming the file, if it cannot be read."""
        ...

    def where(self, row: int) -> str:
        """The image's file, and its row there if it has one."""
        ...

    def fingerprint(self, rows: Tensor) -> str:
        """SHA-256, hex, over the names and sizes of these rows' files."""
        ...


class Part(NamedTuple):
    """One part of a data set as it lies on disk."""

    source: Encoded
    labels: Tensor  # [rows] int64
    classes: tuple[str, ...] | None


class ImageFiles:
    """Files below a folder. Their names are kept as one tensor, so that millions of them are shared by the workers."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.folder = folder
        self.names = torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8)
        self.ends = torch.tensor([len(name) for name in encoded]).cumsum(0)

    def name(self, row: int) -> str:
        start, end = int(self.ends[row - 1]) if row else 0, int(self.ends[row])
        return os.fsdecode(self.names[start:end].numpy().tobytes())

    def path(self, row: int) -> Path:
        return self.folder / self.name(row)

    def read(self, row: int) -> bytes:
        try:
            return self.path(row).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.path(row)}: cannot be read ({error.strerror})") from None

    def where(self, row: int) -> str:
        return str(self.path(row))

    def fingerprint(self, rows: Tensor) -> str:
        digest = hashlib.sha256()
        folder = str(self.folder)
        for name in map(self.name, rows.tolist()):
            size = os.stat(f"{folder}/{name}").st_size  # noqa: PTH116 (for a million files a Path each takes its time)
            digest.update(f"{name} {size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def class_folders(folder: Path) -> Part:
    """The images of `folder/<class>/*`; classes are numbered by name.

    Raises:
        ValueError: there is no class folder, or one holds no image.
    """
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder}: no class folders in it (it should hold one folder of images a class)")
    names, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(e.name for e in os.scandir(folder / name) if e.name.lower().endswith(SUFFIXES))
        if not files:
            raise ValueError(f"{folder / name}: no images in this class folder ({', '.join(SUFFIXES)})")
        names += [f"{name}/{file}" for file in files]
        labels += [label] * len(files)
    return Part(ImageFiles(folder, names), torch.tensor(labels), tuple(classes))


class UnpackedImages:
    """All images of some shards, one after the other in one file."""

    def __init__(self, file: Path, ends: Tensor, shards: Sequence[Path], last_rows: Tensor) -> None:
        self.file, self.ends, self.shards, self.last_rows = file, ends, tuple(shards), last_rows

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
        digest = hashlib.sha256(_shards_key(self.shards).encode())
        digest.update(rows.numpy().data)
        return digest.hexdigest()


def unpack(shards: Sequence[Path], label_column: str, folder: Path) -> tuple[UnpackedImages, Tensor]:
    """The images and labels of parquet shards, unpacked once into `folder` (rows in a shard cannot be read singly).

    Raises:
        ValueError: a shard is damaged, or `folder` cannot be written or is too small.
    """
    stem = folder / f"{shards[0].stem.partition('-')[0]}-{_shards_key(shards)[:16]}"
    index, file = stem.with_suffix(".npz"), stem.with_suffix(".images")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not index.is_file():
            with one_process_at_a_time(folder / ".lock"):
                if not index.is_file():  # nor has another rank written it meanwhile
                    _write(shards, label_column, index, file)
    except OSError as error:
        raise ValueError(f"{folder}: cannot unpack there ({error}); data.unpacked=… names another folder") from None
    with np.load(index) as arrays:
        ends, labels, last_rows = (torch.from_numpy(arrays[key]) for key in ("ends", "labels", "last_rows"))
    if not file.is_file() or file.stat().st_size != int(ends[-1]):
        raise ValueError(f"{file}: missing or of the wrong size; delete {index} and it is unpacked again")
    return UnpackedImages(file, ends, shards, last_rows), labels


def _write(shards: Sequence[Path], label_column: str, index: Path, file: Path) -> None:
    """The index is written last: where it stands, the file of images is whole."""
    needed, free = sum(path.stat().st_size for path in shards), shutil.disk_usage(file.parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    sizes, labels, last_rows = [], [], []
    partial = file.with_suffix(".partial")
    with partial.open("wb") as out:
        for path in tqdm(shards, desc=f"unpacking into {file.parent}", unit="shard", disable=None):
            for rows in row_groups(path, label_column):
                out.write(b"".join(rows.encoded))
                sizes += [len(data) for data in rows.encoded]
                labels.append(rows.labels)
            last_rows.append(len(sizes))
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
    temporary = index.with_suffix(".tmp.npz")
    np.savez(temporary, ends=np.cumsum(sizes), labels=torch.cat(labels).numpy(), last_rows=np.array(last_rows))
    temporary.replace(index)


def _shards_key(shards: Sequence[Path]) -> str:
    text = "\n".join(f"{path.name} {path.stat().st_size}" for path in shards)
    return hashlib.sha256(text.encode()).hexdigest()
