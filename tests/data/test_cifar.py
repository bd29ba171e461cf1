import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.samples import encode, noise, write_shard

from nst.data.cifar import load_cifar
from nst.data.dataset import Dataset
from nst.data.memory import MemorySplit


def load(root: Path | str, **changes: Any) -> Dataset:
    settings: dict[str, Any] = {
        "name": "cifar10", "num_classes": 10, "channels": 3, "size": 32, "mean": [0.5] * 3, "std": [0.25] * 3,
        "root": str(root), "validation": 0.0, "limit": None, "pad": 4, "flip": True, "download": False,
    }  # fmt: skip
    return load_cifar(**(settings | changes))


def pixels_of(split: Any) -> np.ndarray:
    assert isinstance(split, MemorySplit)
    return split.images.permute(0, 2, 3, 1).numpy()


def test_shards_are_read_in_order(hub_cifar: tuple[Path, np.ndarray]) -> None:
    root, pixels = hub_cifar
    data = load(root)
    assert np.array_equal(pixels_of(data.train), pixels[:20])
    assert np.array_equal(pixels_of(data.test), pixels[20:])
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert data.val is None
    assert data.classes is not None
    assert data.classes[3] == "class 3"


def test_torchvisions_folder_is_read(folder_cifar: tuple[Path, np.ndarray]) -> None:
    root, pixels = folder_cifar
    data = load(root)
    assert np.array_equal(pixels_of(data.train), pixels[:50])
    assert np.array_equal(pixels_of(data.test), pixels[50:])
    assert data.classes is not None
    assert load(root / "cifar-10-batches-py").fingerprint == data.fingerprint


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    encoded = [encode(image) for image in noise(100)]
    for part in ("train", "test"):
        write_shard(tmp_path / f"{part}-00000-of-00001.parquet", encoded, list(range(100)), label="fine_label")
    assert load(tmp_path, name="cifar100", num_classes=100).train.labels.tolist() == list(range(100))


def test_the_validation_part_is_apart_and_fixed(folder_cifar: tuple[Path, np.ndarray]) -> None:
    root, pixels = folder_cifar
    data = load(root, validation=0.2)
    train, val = pixels_of(data.train), pixels_of(data.val)
    assert (len(train), len(val)) == (40, 10)
    assert data.val is not None
    assert data.val.labels.bincount().tolist() == [1] * 10
    assert {image.tobytes() for image in np.concatenate([train, val])} == {image.tobytes() for image in pixels[:50]}
    limited = load(root, validation=0.2, limit=20)
    assert limited.val is not None
    assert limited.val.fingerprint == data.val.fingerprint
    assert limited.train.labels.bincount().tolist() == [2] * 10


def test_splits_make_loaders(hub_cifar: tuple[Path, np.ndarray]) -> None:
    data = load(hub_cifar[0])
    loader = data.split("train").loader(8, train=True, seed=1, views=data.train.view_subset(2))
    assert (loader.num_images, loader.batch_size, loader.steps) == (20, 8, 3)
    assert sum(len(batch.labels) for batch in loader.epoch(0)) == 20
    evaluation = next(data.split("test").loader(10, train=False, channels_last=True).epoch(0))
    assert torch.equal(evaluation.labels, torch.arange(10))
    with pytest.raises(ValueError, match=r"split 'val': cifar10 has train, test; data\.validation"):
        data.split("val").loader(8, train=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cifar11"}, "data.name: 'cifar11'"),
        ({"channels": 1, "mean": [0.5], "std": [0.5]}, "data.channels: 1; cifar10 has 3"),
        ({"mean": [0.5]}, "data.mean: 1 values for data.channels=3"),
        ({"mean": "0.5"}, "data.mean: '0.5'; it must be a list"),
        ({"std": [0.5, 0.5, 0.0]}, "data.std: .* above 0"),
        ({"std": [0.5, 0.5, float("nan")]}, "data.std: .* finite"),
        ({"validation": 1.0}, "data.validation: 1.0"),
        ({"validation": -0.1}, "data.validation: -0.1"),
        ({"limit": 9}, "data.limit: 9 is below the 10 classes"),
        ({"limit": "all"}, "data.limit: 'all'"),
        ({"size": 0}, "data.size: 0"),
        ({"pad": -1}, "data.pad: -1"),
    ],
)
def test_settings_are_checked_before_anything_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("nowhere", **changes)


def test_a_missing_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.root=.*nowhere: no such folder.*cifar-10-batches-py.*parquet.*download=true"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="it does not hold torchvision's folder cifar-10-batches-py"):
        load(tmp_path)


