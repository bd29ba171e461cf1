"""Tiny data sets written as their publishers write them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(pixels: np.ndarray, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """[H, W, 3] uint8 → an image file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def noise(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def write_shard(path: Path, images: list[Any], labels: list[Any], **more: Any) -> None:
    """A parquet shard as the Hub's: a struct of bytes and path, a label, names in the metadata."""
    image, label, names = more.get("image", "img"), more.get("label", "label"), more.get("names")
    struct = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.table({image: struct, label: pa.array(labels, pa.int64())})
    if names:
        features = {label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table, path, row_group_size=more.get("row_group_size", 4), compression=more.get("compression", "snappy")
    )


def write_tree(root: Path, classes: int = 3, images: int = 6, kind: str = "JPEG") -> None:
    """train/<class>/* and val/<class>/*: JPEGs of many sizes, some grayscale, some CMYK."""
    draw = np.random.default_rng(0)
    for part, count in (("train", images), ("val", images // 2)):
        for label in range(classes):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = draw.integers(30, 60, 2)
                pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
                mode = ("RGB", "L", "CMYK")[i % 3]
                (folder / f"{i}.{kind}").write_bytes(encode(pixels, kind, mode))
