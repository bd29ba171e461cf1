"""CIFAR from its authors' archive and from parquet shards: the same pixels, classes and fingerprint."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.samples import encode, noise, write_shard
from torchvision.datasets import CIFAR10

from nst.data.dataset import Cifar, Dataset
from nst.data.memory import MemorySplit

NAMES = [f"class {i}" for i in range(10)]


def load(root: Path, **changes: Any) -> Dataset:
    settings: dict[str, Any] = {
        "name": "cifar10", "num_classes": 10, "channels": 3, "size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "root": str(root),
        "validation": 0.0, "limit": None, "pad": 4, "flip": True, "download": False, "cache_dir": str(root.parent / "cache"),
    }  # fmt: skip
    return Cifar(**(settings | changes))


@pytest.fixture
def pixels() -> np.ndarray:
    return noise(60)


@pytest.fixture
def archive(tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 in miniature, in its authors' pickles: five batches of 10 images and a test batch of 10."""
    folder, digests = tmp_path / "archive" / "cifar-10-batches-py", {}
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = pixels[10 * i : 10 * i + 10].transpose(0, 3, 1, 2).reshape(10, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(10))}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=2))
    for path in folder.iterdir():
        digests[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    pairs = sorted(map(list, digests.items()))
    monkeypatch.setattr(CIFAR10, "train_list", [pair for pair in pairs if pair[0].startswith("data")])
    monkeypatch.setattr(CIFAR10, "test_list", [pair for pair in pairs if pair[0].startswith("test")])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": digests["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path / "archive"


@pytest.fixture
def shards(tmp_path: Path, pixels: np.ndarray) -> Path:
    """The same images as on the Hub."""
    root, encoded = tmp_path / "hub", [encode(image) for image in pixels]
    for part, start, end in (("train-00000-of-00002", 0, 30), ("train-00001-of-00002", 30, 50), ("test", 50, 60)):
        write_shard(root / f"{part}.parquet", encoded[start:end], [i % 10 for i in range(start, end)], names=NAMES)
    return root


def test_archive_and_shards_are_the_same_data(
    archive: Path, shards: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of shards are decoded once."""
    found, expected = load(archive), load(shards)
    for data in (found, expected, load(archive / "cifar-10-batches-py")):
        assert isinstance(data.train, MemorySplit)
        assert isinstance(data.test, MemorySplit)
        assert np.array_equal(data.train.images.permute(0, 2, 3, 1), pixels[:50])
        assert np.array_equal(data.test.images.permute(0, 2, 3, 1), pixels[50:])
        assert data.train.labels.tolist() == list(range(10)) * 5
        assert data.classes == tuple(NAMES)
        assert data.train.num_views == 162
    monkeypatch.setattr("nst.data.images.decode", None)
    assert found.fingerprint == expected.fingerprint == load(shards).fingerprint
    one, other = (next(data.train.loader(16, train=True, seed=2).epoch(1)) for data in (found, expected))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_wrong_is_named(archive: Path, shards: Path) -> None:
    def refused(message: str, root: Path = archive, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            load(root, **changes)

    refused(r"data\.root=.*neither parquet shards .*data\.download=true downloads cifar10", archive / "nowhere")
    refused(r"data\.num_classes=11, but cifar10 has 10: class 0, ", num_classes=11)
    batch = archive / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1])
    refused(r"data\.root=.*nor a whole folder cifar-10-batches-py .*corrupted")
    write_shard(shards / "test.parquet", [encode(noise(1, 31)[0])] * 10, list(range(10)), names=NAMES)
    refused(r"part test, row 0: the image is 31×31 pixels, data\.size=32 needs 32×32", shards)
