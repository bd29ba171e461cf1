"""CIFAR-10 in miniature, as its publishers lay it out."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.data.samples import encode, noise, write_shard


@pytest.fixture
def hub_cifar(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """CIFAR-10 in two training shards of 10 images and a test shard of 10; the pixels of the 30 images."""
    pixels = noise(30)
    encoded, labels = [encode(image) for image in pixels], list(range(10))
    names = [f"class {i}" for i in range(10)]
    write_shard(tmp_path / "train-00000-of-00002.parquet", encoded[:10], labels, names=names)
    write_shard(tmp_path / "train-00001-of-00002.parquet", encoded[10:20], labels)
    write_shard(tmp_path / "test-00000-of-00001.parquet", encoded[20:], labels)
    return tmp_path, pixels


@pytest.fixture
def folder_cifar(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """CIFAR-10 in its authors' pickles: five batches of 10 images and a test batch of 10; the pixels of the 60 images."""
    pixels = noise(60)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        rows = pixels[10 * i : 10 * i + 10].transpose(0, 3, 1, 2).reshape(10, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(10))}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, protocol=2))
    return tmp_path, pixels
