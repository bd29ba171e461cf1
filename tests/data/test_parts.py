"""The layouts that people's images come in, as folders and as tables: which part is used for what, and errors that name the place."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tests.data.samples import encode, load, noise, table, write_shard, write_tree

from nst.data.dataset import Dataset
from nst.data.memory import MemorySplit


def sizes(data: Dataset) -> tuple[int, int | None, int]:
    return len(data.train), len(data.val) if data.val else None, len(data.test)


@pytest.mark.parametrize(
    ("parts", "validation", "expected", "unused"),
    [
        (("train", "val"), 0.0, (18, None, 9), ()),
        (("train", "test"), 0.0, (18, None, 9), ()),
        (("train", "test"), 0.3, (12, 6, 9), ()),
        (("train", "val"), 0.3, (12, 6, 9), ()),
        (("train", "val", "test"), 0.0, (18, 9, 9), ()),
        (("Train", "Valid", "TEST", "extra"), 0.0, (18, 9, 9), ("extra",)),
        (("training", "validation", "val", "test"), 0.0, (18, 9, 9), ("validation",)),
        (("train", "dev", "other"), 0.0, (18, None, 9), ("other",)),
        (("train",), 0.3, (12, None, 6), ()),
    ],
)
def test_parts_by_their_names(
    tmp_path: Path, parts: tuple[str, ...], validation: float, expected: Any, unused: Any
) -> None:
    write_tree(tmp_path, parts)
    data = load(tmp_path, validation=validation)
    assert sizes(data) == expected
    assert data.unused == unused
    assert data.class_counts() == [expected[0] // 3] * 3
    said = data.describe()
    assert ("best epoch is chosen on the test images" in said) == (data.val is None)
    assert all(name in said for name in unused)
    assert f"{expected[0]} training" in said


def test_class_folders_without_parts_are_one_part(tmp_path: Path) -> None:
    """Also where a class is called like a part, and where images lie deeper."""
    write_tree(tmp_path, ("flat",), images=10)
    root = tmp_path / "flat"
    (root / "class2").rename(root / "train")
    (root / "train" / "deeper").mkdir()
    (root / "train" / "9.JPEG").rename(root / "train" / "deeper" / "9.JPEG")
    data = load(root, validation=0.2)
    assert data.classes == ("class0", "class1", "train")
    assert sizes(data) == (24, None, 6)
    with pytest.raises(ValueError, match=r"flat: there is no test part; data\.validation=0\.1 takes a tenth"):
        load(root)


def test_what_is_no_image_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    expected = load(tmp_path).fingerprint
    assert not capsys.readouterr().err
    for name in ("._0.JPEG", ".DS_Store", ".hidden.png"):
        (tmp_path / "train" / "class1" / name).write_bytes(b"no image")
    for name in (".cache", "__MACOSX"):
        (tmp_path / "train" / name).mkdir()
        (tmp_path / "train" / name / "0.JPEG").write_bytes(b"no image")
    assert load(tmp_path).fingerprint == expected
    assert not capsys.readouterr().err
    (tmp_path / "val" / "class2" / "notes.txt").touch()
    assert load(tmp_path).fingerprint == expected
    assert (
        f"val: not read, since their names are no images': {tmp_path / 'val' / 'class2' / 'notes.txt'}"
        in capsys.readouterr().err
    )


def test_images_without_labels_lie_as_they_like(tmp_path: Path) -> None:
    write_tree(tmp_path, ("flat",), images=10)
    (tmp_path / "flat" / "top.png").write_bytes(encode(noise(1)[0]))
    settings: dict[str, Any] = {"labeled": False, "validation": 0.2, "num_classes": 1000}
    data = load(tmp_path, path=str(tmp_path), **settings)
    assert sizes(data) == (25, None, 6)
    assert (data.classes, data.class_counts(), data.labeled) == (None, [], False)
    batch = next(data.train.loader(8, train=True).epoch(0))
    assert batch.labels.tolist() == [-1] * 8
    assert "without labels" in data.describe()
    assert len(load(tmp_path, **settings, limit=5).train) == 5


def test_small_images_may_stay_in_memory(tmp_path: Path) -> None:
    pixels = noise(18, 16)
    for i, image in enumerate(pixels):
        path = tmp_path / ("train" if i < 12 else "test") / f"class{i % 3}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    data = load(tmp_path, pad=2)
    assert isinstance(data.train, MemorySplit)
    assert data.train.num_views == 50
    order = [i for label in range(3) for i in range(label, 12, 3)]
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1), pixels[order])
    (tmp_path / "train" / "class1" / "01.png").write_bytes(encode(noise(1, 17)[0]))
    with pytest.raises(ValueError, match=r"01\.png: the image is 17×17 pixels, data\.size=16 needs 16×16"):
        load(tmp_path, pad=2)


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere: no such folder. Expected a folder of train/<class>"):
        load(tmp_path / "nowhere")
    write_tree(tmp_path, ("train", "val", "test"))
    for changes, message in (
        ({"num_classes": 4}, r"data\.num_classes=4, but images has 3 classes, class0, class1, class2"),
        ({"validation": 0.1}, r"data\.validation: 0\.1; .* has a validation part, val"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path, **changes)
    (tmp_path / "train").rename(tmp_path / "learn")
    with pytest.raises(ValueError, match=r"its parts are test, val; one must be called train"):
        load(tmp_path)
    (tmp_path / "learn").rename(tmp_path / "train")
    write_tree(tmp_path / "test", ("other",), classes=1)
    with pytest.raises(ValueError, match=r"test: its classes are not those of the training part: it has other"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "test" / "other")
    shutil.rmtree(tmp_path / "val" / "class0")
    with pytest.raises(ValueError, match=r"val: its classes .*: it lacks class0"):
        load(tmp_path)
    (tmp_path / "val" / "class0").mkdir()
    with pytest.raises(ValueError, match=r"val.class0: no images in it"):
        load(tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The images of a tree as shards on the Hub: 18 training images in two, 9 for validation, and a test part without labels."""
    write_tree(tmp_path / "tree")
    files = {part: sorted((tmp_path / "tree" / part).glob("*/*")) for part in ("train", "val")}
    encoded = {part: [path.read_bytes() for path in paths] for part, paths in files.items()}
    labels = {part: [int(path.parent.name[-1]) for path in paths] for part, paths in files.items()}
    root, more = tmp_path / "hub" / "data", {"image": "image", "names": ["class0", "class1", "class2"]}
    write_shard(root / "train-00000-of-00002.parquet", encoded["train"][:10], labels["train"][:10], **more)
    write_shard(root / "train-00001-of-00002.parquet", encoded["train"][10:], labels["train"][10:], **more)
    write_shard(root / "validation-00000-of-00001.parquet", encoded["val"], labels["val"], **more)
    write_shard(root / "test-00000-of-00001.parquet", encoded["val"], [-1] * 9, **more)
    return tmp_path / "hub"


