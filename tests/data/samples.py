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


def encode(pixels: np.ndarray, kind: str = "PNG", mode: str = "RGB", **settings: Any) -> bytes:
    """[H, W, 3] uint8 → an image file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def noise(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def table(
    images: list[Any], labels: list[Any], image: str = "img", label: str = "label", names: list[str] | None = None
) -> datasets.Dataset:
    """A table as on the Hub: encoded images and labels, with their names if there are any."""
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({image: datasets.Image(), label: kind})
    rows = {image: [None if data is None else {"bytes": data, "path": None} for data in images], label: labels}
    return datasets.Dataset.from_dict(rows, features)


def write_shard(path: Path, images: list[Any], labels: list[Any], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table(images, labels, **more).to_parquet(path)


def write_tree(root: Path, parts: tuple[str, ...] = ("train", "val"), classes: int = 3, images: int = 6) -> None:
    """<part>/<class>/*: JPEGs of many sizes, some grayscale, some CMYK; half as many in all parts but the first."""
    draw = np.random.default_rng(0)
    for part in parts:
        for label in range(classes):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(images if part == parts[0] else images // 2):
                height, width = draw.integers(30, 60, 2)
                pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
                (folder / f"{i}.JPEG").write_bytes(encode(pixels, "JPEG", ("RGB", "L", "CMYK")[i % 3]))


def same(batches: list[Batch], others: list[Batch]) -> bool:
    """Bit for bit."""
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def joined(ranks: list[Iterator[Batch]]) -> list[Batch]:
    """The batches of one process, put together from the parts that each rank has."""
    return [Batch(*(torch.cat(parts) for parts in zip(*step, strict=True))) for step in zip(*ranks, strict=True)]
