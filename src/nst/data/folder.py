"""ImageNet, and any folder laid out like it: class folders of images, or Hub-layout parquet shards."""

from collections.abc import Sequence
from pathlib import Path

import torch

from nst.data.augment import AspectSampling, Augmentation, Interpolation
from nst.data.dataset import Dataset, check_classes, check_labels, check_settings
from nst.data.encoded import Part, class_folders, unpack
from nst.data.encoded_split import EncodedSplit
from nst.data.parquet import class_names, find_shards, has_shards
from nst.data.subset import training_parts

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
) -> Dataset:
    """A data set whose images stay on disk.

    Args:
        root: holds `train/<class>/*` and `val/<class>/*` (or `validation`, `test`), or shards `train-*.parquet` and so on.
        validation, limit: fraction of the training images held out; how many of the rest to train on (null: all).
        resize, area, aspect, jitter, pca_noise, flip, interpolation, antialias, aspect_sampling: as in `Augmentation`.
        label_column: the shards' column of labels.
        unpacked: where shards are unpacked, once; null: a folder `unpacked` in `root`.

    Raises:
        ValueError: a setting is off, `root` holds no such data, a class is empty or a label out of range.
    """
    check_settings(num_classes, channels, size, mean, std, validation, limit)
    if channels != 3:
        raise ValueError(f"data.channels: {channels}; images are read as RGB, 3 channels")
    augmentation = Augmentation(
        size, resize, _pair(area), _pair(aspect), jitter, pca_noise, flip, interpolation, antialias, aspect_sampling
    )
    folder = Path(root).expanduser()
    if has_shards(folder):
        train, test = _shards(folder, label_column, Path(unpacked).expanduser() if unpacked else folder / "unpacked")
    else:
        train, test = _folders(folder, num_classes)
    for part in (train, test):
        check_labels(part.labels, num_classes, part.source.where)
    check_classes(train.labels, num_classes, root)

    def split(part: Part, rows: torch.Tensor) -> EncodedSplit:
        return EncodedSplit(part.source, rows, part.labels[rows], augmentation, mean, std)

    kept, held = training_parts(train.labels, num_classes, validation, limit)
    val = split(train, held) if len(held) else None
    splits = (split(train, kept), val, split(test, torch.arange(len(test.labels))))
    return Dataset(name, num_classes, channels, size, tuple(mean), tuple(std), train.classes, *splits)


def _pair(values: Sequence[float]) -> tuple[float, float]:
    if len(values) != 2:
        raise ValueError(f"data.area, data.aspect: {list(values)}; each is a pair of numbers, from and to")
    return float(values[0]), float(values[1])


def _folders(root: Path, num_classes: int) -> tuple[Part, Part]:
    test_folder = next((root / name for name in _TESTS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test_folder is None:
        found = "no such folder" if not root.is_dir() else "it holds neither class folders nor parquet shards"
        raise ValueError(
            f"data.root={root}: {found}. Expected train/<class>/*.jpg and val/<class>/*.jpg (or validation, test), "
            "or train-*.parquet and validation-*.parquet"
        )
    train, test = class_folders(root / "train"), class_folders(test_folder)
    classes = train.classes or ()
    if len(classes) != num_classes:
        raise ValueError(f"{root / 'train'}: {len(classes)} class folders, but data.num_classes={num_classes}")
    numbers = {name: number for number, name in enumerate(classes)}
    for name in test.classes or ():
        if name not in numbers:
            raise ValueError(f"{test_folder / name}: no such class in {root / 'train'}")
    # numbered as in training, also where the test folder lacks a class
    renumbered = torch.tensor([numbers[name] for name in test.classes or ()])
    return train, Part(test.source, renumbered[test.labels], classes)


def _shards(root: Path, label_column: str, unpacked: Path) -> tuple[Part, Part]:
    train, test = find_shards(root, ["train"]), find_shards(root, _TESTS)
    classes = class_names(train[0], label_column)
    parts = (Part(*unpack(shards, label_column, unpacked), classes) for shards in (train, test))
    return next(parts), next(parts)