def load_table(path: Path, **changes: Any) -> Dataset:
    return load("", path=str(path), cache_dir=str(path.parent / "cache"), **changes)


def first_batches(data: Dataset, workers: int = 0) -> list[torch.Tensor]:
    loaders = (data.split(name).loader(4, train=name == "train", seed=1, workers=workers) for name in ("train", "test"))
    return [tensor for loader in loaders for batch in loader.epoch(0) for tensor in batch]


def test_shards_give_what_the_class_folders_give(shards: Path) -> None:
    data, tree = load_table(shards), load(shards.parent / "tree")
    assert data.classes == tree.classes
    assert data.unused == ("test (no labels)",)
    for workers in (0, 1):
        for found, expected in zip(first_batches(data, workers), first_batches(tree), strict=True):
            assert torch.equal(found, expected)
    assert data.fingerprint == load_table(shards).fingerprint


def saved(folder: Path, shards: Path) -> None:
    datasets.load_dataset(str(shards), cache_dir=str(shards.parent / "cache")).save_to_disk(folder)  # type: ignore[union-attr]


def one_folder_a_part(folder: Path, shards: Path) -> None:
    for number, path in enumerate(sorted((shards / "data").glob("[tv]*.parquet"))):
        place = folder / path.name.partition("-")[0] / f"{number:04}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def flat_with_metadata(folder: Path, shards: Path) -> None:
    for part in ("train", "val"):
        lines = ["file_name,label"]
        for path in sorted((shards.parent / "tree" / part).glob("*/*")):
            name = f"{path.parent.name}_{path.name}"
            (folder / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / part / name)
            lines.append(f"{name},{path.parent.name}")
        (folder / part / "metadata.csv").write_text("\n".join(lines))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves metadata.csv open
