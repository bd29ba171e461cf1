"""Data sets as the Hugging Face Hub lays them out: parquet shards of encoded images and labels."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

_IMAGE_COLUMNS = ("img", "image")
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)")  # train-00000-of-00003


def has_shards(root: Path) -> bool:
    """Whether a folder, or its `data` folder, holds parquet files."""
    return any(True for folder in (root, root / "data") if folder.is_dir() for _ in folder.glob("*.parquet"))


def find_shards(root: Path, prefixes: Sequence[str]) -> list[Path]:
    """The shards of one part, by name: those of the first prefix that any file bears.

    Raises:
        ValueError: no shard of that part, or a numbered one is missing.
    """
    folder = root if any(root.glob("*.parquet")) else root / "data"
    for prefix in prefixes:
        shards = sorted(path for path in folder.glob("*.parquet") if re.match(rf"{prefix}(?![a-z])", path.name))
        if shards:
            _check_complete(shards)
            return shards
    found = ", ".join(sorted(path.name for path in folder.glob("*.parquet"))[:5])
    raise ValueError(
        f"{folder}: no parquet shard named {' or '.join(f'{p}*.parquet' for p in prefixes)}; found {found}"
    )


def _check_complete(shards: list[Path]) -> None:
    names = {path.stem for path in shards}
    for path in shards:
        if numbered := _NUMBERED.fullmatch(path.stem):
            stem, first, total = numbered.groups()
            for number in range(int(total)):
                name = f"{stem}-{number:0{len(first)}}-of-{total}"
                if name not in names:
                    raise ValueError(
                        f"{path.parent / name}.parquet is missing: {path.name} says there are {int(total)} shards"
                    )


@dataclass(frozen=True)
class Shard:
    """The rows of one shard, still encoded."""

    path: Path
    encoded: list[bytes]
    labels: Tensor  # [rows] int64

    def where(self, row: int) -> str:
        return f"{self.path}, row {row}"


def class_names(shard: Path, label_column: str) -> tuple[str, ...] | None:
    """The class names in a shard's Hub metadata, if it has them."""
    metadata = _schema(shard).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label_column, {}).get("names")
    return tuple(names) if names else None


def read_shard(path: Path, label_column: str) -> Shard:
    """A whole shard.

    Raises:
        ValueError: it is damaged, lacks a column, or a row lacks its image or label; the message names file and row.
    """
    column = image_column(path, label_column)
    try:
        table = pq.read_table(path, columns=[column, label_column], page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return _rows(path, table, column, label_column)


def row_groups(path: Path, label_column: str) -> Iterator[Shard]:
    """A shard piece by piece, for those too large to hold at once. Raises as `read_shard`; rows count from its start."""
    column, row = image_column(path, label_column), 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as content:
            tables = (content.read_row_group(i, columns=[column, label_column]) for i in range(content.num_row_groups))
            for table in tables:
                yield _rows(path, table, column, label_column, row)
                row += table.num_rows
    except pa.ArrowException as error:
        raise _damaged(path, error) from None


def _rows(path: Path, table: pa.Table, column: str, label_column: str, first_row: int = 0) -> Shard:
    images = table.column(column).combine_chunks()
    if pa.types.is_struct(images.type):
        images = images.field("bytes")
    labels = table.column(label_column).combine_chunks()
    for name, values in ((column, images), (label_column, labels)):
        if values.null_count:
            row = first_row + values.is_null().to_pylist().index(True)
            raise ValueError(f"{path}, row {row}: no value in column {name!r}")
    return Shard(path, images.to_pylist(), torch.tensor(labels.to_pylist(), dtype=torch.int64))


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
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}); download it again")
