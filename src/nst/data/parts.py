"""The parts of a data set as people have them: class folders of images, or what Hugging Face `datasets` reads.

`datasets` is imported when a table is read; class folders need none of it: it takes seconds to list them, at every start.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL
import torch
from torch import Tensor

from nst.data.decode import SUFFIXES, decode, is_image

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "dev")
TEST = ("test", "testing", "eval", "evaluation")
"""Names of the parts, in any case; of several the first is used."""

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target")
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?\.parquet")  # train-00000-of-00003, some with a hash behind


class Encoded(Protocol):
    """Rows of encoded images. Cheap to send to a worker process."""

    def read(self, row: int) -> bytes:
        """The image's bytes. Raises ValueError, naming the file, if it cannot be read."""
        ...

    def where(self, row: int) -> str:
        """The image's file, or its row in a table."""
        ...

    def describe(self, rows: Tensor) -> Iterator[bytes]:
        """What is known of each of these rows without reading it and stays when the data are copied: name and size of a file."""
        ...

    def pixels(self, channels: int, size: int, background: Sequence[int]) -> Tensor:
        """All images, which must have one size: [n, channels, size, size] uint8. Raises ValueError, naming the file, otherwise."""
        ...


class Part(NamedTuple):
    """Encoded images and their labels."""

    where: str  # for errors
    source: Encoded
    labels: Tensor  # [n] int64; −1: not labelled
    classes: tuple[str, ...] | None


class Parts(NamedTuple):
    """What is trained, validated and tested on, and the names of the parts that were found and are not used."""

    train: Part
    val: Part | None
    test: Part | None  # None: what is held out of the training part
    unused: tuple[str, ...]


def assign(
    names: Sequence[str], read: Callable[[str], Part], validation: float, where: str, unused: Sequence[str]
) -> Parts:
    """The parts of these names by what they are used for; `read` is called for those used.

    Beside a test part the validation part is one; alone it is the test part, as usual with ImageNet.

    Args:
        validation: fraction held out of the training images.
        unused: others that were found.

    Raises:
        ValueError: none is called train, there is nothing to test on, or there would be two validation parts.
    """
    train, val, test = (
        next((name for kind in kinds for name in names if name.lower() == kind), None)
        for kinds in (TRAIN, VALIDATION, TEST)
    )
    if train is None and len(names) == 1 and not (val or test):
        train = names[0]
    if train is None:
        raise ValueError(f"{where}: its parts are {listed(names)}; one must be called {' or '.join(TRAIN)}")
    if val and test and validation:
        raise ValueError(
            f"data.validation: {validation}; {where} has a validation part, {val}: leave it at 0, or rename that part"
        )
    if val and not test:
        val, test = None, val
    if not test and not validation:
        raise ValueError(
            f"{where}: there is no test part; data.validation=0.1 takes a tenth of the images for it, "
            f"or add a part {' or '.join((*VALIDATION[:3], TEST[0]))} beside {train}"
        )
    others = [name for name in names if name not in (train, val, test)]
    return Parts(read(train), read(val) if val else None, read(test) if test else None, (*others, *unused))


def listed(names: Sequence[str], at_most: int = 5) -> str:
    """Names in a message, the first few of them."""
    return ", ".join(names[:at_most]) + (f", … ({len(names)} in all)" if len(names) > at_most else "")


def decoded(data: bytes, where: str, channels: int, size: int, background: Sequence[int]) -> np.ndarray:
    """An image that must have its size: [channels, size, size] uint8. Raises ValueError, naming `where`, if it is another or damaged."""
    try:
        pixels = decode(data, channels, background)
        if pixels.shape[:2] != (size, size):
            raise ValueError(f"is {pixels.shape[1]}×{pixels.shape[0]} pixels, data.size={size} needs {size}×{size}")
    except ValueError as error:
        raise ValueError(f"{where}: the image {error}") from None
    return pixels.transpose(2, 0, 1)


# Folders


