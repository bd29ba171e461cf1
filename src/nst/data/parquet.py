"""Data sets in the layout of the Hugging Face Hub: parquet shards of encoded images and labels."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nst.data.checks import listed

_IMAGE_COLUMNS = ("img", "image")
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]+)?")  # train-00000-of-00003, some with a hash behind

_UNREADABLE = (pa.ArrowException, OSError, MemoryError, KeyError, UnicodeError)  # what pyarrow raises for damaged files

# Limits on the content of a shard: enough for bitmaps compressed by the shard, and for small files.
_FREE_ROWS, _BYTES_A_ROW = 65_536, 32
_FREE_BYTES, _EXPANSION = 100_000_000, 100


def has_shards(root: Path) -> bool:
    """Whether a folder, or its `data` folder, holds parquet files."""
    return any(True for folder in (root, root / "data") if folder.is_dir() for _ in folder.glob("*.parquet"))


def find_shards(root: Path, prefixes: Sequence[str]) -> list[Path]:
    """The shards of one part, by name: those of the first prefix that any file bears.

    Raises:
        ValueError: no shard of that part, a numbered one is missing, or there are two sets of them.
    """
    folder = root if any(root.glob("*.parquet")) else root / "data"
    for prefix in prefixes:
        shards = sorted(path for path in folder.glob("*.parquet") if re.match(rf"{prefix}(?![a-z])", path.name))
        for path in shards:
            if not path.is_file():
                raise ValueError(f"{path}: not a file")
        if shards:
            _check_complete(shards)
            return shards
    found = ", ".join(sorted(path.name for path in folder.glob("*.parquet"))[:5])
    raise ValueError(
        f"{folder}: no parquet shard named {' or '.join(f'{p}*.parquet' for p in prefixes)}; found {found}"
    )


def _check_complete(shards: list[Path]) -> None:
    numbered = [found.groups() for path in shards if (found := _NUMBERED.fullmatch(path.stem))]
    if not numbered:
        return
    numbers, (stem, first, total) = {int(number) for _, number, _ in numbered}, numbered[0]
    if len(numbers) < len(shards) or len({(name, int(count)) for name, _, count in numbered}) > 1:
        names = listed([path.name for path in shards])
        raise ValueError(
            f"{shards[0].parent}: {names} are several sets of shards, such as two versions of one; keep one set"
        )
    for number in range(int(total)):
        if number not in numbers:
            name = f"{stem}-{number:0{len(first)}}-of-{total}.parquet"
            raise ValueError(
                f"{shards[0].parent / name} is missing: {shards[0].name} says there are {int(total)} shards"
            )


@dataclass(frozen=True)
class Shard:
    """Rows of one shard, still encoded."""

    path: Path
    encoded: list[bytes]  # equal images that the shard holds once are one object
    labels: Tensor  # [rows] int64
    first_row: int = 0

    def where(self, row: int) -> str:
        """File and row of these rows' row-th."""
        return f"{self.path}, row {self.first_row + row}"


