"""The data sets that `data=` names, from their settings: digits, CIFAR, and any images in folders or tables."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from nst.data.batch import Split
from nst.data.dataset import Dataset, balanced, check_settings, memory_splits, training_parts
from nst.data.decode import WHITE
from nst.data.memory import MemorySplit
from nst.data.parts import Part, folder_parts, is_table, listed, table_parts
from nst.data.views import ViewScheme, check

if TYPE_CHECKING:  # it imports torchvision's transforms, which images in memory do without
    from nst.data.augment import AspectSampling, AutoAugment, Interpolation

_DIGITS_TEST = 360  # 36 of each digit; 1,437 images are left for training

_CIFAR = {  # torchvision's folder, and the column of the labels in the Hub's tables
    "cifar10": ("cifar-10-batches-py", "label"),
    "cifar100": ("cifar-100-python", "fine_label"),
}


def load_digits(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    root: str | None,
    validation: float,
    limit: int | None,
    pad: int,
    flip: bool,
) -> Dataset:
    """scikit-learn's 1,797 handwritten digits: 1,437 training and 360 test images, always the same; grey levels 0 … 16 become 0 … 255.

    Raises:
        ValueError: a setting does not fit this data set.
    """
    check_settings(name, num_classes, channels, size, mean, std, validation, limit)
    if (num_classes, channels, size) != (10, 1, 8):
        raise ValueError(
            f"data.num_classes={num_classes}, data.channels={channels}, data.size={size}: the digits are of 10 classes, 1 channel "
            "and 8×8 pixels"
        )
    if root is not None:
        raise ValueError(
            f"data.root: {root!r}; the digits are embedded, leave it null (or choose data=cifar10, data=folder)"
        )
    scheme = ViewScheme(size, pad, flip)
    package = find_spec("sklearn")  # importing it takes a second, and pandas
    assert package is not None
    values = torch.from_numpy(
        np.loadtxt(Path(str(package.origin)).parent / "datasets/data/digits.csv.gz", delimiter=",")
    )
    images = (values[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    labels = values[:, -1].long()
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[balanced(labels, _DIGITS_TEST)] = True
    parts = memory_splits(
        images[~test], labels[~test], images[test], labels[test],
        num_classes=num_classes, scheme=scheme, mean=mean, std=std, validation=validation, limit=limit,
    )  # fmt: skip
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(name, num_classes, channels, size, tuple(mean), tuple(std), classes, *parts)


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
    cache_dir: str | None = None,
) -> Dataset:
    """CIFAR-10 or -100 (`name`: cifar10, cifar100), in memory.

    Args:
        root: contains (or is) torchvision's folder, or parquet shards `train-*.parquet` and `test-*.parquet`.
        download: fetch torchvision's folder into `root` if it holds neither.
        cache_dir: as in `table_parts`, for parquet.
        Others as in `load_images`.

    Raises:
        ValueError: a setting is wrong, `root` has no such data, or a file is damaged; the message names it.
    """
    check("name", name, " or ".join(_CIFAR), lambda v: v in _CIFAR)
    archive, label_column = _CIFAR[name]
    folder = _folder("root", root, exists=False)
    folder = folder.parent if folder.name == archive else folder
    if not (folder / archive).is_dir() and (folder.is_dir() and is_table(folder)):
        return load_images(
            name, num_classes, channels, size, mean, std, validation, limit, flip, root=root, pad=pad,
            padding_mode=padding_mode, label_column=label_column, cache_dir=cache_dir,
        )  # fmt: skip
    check_settings(name, num_classes, channels, size, mean, std, validation, limit)
    scheme = ViewScheme(size, pad, flip, padding_mode)
    from nst.vision import datasets

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        if download:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".download.lock"):  # ranks on one machine; a finished download is only checked
                kind(str(folder), download=True)
        train, test = (kind(str(folder), train=part) for part in (True, False))
    except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong checksum a RuntimeError
        raise ValueError(
            f"data.root={root}: it holds neither parquet shards (train-*.parquet, test-*.parquet) nor a whole folder {archive} of "
            f"torchvision's ({error}). data.download=true downloads {name} into it; data.root=… names another folder"
        ) from None
    parts = memory_splits(
        *(tensor for part in (train, test) for tensor in (torch.tensor(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))),
        num_classes=num_classes, scheme=scheme, mean=mean, std=std, validation=validation, limit=limit,
    )  # fmt: skip
    _check_classes(train.classes, num_classes, f"data.root={root}")
    return Dataset(name, num_classes, channels, size, tuple(mean), tuple(std), tuple(train.classes), *parts)


def load_images(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    validation: float,
    limit: int | None,
    flip: bool,
    resize: int | None = None,
    area: Sequence[float] = (0.08, 1.0),
    aspect: Sequence[float] = (0.75, 1.3333),
    jitter: float = 0.0,
    pca_noise: float = 0.0,
    interpolation: "Interpolation" = "bilinear",
    antialias: bool = True,
    aspect_sampling: "AspectSampling" = "log_uniform",
    augment: "AutoAugment | None" = None,
    erase: float = 0.0,
    background: Sequence[int] = WHITE,
    pad: int | None = None,
    padding_mode: str = "constant",
    root: str | None = None,
    path: str | None = None,
    labeled: bool = True,
    image_column: str | None = None,
    label_column: str | None = None,
    subset: str | None = None,
    cache_dir: str | None = None,
) -> Dataset:
    """Images of people's own, or of the Hub.

    Args:
        root: a folder of `train/<class>/*` and `val/<class>/*` (or as in `parts.VALIDATION`, `parts.TEST`), or one that
            Hugging Face `datasets` reads: parquet shards, saved to disk, images with metadata.
        path: instead of `root`: such a folder, or else a name on the Hub.
        labeled: false: images without labels, in folders as they like; each has the label −1.
        validation: fraction of the training images held out, the same ones for every seed, each class in proportion. Without a
            test part they are the test part.
        limit: how many of the other training images are used, classes balanced; None: all.
        pad, padding_mode: None: images stay on disk and are augmented as `Augmentation` says, by `resize` (None: `size`) to
            `erase`. A number: they have `size` and stay in memory, augmented as `ViewScheme` says.
        flip: mirror half of the training images.
        background: the colour (R, G, B) behind transparent images.
        image_column, label_column, subset, cache_dir: as in `table_parts`.

    Raises:
        ValueError: a setting is wrong, there are no such data, a class has no image, or a label is out of range; the message names
            key or file.
    """
    check_settings(name, num_classes if labeled else 1, channels, size, mean, std, validation, limit)
    byte = range(256)
    check(
        "background",
        background,
        "R, G, B of 0 … 255",
        lambda v: len(v) == 3 and all(type(c) is int and c in byte for c in v),
    )
    if (root is None) == (path is None):
        raise ValueError("data.root, data.path: give one of them, the folder of the images")
    key, place = ("root", root) if path is None else ("path", path)
    folder = _folder(key, place, exists=path is None)
    if pad is None:
        from nst.data.augment import Augmentation
        from nst.data.photographs import PhotographSplit

        for ends_key, ends in (("area", area), ("aspect", aspect)):
            check(ends_key, ends, "a range, [from, to]", lambda v: len(v) == 2)
        erased = tuple(float(min(max(round(255 * value), 0), 255)) for value in mean)
        augmentation = Augmentation(
            size, size if resize is None else resize, (area[0], area[1]), (aspect[0], aspect[1]), jitter, pca_noise, flip, interpolation, antialias,
            aspect_sampling, augment, erase, erased,
        )  # fmt: skip

        def split(part: Part, rows: Tensor, train: bool) -> Split:
            return PhotographSplit(part.source, rows, part.labels[rows], augmentation, mean, std, background)
    else:
        scheme = ViewScheme(size, pad, flip, padding_mode)
        decoded: dict[str, Tensor] = {}

        def split(part: Part, rows: Tensor, train: bool) -> Split:
            if part.where not in decoded:
                decoded[part.where] = part.source.pixels(channels, size, background)
            images = decoded[part.where][rows]
            return MemorySplit(images, part.labels[rows], scheme if train else ViewScheme(size, 0, False), mean, std)

    if folder.is_dir() and not is_table(folder):
        parts = folder_parts(folder, labeled, validation)
    else:
        parts = table_parts(key, str(place), labeled, validation, image_column, label_column, subset, cache_dir)
    for part in filter(None, (parts.train, parts.val, parts.test)):
        _check_part(part, parts.train.classes, num_classes if labeled else None)
    labels = parts.train.labels.clamp(min=0)  # without labels as if of one class
    kept, held = training_parts(labels, num_classes if labeled else 1, validation, limit)
    train = split(parts.train, kept, True)
    val, test = (part and split(part, torch.arange(len(part.labels)), False) for part in (parts.val, parts.test))
    if len(held):
        held_out = split(parts.train, held, False)
        val, test = (val, held_out) if test is None else (held_out, test)
    assert test is not None  # by the roles of the parts
    about = (name, num_classes, channels, size, tuple(mean), tuple(std), parts.train.classes)
    return Dataset(*about, train, val, test, parts.unused, labeled)


def _folder(key: str, value: str | None, exists: bool) -> Path:
    """The path that `data.<key>` names, `~` expanded. Raises ValueError if it cannot be one, or should exist and does not."""
    check(key, value, "the path of a folder", lambda v: bool(v.strip()) and "\0" not in v)
    try:
        folder = Path(str(value)).expanduser()
        if exists and not folder.is_dir():
            raise ValueError("no such folder" if not folder.exists() else "it is no folder")
        folder.exists()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"data.{key}={value}: {error}. Expected a folder of train/<class>/*.jpg and val/<class>/*.jpg (or test), "
            "or of train-*.parquet and validation-*.parquet"
        ) from None
    return folder


def _check_part(part: Part, classes: tuple[str, ...] | None, num_classes: int | None) -> None:
    """Raises ValueError unless a part has images of each of these classes, and of no other; `num_classes` None: without labels."""
    where = part.where
    if not len(part.labels):
        raise ValueError(f"{where}: no images")
    if num_classes is None:
        return
    _check_classes(classes, num_classes, where)
    if part.classes != classes:
        here, there = set(part.classes or ()), set(classes or ())
        if missing := sorted(there - here):
            raise ValueError(f"{where}: no folder of class {listed(missing)}, which the training part has")
        raise ValueError(f"{where}: a folder of class {listed(sorted(here - there))}, which the training part lacks")
    outside = ((part.labels < 0) | (part.labels >= num_classes)).nonzero().flatten().tolist()
    if outside:
        raise ValueError(
            f"{part.source.where(outside[0])}: label {int(part.labels[outside[0]])}, but data.num_classes={num_classes} allows 0 to "
            f"{num_classes - 1} ({len(outside)} labels are outside)"
        )
    empty = (torch.bincount(part.labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if empty:
        named = [f"{label} ({classes[label]})" if classes else str(label) for label in empty]
        raise ValueError(f"{where}: no image of class {listed(named)} (data.num_classes={num_classes})")


def _check_classes(classes: Sequence[str] | None, num_classes: int, where: str) -> None:
    if classes is not None and len(classes) != num_classes:
        raise ValueError(
            f"{where}: {len(classes)} classes, but data.num_classes={num_classes}; found {listed(list(classes))}"
        )
