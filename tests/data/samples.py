"""Tiny data sets written as their publishers write them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from nst.data.batch import Batch
from nst.data.dataset import Dataset, Images

SETTINGS: dict[str, Any] = {
    "name": "images", "num_classes": 3, "channels": 3, "size": 16, "mean": [0.5] * 3, "std": [0.25] * 3, "validation": 0.0,
    "limit": None, "flip": True, "resize": 20, "jitter": 0.4, "pca_noise": 0.1,
}  # fmt: skip


def load(root: Path | str, **changes: Any) -> Dataset:
    """Images of three classes, as `data=folder` reads them."""
    place: dict[str, Any] = {} if "path" in changes else {"root": str(root)}
    return Images(**(SETTINGS | place | changes))


def written(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """An image file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def encode(pixels: np.ndarray, kind: str = "PNG", mode: str = "RGB", **settings: Any) -> bytes:
    """[H, W, 3] uint8 → an image file's bytes."""
    return written(Image.fromarray(pixels).convert(mode), kind, **settings)


def noise(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def write_shard(path: Path, images: list[Any], labels: list[Any], names: list[str], image: str = "img") -> None:
    """Encoded images, some of them perhaps None, and labels with their names, as on the Hub."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({image: datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {image: [data and {"bytes": data, "path": None} for data in images], "label": labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(path)


def write_tree(root: Path, parts: tuple[str, ...] = ("train", "val"), classes: int = 3, images: int = 6) -> None:
    """<part>/<class>/*: JPEGs of many sizes, some grayscale, some CMYK; half as many in all parts but the first."""
    draw = np.random.default_rng(0)
    for folder in (root / part / f"class{label}" for part in parts for label in range(classes)):
        folder.mkdir(parents=True)
        for i in range(images if folder.parent.name == parts[0] else images // 2):
            pixels = draw.integers(0, 256, (*draw.integers(30, 60, 2), 3), dtype=np.uint8)
            (folder / f"{i}.JPEG").write_bytes(encode(pixels, "JPEG", ("RGB", "L", "CMYK")[i % 3]))


def same(batches: list[Batch], others: list[Batch]) -> bool:
    """Bit for bit."""
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def joined(ranks: list[Iterator[Batch]]) -> list[Batch]:
    """The batches of one process, put together from the parts that each rank has."""
    return [Batch(*(torch.cat(parts) for parts in zip(*step, strict=True))) for step in zip(*ranks, strict=True)]