@pytest.mark.parametrize("lay_out", [saved, one_folder_a_part, flat_with_metadata])
def test_other_tables_give_the_same(shards: Path, tmp_path: Path, lay_out: Any) -> None:
    lay_out(tmp_path / "other", shards)
    found, expected = load_table(tmp_path / "other"), load(shards.parent / "tree")
    assert found.classes == expected.classes
    for a, b in zip(first_batches(found), first_batches(expected), strict=True):
        assert torch.equal(a, b)


def test_what_is_wrong_with_a_table_is_named(shards: Path) -> None:
    path, encoded = shards / "data" / "train-00001-of-00002.parquet", [encode(image) for image in noise(8)]

    def write(images: list[Any], labels: list[int]) -> None:
        write_shard(path, images, labels, image="image", names=["class0", "class1", "class2"])

    for changes, message in (
        ({"label_column": "kind"}, r"data\.label_column: 'kind'; data\.path=.* has the columns image, label; name one"),
        ({"image_column": "picture"}, r"data\.image_column: 'picture'; "),
        ({"num_classes": 2}, r"data\.num_classes=2, but images has 3 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            load_table(shards, **changes)
    write([*encoded[:5], encoded[5][:99], *encoded[6:]], [0, 1, 2, 0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"part train, row 15: the image cannot be decoded"):
        list(load_table(shards).train.loader(4, train=True).epoch(0))
    write([*encoded[:5], None, *encoded[6:]], [0, 1, 2, 0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match=r"part train, row 15: there is no image"):
        list(load_table(shards).train.loader(4, train=True).epoch(0))
    write(encoded, [0, 1, 2, 0, 1, -1, 0, 1])
    with pytest.raises(ValueError, match=r"part train, row 15: label -1, but .* allows 0 to 2"):
        load_table(shards)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"data\.path=.*hub: Hugging Face datasets cannot read it"):
        load_table(shards)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet is missing; there should be 2 shards"):
        load_table(shards)
    shutil.copy(shards / "data" / "train-00000-of-00002.parquet", shards / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"train-\*\.parquet are several sets of shards"):
        load_table(shards)


def test_columns_are_found_by_their_types(tmp_path: Path) -> None:
    rows = table(
        [encode(image) for image in noise(12)], [0, 1, 2] * 4, image="picture", label="kind", names=["a", "b", "c"]
    )
    for name, part in (("train", rows), ("test", rows.select(range(6)))):
        (tmp_path / "set").mkdir(exist_ok=True)
        part.add_column("remark", ["x"] * len(part)).to_parquet(tmp_path / "set" / f"{name}.parquet")  # type: ignore[call-arg]
    data = load_table(tmp_path / "set")
    assert data.classes == ("a", "b", "c")
    assert sizes(data) == (12, None, 6)


def test_small_images_of_a_table_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(18, 16)
    for part, images in (("train", pixels[:12]), ("test", pixels[12:])):
        write_shard(
            tmp_path / "set" / f"{part}.parquet", [encode(image) for image in images], [0, 1, 2] * (len(images) // 3)
        )
    data = load_table(tmp_path / "set", pad=2)
    assert isinstance(data.train, MemorySplit)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1), pixels[:12])
    monkeypatch.setattr("nst.data.images.decode", None)  # not needed a second time
    assert load_table(tmp_path / "set", pad=2).fingerprint == data.fingerprint
