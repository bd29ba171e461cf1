"""CIFAR-10 and CIFAR-100, in memory: from torchvision's folder or from a folder of Hub-layout parquet shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from nst.data.checks import (
    check_classes,
    check_flag,
    check_labels,
    check_same_names,
    check_settings,
    check_whole,
    path_of,
)
from nst.data.dataset import Dataset, memory_splits
from nst.data.decoded import decoded_shards
from nst.data.parquet import class_names, find_shards, has_shards
from nst.data.pickled import read_pickle
from nst.data.views import ViewScheme


@dataclass(frozen=True)
class _Layout:
    """The layout of one of the two data sets, by its authors and on the Hub."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    names: tuple[str, str]  # file and key of the class names
    column: str


_LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",),
        "labels", ("batches.meta", "label_names"), "label",
    ),
    "cifar100": _Layout(
        "cifar-100-python", ("train",), ("test",), "fine_labels", ("meta", "fine_label_names"), "fine_label"
    ),
}  # fmt: skip


def load_cifar(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    root: str,
    validation: float,
    limit: int | None,
    pad: int,
    flip: bool,
    download: bool,
    padding_mode: str = "constant",
) -> Dataset:
    """CIFAR-10 or -100 (`name`: cifar10, cifar100).

    Args:
        root: contains (or is) torchvision's folder, or parquet shards `train-*.parquet` and `test-*.parquet`.
        download: fetch torchvision's folder into `root` if it holds neither.
        validation, limit: fraction of the training images held out; how many of the rest to train on (null: all).
        pad, flip, padding_mode: the augmentation, as in `ViewScheme`.

    Raises:
        ValueError: a setting is wrong, `root` has no such data, or a file is damaged; the message names it.
    """
    if not isinstance(name, str) or name not in _LAYOUTS:
        raise ValueError(f"data.name: {name!r}; this loader reads {' and '.join(_LAYOUTS)}")
    check_settings(num_classes, channels, size, mean, std, validation, limit)
    if channels != 3:
        raise ValueError(f"data.channels: {channels}; {name} has 3")
    check_whole("pad", pad, 0)
    check_flag("download", download)
    scheme = ViewScheme(size, pad, flip, padding_mode)
    layout = _LAYOUTS[name]
    read = _find(name, layout, path_of("root", root), download)
    images, labels, classes = read("train", size, num_classes)
    check_classes(labels, num_classes, f"data.root={root}", "training", classes)
    test_images, test_labels, test_classes = read("test", size, num_classes)
    check_same_names(classes, test_classes, f"data.root={root}")
    check_classes(test_labels, num_classes, f"data.root={root}", "test", classes)
    parts = memory_splits(
        images, labels, test_images, test_labels,
        num_classes=num_classes, scheme=scheme, mean=mean, std=std, validation=validation, limit=limit,
    )  # fmt: skip
    return Dataset(name, num_classes, channels, size, tuple(mean), tuple(std), classes, *parts)


def _find(name: str, layout: _Layout, root: Path, download: bool) -> "_Folder | _Shards":
    """The form of the data set in `root`."""
    folder = root if root.name == layout.folder else root / layout.folder
    if folder.is_dir():
        return _Folder(layout, folder)
    if has_shards(root):
        return _Shards(layout, root)
    if not download:
        reason = "it does not hold" if root.is_dir() else "no such folder; it should hold"
        raise ValueError(
            f"data.root={root}: {reason} torchvision's folder {layout.folder} or parquet shards (train-*.parquet, "
            f"test-*.parquet). data.download=true downloads {name} into it; data.root=… names another folder"
        )
    from nst.vision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):  # ranks on one machine; a finished download is only checked
            (datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100)(str(root), download=True)
    except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong checksum a RuntimeError
        raise ValueError(f"data.root={root}: {name} cannot be downloaded into it ({error})") from None
    return _Folder(layout, folder)


@dataclass(frozen=True)
class _Shards:
    """Parquet shards of PNGs."""

    layout: _Layout
    root: Path

    def __call__(self, split: str, size: int, num_classes: int) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
        paths = find_shards(self.root, [split])
        images, labels = decoded_shards(paths, self.layout.column, size, num_classes, self.root)
        return images, labels, class_names(paths[0], self.layout.column)


@dataclass(frozen=True)
class _Folder:
    """The authors' pickled batches, as torchvision unpacks them."""

    layout: _Layout
    folder: Path

    def __call__(self, split: str, size: int, num_classes: int) -> tuple[Tensor, Tensor, tuple[str, ...] | None]:
        images, labels = [], []
        for name in self.layout.train if split == "train" else self.layout.test:
            path = self.folder / name
            pixels, targets = self._read_batch(path, size)
            check_labels(targets, num_classes, lambda row, path=path: f"{path}, row {row}")
            images.append(pixels)
            labels.append(targets)
        file, key = self.layout.names
        names = read_pickle(self.folder / file).get(key) if (self.folder / file).is_file() else None
        named = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return torch.cat(images), torch.cat(labels), tuple(names) if names and named else None

    def _read_batch(self, path: Path, size: int) -> tuple[Tensor, Tensor]:
        content = read_pickle(path)
        pixels, targets = content.get("data"), content.get(self.layout.labels)
        if not isinstance(pixels, np.ndarray) or not isinstance(targets, list):
            raise ValueError(f"{path}: needs 'data' and {self.layout.labels!r}; it has {', '.join(map(str, content))}")
        if pixels.dtype != np.uint8 or pixels.shape != (len(targets), 3 * size * size):
            raise ValueError(
                f"{path}: 'data' is {pixels.dtype} {pixels.shape}; {len(targets)} labels and data.size={size} need "
                f"uint8 ({len(targets)}, {3 * size * size})"
            )
        if not all(isinstance(target, int) and abs(target) < 2**63 for target in targets):
            raise ValueError(f"{path}: {self.layout.labels!r} holds something else than whole numbers")
        # copied: the array of a pickle need not be contiguous or writable
        return torch.from_numpy(pixels.copy()).reshape(-1, 3, size, size), torch.tensor(targets, dtype=torch.int64)
