"""CIFAR from its authors' archive and from parquet shards: the same pixels, classes and fingerprint."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.samples import SETTINGS, encode, noise, write_shard
from torchvision.datasets import CIFAR10

from nst.data.dataset import Cifar, Dataset

NAMES, PIXELS = [f"class {i}" for i in range(10)], noise(60)


def load(root: Path, **changes: Any) -> Dataset:
    place = {
        "name": "cifar10",
        "num_classes": 10,
        "size": 32,
        "root": str(root),
        "pad": 4,
        "jitter": 0.0,
        "pca_noise": 0.0,
    }
    return Cifar(**(SETTINGS | place | {"cache_dir": str(root.parent / "cache")} | changes))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 in miniature, in its authors' pickles: five batches of 10 images and a test batch of 10."""
    folder, digests = tmp_path / "archive" / "cifar-10-batches-py", {}
    folder.mkdir(parents=True)
    content: dict[str, Any] = {"batches.meta": {"label_names": NAMES}}
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = PIXELS[10 * i : 10 * i + 10].transpose(0, 3, 1, 2).reshape(10, 3072)
        content[name] = {"data": rows, "labels": list(range(10))}
    for name, value in content.items():
        (folder / name).write_bytes(data := pickle.dumps(value, protocol=2))
        digests[name] = hashlib.md5(data).hexdigest()
    pairs = [[name, digest] for name, digest in digests.items()]
    monkeypatch.setattr(CIFAR10, "train_list", pairs[1:6])
    monkeypatch.setattr(CIFAR10, "test_list", pairs[6:])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": digests["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path / "archive"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The same images as on the Hub."""
    root, encoded = tmp_path / "hub", [encode(image) for image in PIXELS]
    for part, start, end in (("train-00000-of-00002", 0, 30), ("train-00001-of-00002", 30, 50), ("test", 50, 60)):
        write_shard(root / f"{part}.parquet", encoded[start:end], [i % 10 for i in range(start, end)], NAMES)
    return root


def test_archive_and_shards_are_the_same_data(archive: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of shards are decoded once."""
    found, expected = load(archive), load(shards)
    for data in (found, expected, load(archive / "cifar-10-batches-py")):
        train, test = (getattr(split, "images").permute(0, 2, 3, 1) for split in (data.train, data.test))  # noqa: B009
        assert np.array_equal(train, PIXELS[:50])
        assert np.array_equal(test, PIXELS[50:])
        assert data.train.labels.tolist() == list(range(10)) * 5
        assert (data.classes, data.train.num_views) == (tuple(NAMES), 162)
    monkeypatch.setattr("nst.data.images.decode", None)
    assert found.fingerprint == expected.fingerprint == load(shards).fingerprint
    one, other = (next(data.train.loader(16, train=True, seed=2).epoch(1)) for data in (found, expected))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_wrong_is_named(archive: Path, shards: Path) -> None:
    def refused(message: str, root: Path = archive, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            load(root, **changes)

    refused(r"data\.root=.*nowhere", archive / "nowhere")
    refused(r"data\.num_classes=11", num_classes=11)
    refused(r"data\.jitter: 0\.4; it must be 0\.0", jitter=0.4)
    batch = archive / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:-1])
    refused(r"data\.root=.*corrupted")
    write_shard(shards / "test.parquet", [encode(noise(1, 31)[0])] * 10, list(range(10)), NAMES)
    refused(r"part test, row 0: .*31×31", shards)
