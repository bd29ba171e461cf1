"""ImageNet, and any folder laid out like it: class folders of images, or Hub-layout parquet shards."""

from collections.abc import Sequence
from pathlib import Path

import torch

from nst.data.augment import AspectSampling, Augment, Augmentation, Interpolation
from nst.data.checks import (
    check_classes,
    check_labels,
    check_numbers,
    check_same_names,
    check_settings,
    check_text,
    check_whole,
    is_number,
    listed,
    path_of,
)
from nst.data.dataset import Dataset
from nst.data.decode import MAX_PIXELS
from nst.data.encoded import Part, class_folders
from nst.data.encoded_split import EncodedSplit
from nst.data.parquet import class_names, find_shards, has_shards
from nst.data.subset import training_parts
from nst.data.unpacked import unpack

_TESTS = ("val", "validation", "test")  # the first one found is evaluated on


def load_folder(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    root: str,
    validation: float,
    limit: int | None,
    resize: int,
    area: Sequence[float],
    aspect: Sequence[float],
    jitter: float,
    pca_noise: float,
    flip: bool,
    label_column: str,
    unpacked: str | None,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
    aspect_sampling: AspectSampling = "log_uniform",
    max_pixels: int = MAX_PIXELS,
    augment: Augment | None = None,
    erase: float = 0.0,
) -> Dataset:
    """A data set whose images stay on disk.

    Args:
        root: contains `train/<class>/*` and `val/<class>/*` (or `validation`, `test`), or shards `train-*.parquet` and so on.
        validation, limit: fraction of the training images held out; how many of the rest to train on (null: all).
        resize, area, aspect, jitter, pca_noise, flip, interpolation, antialias, aspect_sampling, augment: as in `Augmentation`.
        erase: probability that a rectangle is filled with the mean colour.
        label_column: the shards' column of labels.
        unpacked: where shards are unpacked, once; null: a folder `unpacked` in `root`.
        max_pixels: of one image; one with more, by its header, is an error before it is decoded.

    Raises:
        ValueError: a setting is wrong, `root` has no such data, a class has no image in training or test, or a label is out
            of range.
    """
    check_settings(num_classes, channels, size, mean, std, validation, limit)
    if channels != 3:
        raise ValueError(f"data.channels: {channels}; images are read as RGB, 3 channels")
    _check_augmentation(size, resize, area, aspect, jitter, pca_noise, erase, max_pixels)
    red, green, blue = (min(max(round(255 * value), 0), 255) for value in mean)
    augmentation = Augmentation(
        size, resize, _pair(area), _pair(aspect), jitter, pca_noise, flip, interpolation, antialias, aspect_sampling,
        augment, erase, (red, green, blue),
    )  # fmt: skip
    check_text("name", name)
    check_text("label_column", label_column)
    train, test = _parts(root, label_column, unpacked, num_classes)

    def split(side: Part, rows: torch.Tensor) -> EncodedSplit:
        return EncodedSplit(side.source, rows, side.labels[rows], augmentation, mean, std, max_pixels)

    kept, held = training_parts(train.labels, num_classes, validation, limit)
    val = split(train, held) if len(held) else None
    splits = (split(train, kept), val, split(test, torch.arange(len(test.labels))))
    return Dataset(name, num_classes, channels, size, tuple(mean), tuple(std), train.classes, *splits)


def _check_augmentation(
    size: int,
    resize: int,
    area: object,
    aspect: object,
    jitter: object,
    pca_noise: object,
    erase: object,
    max_pixels: int,
) -> None:
    """Checks that `Augmentation` relies on: types, finite numbers, images that fit into memory."""
    check_whole("resize", resize, 1)
    check_whole("max_pixels", max_pixels, 1)
    for key, side in (("size", size), ("resize", resize)):
        if side * side > max_pixels:
            raise ValueError(f"data.{key}: {side}; {side}×{side} is above data.max_pixels={max_pixels}")
    check_numbers("area", area, 2, "a range")
    check_numbers("aspect", aspect, 2, "a range")
    for key, value in (("jitter", jitter), ("pca_noise", pca_noise), ("erase", erase)):
        if not is_number(value):
            raise ValueError(f"data.{key}: {value!r}; it must be a finite number")


def _pair(values: Sequence[float]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _parts(root: str, label_column: str, unpacked: str | None, num_classes: int) -> tuple[Part, Part]:
    """Training and test images, their labels checked."""
    folder = path_of("root", root)
    place = folder / "unpacked" if unpacked is None else path_of("unpacked", unpacked)
    train, test = _shards(folder, label_column, place) if has_shards(folder) else _folders(folder, num_classes)
    for side, which in ((train, "training"), (test, "test")):
        check_labels(side.labels, num_classes, side.source.where)
        check_classes(side.labels, num_classes, f"data.root={root}", which, train.classes)
    return train, test


def _folders(root: Path, num_classes: int) -> tuple[Part, Part]:
    test_folder = next((root / name for name in _TESTS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_folder is None:
        reason = "no such folder" if not root.is_dir() else "it holds neither class folders nor parquet shards"
        raise ValueError(
            f"data.root={root}: {reason}. Expected train/<class>/*.jpg and val/<class>/*.jpg (or validation, test), "
            "or train-*.parquet and validation-*.parquet"
        )
    train, test = class_folders(root / "train"), class_folders(test_folder)
    classes, test_classes = train.classes or (), test.classes or ()
    if len(classes) != num_classes:
        raise ValueError(
            f"{root / 'train'}: {len(classes)} class folders, but data.num_classes={num_classes}; found {listed(classes)}"
        )
    if missing := sorted(set(classes) - set(test_classes)):
        raise ValueError(f"{test_folder}: no folder of class {listed(missing)}, which {root / 'train'} has")
    if extra := sorted(set(test_classes) - set(classes)):
        raise ValueError(f"{test_folder}: a folder of class {listed(extra)}, which {root / 'train'} lacks")
    return train, test


def _shards(root: Path, label_column: str, unpacked: Path) -> tuple[Part, Part]:
    train, test = find_shards(root, ["train"]), find_shards(root, _TESTS)
    classes = class_names(train[0], label_column)
    check_same_names(classes, class_names(test[0], label_column), f"data.root={root}")
    parts = (Part(*unpack(shards, label_column, unpacked), classes) for shards in (train, test))
    return next(parts), next(parts)
