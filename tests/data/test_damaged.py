"""Mutated files of every kind: read, or refused by a ValueError that names the file, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.samples import encode, noise, write_shard
from tests.data.test_cifar import load as load_cifar
from tests.data.test_folder import load as load_folder

_MUTATIONS = 25  # of each file


def mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """Cut, flipped, overwritten, shortened or lengthened, mostly near the ends, where headers and footers are."""
    data = bytearray(content)
    ends = min(len(data), 400)
    place = int(draw.choice([draw.integers(ends), len(data) - 1 - draw.integers(ends), draw.integers(len(data))]))
    kind = draw.integers(5)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        data[place] ^= 1 << int(draw.integers(8))
    elif kind == 2:
        data[place : place + 8] = draw.bytes(8)
    elif kind == 3:
        del data[place : place + int(draw.integers(1, 30))]
    else:
        data[place:place] = draw.bytes(int(draw.integers(1, 30)))
    return bytes(data)


def read_all(root: Path) -> None:
    """Every image of a folder, decoded."""
    data = load_folder(root)
    assert data.fingerprint
    for split in ("train", "test"):
        assert sum(len(batch.labels) for batch in data.split(split).loader(8, train=False).epoch(0)) > 0


def fuzz(path: Path, read: Callable[[], Any]) -> None:
    content, draw = path.read_bytes(), np.random.default_rng(0)
    errors: list[Exception] = []
    for _ in range(_MUTATIONS):
        path.write_bytes(mutated(content, draw))
        try:
            read()
        except Exception as error:
            errors.append(error)
    path.write_bytes(content)
    read()
    assert errors
    assert [error for error in errors if type(error) is not ValueError or str(path.parent) not in str(error)] == []


def test_shards_in_memory(hub_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = hub_cifar
    fuzz(root / "train-00000-of-00002.parquet", lambda: load_cifar(root))


def test_shards_on_disk(tmp_path: Path) -> None:
    encoded = [encode(image, "JPEG") for image in noise(12)]
    write_shard(tmp_path / "train-0.parquet", encoded[:9], [0, 1, 2] * 3, image="image")
    write_shard(tmp_path / "val-0.parquet", encoded[9:], [0, 1, 2], image="image")
    fuzz(tmp_path / "train-0.parquet", lambda: read_all(tmp_path))


def test_pickles(folder_cifar: tuple[Path, np.ndarray]) -> None:
    root, _ = folder_cifar
    for name in ("data_batch_2", "batches.meta"):
        fuzz(root / "cifar-10-batches-py" / name, lambda: load_cifar(root))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_images(tmp_path: Path, kind: str) -> None:
    for i, image in enumerate(noise(6)):
        path = tmp_path / ("train" if i < 3 else "val") / f"class{i % 3}" / f"a.{kind}"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(image, kind))
    fuzz(tmp_path / "train" / "class1" / f"a.{kind}", lambda: read_all(tmp_path))


def test_a_class_folder_that_is_a_file_and_a_folder_that_is_an_image(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label in range(3):
            (tmp_path / part / f"class{label}").mkdir(parents=True)
            (tmp_path / part / f"class{label}" / "a.png").write_bytes(encode(noise(1)[0]))
    folder = tmp_path / "val" / "class2"
    (folder / "b.png").mkdir()
    with pytest.raises(ValueError, match=r"b\.png: not a file"):
        load_folder(tmp_path)
    shutil.rmtree(folder)
    folder.write_text("no folder")
    with pytest.raises(ValueError, match=r"val: no folder of class class2"):
        load_folder(tmp_path)
