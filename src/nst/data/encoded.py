"""Sources of encoded images: class folders here; in `unpacked`, files unpacked from parquet shards."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nst.data.checks import listed
from nst.data.decode import SUFFIXES
from nst.data.digests import file_digests
from nst.data.progress import Progress

log = logging.getLogger(__name__)

_LARGEST = 2**30  # bytes of an image file


class Encoded(Protocol):
    """Rows of encoded images. Cheap to send to a worker process."""

    def read(self, row: int) -> bytes:
        """The image's bytes. Raises ValueError, naming the file, if it cannot be read."""
        ...

    def where(self, row: int) -> str:
        """The image's file, and its row there if it has one."""
        ...

    def fingerprint(self, rows: Tensor) -> str:
        """SHA-256, hex, over the content of these rows."""
        ...


class Part(NamedTuple):
    """One part of a data set on disk."""

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
            with self.path(row).open("rb") as file:
                if (size := os.fstat(file.fileno()).st_size) > _LARGEST:
                    raise ValueError(f"{self.path(row)}: {size:,} bytes; no image is so large")
                return file.read()
        except OSError as error:
            raise ValueError(f"{self.path(row)}: cannot be read ({error.strerror})") from None

    def where(self, row: int) -> str:
        return str(self.path(row))

    def fingerprint(self, rows: Tensor) -> str:
        names, digest = [self.name(row) for row in rows.tolist()], hashlib.sha256()
        for name, content in zip(names, file_digests(self.folder, names), strict=True):
            digest.update(os.fsencode(name) + b"\0" + content)
        return digest.hexdigest()


def class_folders(folder: Path) -> Part:
    """The images of `folder/<class>/*`; classes are numbered by name.

    Raises:
        ValueError: there is no class folder, one has no image, or a folder cannot be read.
    """
    names, labels, empty, left_out = [], [], [], []
    try:
        classes = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
        if not classes:
            raise ValueError(f"{folder}: no class folders in it (it should hold one folder of images a class)")
        with Progress(f"listing {len(classes):,} class folders of {folder}", len(classes), " folders") as progress:
            for label, name in enumerate(classes):
                files, others = _image_names(folder / name)
                left_out += [f"{name}/{other}" for other in others]
                if not files:
                    empty.append(name)
                names += [f"{name}/{file}" for file in files]
                labels += [label] * len(files)
                progress.update(1)
    except OSError as error:
        raise ValueError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    if empty:
        raise ValueError(
            f"{folder}: no images in class folder {listed(empty)} (an image ends in {', '.join(SUFFIXES)})"
        )
    if left_out:
        log.warning("%s: not read, since only image files directly in a class folder are: %s", folder, listed(left_out))
    return Part(ImageFiles(folder, names), torch.tensor(labels), tuple(classes))


def _image_names(folder: Path) -> tuple[list[str], list[str]]:
    """The names of a class folder's images, and of what else is in it and not hidden."""
    images, others = [], []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if not entry.name.lower().endswith(SUFFIXES):
            others += [] if entry.name.startswith(".") else [entry.name]
        elif entry.is_file():
            images.append(entry.name)
        else:
            raise ValueError(f"{entry.path}: not a file (a folder, a link to nothing, or a device)")
    return images, others