def test_settings_that_do_not_fit_the_data(hub_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = hub_cifar
    with pytest.raises(ValueError, match=r"train-00000-of-00002\.parquet, row 7: label 7, but .*allows 0 to 6"):
        load(root, num_classes=7)
    with pytest.raises(ValueError, match="no training image of class 10, 11"):
        load(root, num_classes=12)
    with pytest.raises(ValueError, match=r"data\.limit: 30; the training set has 20 images"):
        load(root, limit=30)
    with pytest.raises(ValueError, match=r"row 0: the image is 32×32 pixels, data\.size=16 needs 16×16"):
        load(root, size=16)
    with pytest.raises(ValueError, match=r"data\.validation: 0\.1 of the largest class"):
        load(root, validation=0.1)


def spoil_shard(root: Path, fault: str) -> None:
    shard = root / "train-00001-of-00002.parquet"
    encoded, labels = [encode(image) for image in noise(10)], list(range(10))
    if fault == "truncated file":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif fault == "empty file":
        shard.write_bytes(b"")
    elif fault == "missing":
        shard.unlink()
    elif fault == "truncated image":
        write_shard(shard, [*encoded[:5], encoded[5][:-200], *encoded[6:]], labels)
    elif fault == "flipped bit":
        broken = bytearray(encoded[5])
        broken[1500] ^= 1
        write_shard(shard, [*encoded[:5], bytes(broken), *encoded[6:]], labels)
    elif fault == "no image":
        write_shard(shard, [*encoded[:5], None, *encoded[6:]], labels)
    elif fault == "label":
        write_shard(shard, encoded, [*labels[:5], -1, *labels[6:]])
    elif fault == "size":
        write_shard(shard, [*encoded[:5], encode(noise(1, 28)[0]), *encoded[6:]], labels)
    elif fault == "columns":
        write_shard(shard, encoded, labels, image="picture")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated file", "cannot be read as parquet"),
        ("empty file", "cannot be read as parquet"),
        ("missing", "is missing: train-00000-of-00002.parquet says there are 2"),
        ("truncated image", "row 5: the image cannot be decoded"),
        ("flipped bit", "row 5: the image cannot be decoded"),
        ("no image", "row 5: no value in column 'img'"),
        ("label", "row 5: label -1, but data.num_classes=10 allows 0 to 9"),
        ("size", "row 5: the image is 28×28 pixels"),
        ("columns", "needs a column 'label' and a column 'img' or 'image'; it has picture, label"),
    ],
)
def test_a_bad_shard_is_named(hub_cifar: tuple[Path, np.ndarray], fault: str, message: str) -> None:
    root, _ = hub_cifar
    spoil_shard(root, fault)
    with pytest.raises(ValueError, match=rf"train-00001-of-00002\.parquet.*{message}"):
        load(root)


@pytest.mark.parametrize(
    "name", ["train-00000-of-00001", "train-00000-of-00002-0a1b2c", "train_small-00000-of-00002", "train"]
)
def test_two_sets_of_shards_are_not_read_as_one(hub_cifar: tuple[Path, np.ndarray], name: str) -> None:
    """Another version of the data set beside it; its images would be trained on twice."""
    root, _ = hub_cifar
    shutil.copy(root / "train-00000-of-00002.parquet", root / f"{name}.parquet")
    with pytest.raises(ValueError, match=rf"{name}\.parquet.* are several sets of shards.*; keep one set"):
        load(root)


def test_shards_with_a_hash_behind_their_number_are_complete(hub_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = hub_cifar
    for number, code in ((0, "1a2b"), (1, "ff00")):
        path = root / f"train-0000{number}-of-00002.parquet"
        path.rename(path.with_stem(f"{path.stem}-{code}"))
    assert len(load(root).train) == 20
    path.with_stem(f"{path.stem}-{code}").unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet is missing"):
        load(root)


def test_both_parts_must_number_the_classes_alike(hub_cifar: tuple[Path, np.ndarray]) -> None:
    root, pixels = hub_cifar
    names = [f"class {i}" for i in (0, 1, 3, 2, *range(4, 10))]
    shard = root / "test-00000-of-00001.parquet"
    write_shard(shard, [encode(image) for image in pixels[20:]], list(range(10)), names=names)
    with pytest.raises(ValueError, match="class 2 is 'class 2' in the training images, 'class 3' in the test images"):
        load(root)


def test_a_missing_part_is_named(hub_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = hub_cifar
    (root / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"no parquet shard named test\*\.parquet; found train-00000"):
        load(root)


class Malicious:
    """A pickle that would call a function when loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; data.download=true"),
        (b"\x80\x02}q\x00", "cannot be read"),
        (pickle.dumps(Malicious()), "cannot be read .*builtins.print"),
        (pickle.dumps([1, 2]), "holds a list, not a CIFAR batch"),
        (pickle.dumps({"pixels": 1}), "needs 'data' and 'labels'; it has pixels"),
        (pickle.dumps({"data": np.zeros((10, 3072)), "labels": [0] * 10}), "'data' is float64"),
        (pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": [0] * 9}), "need uint8 .9, 3072."),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}), "row 1: label 10"),
    ],
    ids=["missing", "cut", "code", "list", "keys", "float", "rows", "label"],
)
def test_a_bad_batch_is_named(
    folder_cifar: tuple[Path, np.ndarray], capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    root, _ = folder_cifar
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_3.*{message}"):
        load(root)
    assert capsys.readouterr().out == ""