class ImageFiles:
    """Image files below a folder. Their names are kept as one array, so that a worker process gets millions of them cheaply."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, np.array([os.fsencode(name) for name in names])

    def path(self, row: int) -> Path:
        return self.folder / os.fsdecode(self.names[row])

    def where(self, row: int) -> str:
        return str(self.path(row))

    def read(self, row: int) -> bytes:
        try:
            return self.path(row).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.path(row)}: cannot be read ({error.strerror})") from None

    def describe(self, rows: Tensor) -> Iterator[bytes]:
        for row in rows.tolist():
            try:
                yield b"%b %d" % (self.names[row], self.path(row).stat().st_size)
            except OSError as error:
                raise ValueError(f"{self.path(row)}: cannot be read ({error.strerror})") from None

    def pixels(self, channels: int, size: int, background: Sequence[int]) -> Tensor:
        """All images, which must have one size: [n, channels, size, size] uint8."""
        images = (decoded(self.read(i), self.where(i), channels, size, background) for i in range(len(self.names)))
        return torch.from_numpy(np.stack(list(images)))


def folder_parts(root: Path, labeled: bool, validation: float) -> Parts:
    """The parts of `root/<part>/<class>/*`, or of `root/<class>/*` in one part; as in `assign`.

    Images may lie deeper in a class folder. Names that begin with a dot or with two underscores are skipped.

    Args:
        labeled: whether the first folder is the class; else parts are flat or nested as they like.

    Raises:
        ValueError: a class has no image, or a folder cannot be read.
    """
    try:
        folders = _subfolders(root)
        names = [name for name in folders if name.lower() in (*TRAIN, *VALIDATION, *TEST)]
        if labeled:  # a folder of images is a class, even if it is called "train"
            names = [name for name in names if not any(is_image(file.name) for file in (root / name).iterdir())]
        if not names:
            return assign(["."], lambda _: _folder_part(root, labeled), validation, str(root), ())
        unused = [name for name in folders if name not in names]
        return assign(names, lambda name: _folder_part(root / name, labeled), validation, str(root), unused)
    except OSError as error:
        raise ValueError(f"{error.filename or root}: cannot be read ({error.strerror})") from None


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))


def _folder_part(folder: Path, labeled: bool) -> Part:
    classes = _subfolders(folder) if labeled else [""]
    if not classes:
        raise ValueError(f"{folder}: no class folders in it (it should hold one folder of images a class)")
    names, labels, others = [], [], []
    for label, name in enumerate(classes):
        images, rest = _files_below(folder / name, folder)
        if not images:
            raise ValueError(f"{folder / name}: no images in it (an image ends in {', '.join(SUFFIXES)})")
        names += images
        others += rest
        labels += [label if labeled else -1] * len(images)
    if others:
        print(f"{folder}: not read, since their names are no images': {listed(others)}", file=sys.stderr)
    return Part(str(folder), ImageFiles(folder, names), torch.tensor(labels), tuple(classes) if labeled else None)


def _files_below(folder: Path, base: Path) -> tuple[list[str], list[str]]:
    """Names relative to `base`: of the images at any depth of a folder, and of its other files."""

    def fail(error: OSError) -> None:
        raise error

    images, others = [], []
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(name for name in files if not name.startswith(".")):
            (images if is_image(name) else others).append(os.path.relpath(f"{place}/{name}", base))
    return images, others


# Tables


class TableRows:
    """A column of encoded images in a table of Hugging Face `datasets`, mapped from disk."""

    def __init__(self, table: Any, column: str, where: str, cached: bool) -> None:
        self.table, self.column, self.place, self.cached = table.select_columns([column]), column, where, cached

    def where(self, row: int) -> str:
        path = self.table[row][self.column]["path"]
        return path if path and Path(path).is_file() else f"{self.place}, row {row}"

    def read(self, row: int) -> bytes:
        return _content(self.table[row][self.column], f"{self.place}, row {row}")

    def describe(self, rows: Tensor) -> Iterator[bytes]:
        for batch in self.table.with_format("arrow").iter(1000):  # of the whole table: to pick out rows would read them
            for chunk in batch.column(self.column).chunks:
                yield b"%d" % chunk.field("bytes").nbytes
                for path in filter(None, chunk.field("path").to_pylist()):
                    file = Path(path)
                    yield f"{file.name} {file.stat().st_size if file.is_absolute() else ''}".encode()

    def pixels(self, channels: int, size: int, background: Sequence[int]) -> Tensor:
        """All images, which must have one size: [n, channels, size, size] uint8. `datasets` keeps them decoded in its cache."""
        import datasets

        settings = {"column": self.column, "place": self.place, "channels": channels, "size": size}
        table = self.table.map(
            _decoded_rows,
            batched=True,
            with_indices=True,
            remove_columns=[self.column],
            features=datasets.Features({"pixels": datasets.Value("binary")}),
            fn_kwargs={**settings, "background": tuple(background), "version": PIL.__version__},
            keep_in_memory=not self.cached,
            desc=f"decoding {self.place}",
        )
        content = bytearray().join(table[:]["pixels"])
        return torch.frombuffer(content, dtype=torch.uint8).reshape(-1, channels, size, size)


def _content(value: dict[str, Any] | None, where: str) -> bytes:
    if value is None or (value["bytes"] is None and value["path"] is None):
        raise ValueError(f"{where}: there is no image")
    try:
        return Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]
    except OSError as error:
        raise ValueError(f"{where}: {value['path']} cannot be read ({error.strerror})") from None


def _decoded_rows(
    batch: Any, rows: list[int], column: str, place: str, version: str, **settings: Any
) -> dict[str, list[bytes]]:
    """The pixels of some rows; with another `version` of the decoder they are decoded anew."""
    del version
    where = (f"{place}, row {row}" for row in rows)
    values = zip(batch[column], where, strict=True)
    return {"pixels": [decoded(_content(value, at), at, **settings).tobytes() for value, at in values]}


def is_table(folder: Path) -> bool:
    """Whether a local folder is one for `datasets`: parquet or Arrow files, or an image folder with metadata."""
    places = [folder, *(folder / name for name in _subfolders(folder))]
    names = ("*.parquet", "*.arrow", "metadata.csv", "metadata.jsonl", "dataset_dict.json")
    return any(True for place in places for name in names for _ in place.glob(name))


def table_parts(
    key: str,
    path: str,
    labeled: bool,
    validation: float,
    image_column: str | None = None,
    label_column: str | None = None,
    subset: str | None = None,
    cache_dir: str | None = None,
) -> Parts:
    """The parts of a data set that `datasets` reads, as in `assign`.

    Args:
        key: of the setting that names it, for errors.
        path: a local folder (parquet shards, saved to disk, image folder with metadata), or a name on the Hub.
        labeled: whether labels are needed.
        image_column, label_column: None: found by their types and names.
        subset: of a data set that has several; `datasets` calls it its configuration.
        cache_dir: where `datasets` writes its Arrow files; None: its own folder.

    Raises:
        ValueError: it cannot be read, shards or columns are missing, or a label is missing.
    """
    import datasets

    folder, said = Path(path).expanduser(), f"data.{key}={path}"
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        datasets.disable_progress_bars()
    saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        if folder.is_dir():
            _check_shards(folder)
        else:
            print(f"{said}: no such folder here, so the Hugging Face Hub is asked for it", file=sys.stderr)
        place = str(folder) if folder.is_dir() else path
        tables: Any = (
            datasets.load_from_disk(place) if saved else datasets.load_dataset(place, subset, cache_dir=cache_dir)
        )
    except Exception as error:  # its own, pyarrow's, fsspec's, the Hub's
        raise ValueError(f"{said}: Hugging Face datasets cannot read it ({error})") from None
    if isinstance(tables, datasets.Dataset):
        tables = {"train": tables}
    first = next(iter(tables.values()))
    image = _column(first, image_column, "image_column", _IMAGE_COLUMNS, datasets.Image, said)
    label = _column(first, label_column, "label_column", _LABEL_COLUMNS, datasets.ClassLabel, said) if labeled else None
    labels = {name: _labels(table, label) for name, table in tables.items()}
    usable = [
        name for name, values in labels.items() if not labeled or any(value not in (None, -1) for value in values)
    ]
    if not usable:
        raise ValueError(f"{said}: column {label!r} holds no labels")
    names = getattr(first.features.get(label), "names", None)
    if labeled and names is None:
        texts = {value for name in usable for value in labels[name] if isinstance(value, str)}
        names = sorted(texts) or None

    def read(name: str) -> Part:
        where = f"{said}, part {name}"
        rows = TableRows(tables[name].cast_column(image, datasets.Image(decode=False)), image, where, not saved)
        return Part(where, rows, _numbers(labels[name], names, where), tuple(names) if names else None)

    return assign(usable, read, validation, said, [f"{name} (no labels)" for name in tables if name not in usable])


def _column(table: Any, given: str | None, key: str, names: Sequence[str], kind: type, where: str) -> str:
    """A column by its key, else by its type, else by its name. Raises ValueError with the columns there are."""
    typed = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    known = [name for name in names if name in table.features]
    candidates = [given] if given else typed if len(typed) == 1 else [*known, *typed]
    if not candidates or candidates[0] not in table.features:
        said = f"{given!r}; " if given else ""
        raise ValueError(f"data.{key}: {said}{where} has the columns {', '.join(table.features)}; name one of them")
    return candidates[0]


def _labels(table: Any, column: str | None) -> list[Any]:
    """As they are; None where a part lacks the column, −1 where no labels are wanted."""
    if column is None:
        return [-1] * len(table)
    return table.select_columns([column])[:][column] if column in table.features else [None] * len(table)


def _numbers(labels: list[Any], names: Sequence[str] | None, where: str) -> Tensor:
    """Labels, which are numbers or names, → [n] int64."""
    numbers = {name: number for number, name in enumerate(names or ())}
    for row, label in enumerate(labels):
        if not isinstance(label, int) and label not in numbers:
            raise ValueError(
                f"{where}, row {row}: label {label!r}; a whole number is needed, or the name of a class in each row"
            )
    return torch.tensor([label if isinstance(label, int) else numbers[label] for label in labels], dtype=torch.int64)


def _check_shards(folder: Path) -> None:
    """`datasets` reads what there is: a missing numbered shard, or those of two versions, would go unnoticed."""
    sets: dict[Path, list[tuple[int, int]]] = {}
    for path in folder.rglob("*.parquet"):
        if numbered := _SHARD.fullmatch(path.name):
            stem, number, total = numbered.groups()
            sets.setdefault(path.parent / stem, []).append((int(number), int(total)))
    for stem, shards in sets.items():
        numbers, total = {number for number, _ in shards}, shards[0][1]
        if len(numbers) < len(shards) or any(other != total for _, other in shards):
            raise ValueError(f"{stem}-*.parquet are several sets of shards, such as two versions of one; keep one set")
        for number in range(total):
            if number not in numbers:
                raise ValueError(f"{stem}-{number:05}-of-{total:05}.parquet is missing; there should be {total} shards")
