"""The layouts that people's images come in, as folders and as tables: which part is used for what, and errors that name the place."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.data.samples import encode, load, noise, same, write_shard, write_tree

from nst.data.dataset import Dataset

CLASSES = ["class0", "class1", "class2"]


def sizes(data: Dataset) -> tuple[int, int | None, int]:
    return len(data.train), len(data.val) if data.val else None, len(data.test)


PARTS: list[tuple[str, float, Any, Any]] = [
    ("train val", 0.0, (18, None, 9), ()),
    ("train test", 0.3, (12, 6, 9), ()),
    ("train val", 0.3, (12, 6, 9), ()),
    ("train val test", 0.0, (18, 9, 9), ()),
    ("Train Valid TEST extra", 0.0, (18, 9, 9), ("extra",)),
    ("training validation val test", 0.0, (18, 9, 9), ("validation",)),
    ("train dev other", 0.0, (18, None, 9), ("other",)),
    ("train", 0.3, (12, None, 6), ()),
]


@pytest.mark.parametrize(("parts", "validation", "expected", "unused"), PARTS)
def test_parts_by_their_names(tmp_path: Path, parts: str, validation: float, expected: Any, unused: Any) -> None:
    write_tree(tmp_path, tuple(parts.split()))
    data = load(tmp_path, validation=validation)
    assert (sizes(data), data.unused) == (expected, unused)
    said = data.describe()
    assert ("on the test images" in said) == (data.val is None)
    assert all(name in said for name in (*unused, f"{expected[0]} training"))
    tested = next((name for name in ("val", "dev") if name in parts.split() and "test" not in parts.lower()), "")
    assert f"test ({tested}) images" in said or not tested


def test_a_flat_folder_has_classes_or_no_labels(tmp_path: Path) -> None:
    """Also where a class is called like a part, and where images lie deeper."""
    write_tree(tmp_path, ("flat",), images=10)
    root = tmp_path / "flat"
    (root / "class2").rename(root / "train")
    (root / "train" / "deeper").mkdir()
    (root / "train" / "9.JPEG").rename(root / "train" / "deeper" / "9.JPEG")
    data = load(root, validation=0.2)
    assert (data.classes, sizes(data)) == (("class0", "class1", "train"), (24, None, 6))
    with pytest.raises(ValueError, match=r"flat: there is no test part; data\.validation"):
        load(root)
    (root / "top.png").write_bytes(encode(noise(1)[0]))
    settings: dict[str, Any] = {"labeled": False, "validation": 0.2, "num_classes": 1000}
    data = load(tmp_path, path=str(tmp_path), **settings)
    assert (data.classes, data.labeled, sizes(data)) == (None, False, (25, None, 6))
    assert next(data.train.loader(8, train=True).epoch(0)).labels.tolist() == [-1] * 8
    assert len(load(tmp_path, **settings, limit=5).train) == 5


def test_what_is_no_image_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path)
    expected = load(tmp_path).fingerprint
    for name in ("class1/._0.JPEG", "class1/.DS_Store", ".cache/0.JPEG", "__MACOSX/0.JPEG"):
        path = tmp_path / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    assert load(tmp_path).fingerprint == expected
    assert not capsys.readouterr().err
    notes = tmp_path / "val" / "class2" / "notes.txt"
    notes.touch()
    assert load(tmp_path).fingerprint == expected
    assert str(notes) in capsys.readouterr().err


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, ("train", "val", "test"))

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            load(changes.pop("root", tmp_path), **changes)

    refused(r"data\.root=.*nowhere", root=tmp_path / "nowhere")
    refused(r"data\.num_classes=4, .* 3: class0, class1, class2", num_classes=4)
    refused(r"data\.validation: 0\.1", validation=0.1)
    train, first = tmp_path / "train", tmp_path / "val" / "class0"
    train.rename(tmp_path / "learn")
    refused(r"its parts are test, val; .* train")
    (tmp_path / "learn").rename(train)
    first.rename(first.with_name("other"))
    refused(r"val: .* class0, other")
    first.mkdir()
    refused(r"val.class0: no images")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The images of a tree as shards on the Hub: 18 training images in two, 9 for validation, and a test part without labels."""
    write_tree(tmp_path / "tree")
    train, val = (sorted((tmp_path / "tree" / part).glob("*/*")) for part in ("train", "val"))
    parts = {"train-00000-of-00002": train[:10], "train-00001-of-00002": train[10:]}
    for name, paths in (parts | {"validation-00000-of-00001": val, "test-00000-of-00001": val}).items():
        labels = [-1 if name.startswith("test") else int(path.parent.name[-1]) for path in paths]
        images = [path.read_bytes() for path in paths]
        write_shard(tmp_path / "hub" / "data" / f"{name}.parquet", images, labels, CLASSES, "image")
    return tmp_path / "hub"


def load_table(path: Path, **changes: Any) -> Dataset:
    return load("", path=str(path), cache_dir=str(path.parent / "cache"), **changes)


def saved_with_other_columns(folder: Path, shards: Path) -> None:
    tables: Any = datasets.load_dataset(str(shards), cache_dir=str(shards.parent / "cache"))
    names = {"image": "picture", "label": "kind"}
    others = {part: t.rename_columns(names).add_column("remark", ["x"] * len(t)) for part, t in tables.items()}
    datasets.DatasetDict(others).save_to_disk(folder)


def flat_with_metadata(folder: Path, shards: Path) -> None:
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
        lines = ["file_name,label"]
        for path in sorted((shards.parent / "tree" / part).glob("*/*")):
            lines.append(f"{path.parent.name}_{path.name},{path.parent.name}")
            shutil.copy(path, folder / part / f"{path.parent.name}_{path.name}")
        (folder / part / "metadata.csv").write_text("\n".join(lines))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves metadata.csv open
@pytest.mark.parametrize("lay_out", [None, saved_with_other_columns, flat_with_metadata])
def test_tables_give_what_the_class_folders_give(shards: Path, tmp_path: Path, lay_out: Any) -> None:
    if lay_out is not None:
        lay_out(tmp_path / "other", shards)
    data, tree = load_table(tmp_path / "other" if lay_out else shards), load(shards.parent / "tree")
    assert data.classes == tree.classes
    assert lay_out == flat_with_metadata or data.unused == ("test (no labels)",)
    for name in ("train", "test"):
        loaders = (of.split(name).loader(4, train=name == "train", seed=1).epoch(0) for of in (data, tree))
        assert same(*map(list, loaders))


def test_what_is_wrong_with_a_table_is_named(shards: Path) -> None:
    path, encoded = shards / "data" / "train-00001-of-00002.parquet", [encode(image) for image in noise(8)]

    def refused(message: str, images: list[Any] | None = None, label: int = 2, **changes: Any) -> None:
        if images:
            write_shard(path, images, [0, 1, 2, 0, 1, label, 0, 1], CLASSES, "image")
        with pytest.raises(ValueError, match=message):
            list(load_table(shards, **changes).train.loader(4, train=True).epoch(0))

    refused(r"data\.label_column: 'kind'; .*: image, label", label_column="kind")
    refused("part train, row 15: the image cannot be decoded", [*encoded[:5], encoded[5][:99], *encoded[6:]])
    refused("part train, row 15: there is no image", [*encoded[:5], None, *encoded[6:]])
    refused("part train, row 15: label -1", encoded, -1)
    path.write_bytes(path.read_bytes()[:300])
    refused(r"data\.path=.*hub")
    path.unlink()
    refused(r"/train-\*-of-00002\.parquet")