def class_names(shard: Path, label_column: str) -> tuple[str, ...] | None:
    """The class names in a shard's Hub metadata, if it has them."""
    node: Any = None
    with suppress(ValueError, RecursionError):  # no JSON: then it has none
        node = json.loads((_schema(shard).metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features", label_column, "names"):
        node = node.get(key) if isinstance(node, dict) else None
    named = isinstance(node, list) and all(isinstance(name, str) for name in node)
    return tuple(node) if node and named else None


def row_count(path: Path, label_column: str) -> int:
    """How many rows a shard has, by its metadata.

    Raises:
        ValueError: it is damaged, lacks a column, or has more content than a shard of its size can have.
    """
    column = image_column(path, label_column)
    with _opened(path, column) as content:
        _check_size(path, content.metadata, (column, label_column))
        return content.metadata.num_rows


def read_labels(path: Path, label_column: str) -> Tensor:
    """The labels of a shard alone, [rows] int64; the images are not touched. Raises as `row_count`."""
    column = image_column(path, label_column)
    with _opened(path, column) as content:
        _check_size(path, content.metadata, (column, label_column))
        return _labels(path, label_column, content.read(columns=[label_column]).column(0), 0)


def row_groups(path: Path, label_column: str) -> Iterator[Shard]:
    """A shard piece by piece.

    Raises:
        ValueError: it is damaged, lacks a column, has more content than a shard of its size can have, or a row lacks its image
            or label; the message names file and row.
    """
    column, row, total = image_column(path, label_column), 0, 0
    with _opened(path, column) as content:
        _check_size(path, content.metadata, (column, label_column))
        for group in range(content.num_row_groups):
            table = content.read_row_group(group, columns=[column, label_column])
            images = _images(path, column, table.column(column), row)
            total += sum(map(len, images))
            _check_expansion(path, total, "bytes of images")
            yield Shard(path, images, _labels(path, label_column, table.column(label_column), row), row)
            row += table.num_rows


@contextmanager
def _opened(path: Path, column: str) -> Iterator[pq.ParquetFile]:
    """Images stay in the shard's own dictionary where it has one: a shard may name one image a million times."""
    leaf = f"{column}.bytes" if pa.types.is_struct(_schema(path).field(column).type) else column
    try:
        with pq.ParquetFile(path, read_dictionary=[leaf], page_checksum_verification=True) as content:
            yield content
    except _UNREADABLE as error:
        raise _damaged(path, error) from None


def _check_size(path: Path, metadata: pq.FileMetaData, names: Sequence[str]) -> None:
    """Before anything is unpacked: encoded images do not shrink, so a small file with a large declared content is refused."""
    size = path.stat().st_size
    if metadata.num_rows > _FREE_ROWS + size // _BYTES_A_ROW:
        raise ValueError(f"{path}: {metadata.num_rows:,} rows in {size:,} bytes; no shard of images is so small")
    for number in range(metadata.num_row_groups):
        columns = map(metadata.row_group(number).column, range(metadata.num_columns))
        unpacked = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in names)
        _check_expansion(path, unpacked, f"bytes in row group {number}")


def _check_expansion(path: Path, unpacked: int, of: str) -> None:
    size = path.stat().st_size
    if not 0 <= unpacked <= _FREE_BYTES + _EXPANSION * size:
        raise ValueError(
            f"{path}: {unpacked:,} {of} from a file of {size:,}; a shard may grow to {_EXPANSION} times its size and "
            f"{_FREE_BYTES:,} bytes (encoded images do not shrink, so this one is damaged or made to fill the memory)"
        )


def _images(path: Path, column: str, values: pa.ChunkedArray, first_row: int) -> list[bytes]:
    encoded: list[bytes] = []
    for chunk in values.chunks:
        images = chunk.flatten()[chunk.type.get_field_index("bytes")] if pa.types.is_struct(chunk.type) else chunk
        if images.null_count:
            row = first_row + len(encoded) + images.is_null().to_pylist().index(True)
            raise ValueError(f"{path}, row {row}: no value in column {column!r}")
        if pa.types.is_dictionary(images.type):
            once = images.dictionary.to_pylist()
            encoded += [once[i] for i in images.indices.to_pylist()]
        else:
            encoded += images.to_pylist()
    return encoded


def _labels(path: Path, column: str, values: pa.ChunkedArray, first_row: int) -> Tensor:
    if values.null_count:
        row = first_row + values.is_null().to_pylist().index(True)
        raise ValueError(f"{path}, row {row}: no value in column {column!r}")
    try:
        return torch.tensor(values.cast(pa.int64()).to_pylist(), dtype=torch.int64)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: column {column!r}: {error}") from None


def image_column(path: Path, label_column: str) -> str:
    """The name of a shard's column of encoded images.

    Raises:
        ValueError: the shard has none, or no column of integer labels.
    """
    schema = _schema(path)
    column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if column is None or label_column not in schema.names:
        raise ValueError(
            f"{path}: needs a column {label_column!r} and a column {' or '.join(map(repr, _IMAGE_COLUMNS))}; "
            f"it has {', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    nested = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(
            f"{path}: column {column!r} is {kind}; it must hold encoded images (binary, or a struct with bytes)"
        )
    if not pa.types.is_integer(schema.field(label_column).type):
        raise ValueError(
            f"{path}: column {label_column!r} is {schema.field(label_column).type}; labels must be integers"
        )
    return column


def _schema(path: Path) -> pa.Schema:
    try:
        schema = pq.read_schema(path)
        schema.to_string()  # decodes all names
        return schema
    except _UNREADABLE as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ValueError(f"{path}: cannot be read as parquet ({reason}); download it again")
