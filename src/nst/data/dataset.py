"""The data sets that `data=` names: digits, CIFAR, and any images in folders or tables; `Dataset` is the base of one's own."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from nst.data.batch import Split, check
from nst.data.images import TEST, TRAIN, VALIDATION, WHITE, Part, folder_parts, is_table, listed, table_parts
from nst.data.memory import MemorySplit, ViewScheme

if TYPE_CHECKING:  # it imports torchvision's transforms, which images in memory do without
    from nst.data.augment import AspectSampling, AutoAugment, Interpolation

Pixels = tuple[Tensor, Tensor]
"""Images [n, C, size, size] uint8 and their labels [n] int64."""

_SEED = 0x1707  # of the fixed shuffle


@dataclass(kw_only=True, eq=False)
class Dataset:
    """Splits of one data set. A subclass has a method `read`, which sets `train`, `val` and `test`, for example by `in_memory`.

    Args:
        channels: 1 (grey) or 3 (RGB).
        size: height and width of an image, in pixels.
        mean, std: of the channels, on the scale 0 … 1.
        root: where the images are.
        validation: fraction of the training images held out, the same ones for every seed, each class in proportion. Without a
            test part they are the test part.
        limit: how many of the other training images are used, classes balanced; None: all.

    Attributes:
        train, val, test: the splits; val: None without one.
        classes: their names; None: not known.
        unused: names of parts that were found and are not used.
        labeled: false: every label is −1.

    Raises:
        ValueError: a setting is wrong, or the data are; the message names the key or the file.
    """

    name: str
    num_classes: int
    channels: int
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    root: str | None = None
    validation: float = 0.0
    limit: int | None = None

    labeled = True

    def __post_init__(self) -> None:
        self.train: Split
        self.val: Split | None = None
        self.test: Split
        self.classes: tuple[str, ...] | None = None
        self.unused: tuple[str, ...] = ()
        check("name", self.name, "a text that is not empty", lambda v: bool(v.strip()))
        for key in ("num_classes", "size"):
            check(key, getattr(self, key), "a whole number from 1", lambda v: type(v) is int and v >= 1)
        check("channels", self.channels, "1 (grey) or 3 (RGB)", lambda v: type(v) is int and v in (1, 3))
        numbers, channels = f"{self.channels} finite numbers (data.channels={self.channels})", self.channels
        check("mean", self.mean, numbers, lambda v: len(v) == channels and np.isfinite(v).all())
        positive = f"{numbers} from 1e-6"
        check("std", self.std, positive, lambda v: len(v) == channels and 1e-6 <= min(v) <= max(v) < np.inf)
        self.mean, self.std = tuple(self.mean), tuple(self.std)  # to be compared with those that weights expect
        fraction = "a fraction of the training images, 0 (none) to below 1"
        check("validation", self.validation, fraction, lambda v: type(v) in (int, float) and 0 <= v < 1)
        least = self.num_classes if self.labeled else 1
        whole = f"a whole number from {least} (data.num_classes), or null for all"
        check("limit", self.limit, whole, lambda v: v is None or (type(v) is int and v >= least))
        self.read()

    def read(self) -> None:
        """Read the images into `train`, `val` and `test`."""
        raise NotImplementedError

    def in_memory(self, scheme: ViewScheme, train: Pixels, test: Pixels | None, val: Pixels | None = None) -> None:
        """Make the splits of images in memory; `scheme` numbers the training views."""
        plain = ViewScheme(self.size, 0, False)  # nothing to augment, so nothing padded

        def split(part: Pixels, rows: Tensor | slice, augmented: bool) -> Split:
            images, labels = (values[rows] for values in part)
            return MemorySplit(images, labels, scheme if augmented else plain, self.mean, self.std)

        self.divide(train[1], train, val, test, split)

    def divide(self, labels: Tensor, train: Any, val: Any, test: Any, split: Callable[[Any, Any, bool], Split]) -> None:
        """Make the splits of parts, by `split(part, rows, augmented)`: `validation` is held out first, so it does not change with `limit`.

        Raises:
            ValueError: `limit` exceeds the training images or is below one image per class.
        """
        self.check_classes()
        labels = labels.clamp(min=0)  # without labels as if of one class
        count = self.num_classes if self.labeled else 1
        kept, held = hold_out(labels, self.validation)
        if self.limit is not None:
            if not count <= self.limit <= len(kept):
                raise ValueError(
                    f"data.limit: {self.limit}; the training set has {len(kept)} images of {count} classes, so it is "
                    f"from {count} to {len(kept)}, or null for all"
                )
            kept = kept[balanced(labels[kept], self.limit)]
        self.train = split(train, kept, True)
        others = [None if part is None else split(part, slice(None), False) for part in (val, test)]
        if len(held):
            others[0 if test is not None else 1] = split(train, held, False)
        self.val, test = others
        assert test is not None
        self.test = test

    def check_classes(self) -> None:
        """Raises ValueError unless there are as many class names as `num_classes`, or none."""
        if self.classes is not None and len(self.classes) != self.num_classes:
            found = f"{len(self.classes)} classes, {listed(self.classes)}"
            raise ValueError(f"data.num_classes={self.num_classes}, but {self.name} has {found}")

    def split(self, name: str) -> Split:
        """The split called "train", "val" or "test". Raises ValueError if there is none."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        if (split := splits.get(name)) is None:
            names = ", ".join(key for key, value in splits.items() if value is not None)
            hint = "; data.validation=0.1 holds out a tenth of the training images" if name == "val" else ""
            raise ValueError(f"split {name!r}: {self.name} has {names}{hint}")
        return split

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the splits' own fingerprints, hex."""
        parts = [split.fingerprint for split in (self.train, self.val, self.test) if split is not None]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def class_counts(self, split: str = "train") -> list[int]:
        """How many images of each class a split has; empty without labels."""
        labels = self.split(split).labels
        return torch.bincount(labels, minlength=self.num_classes).tolist() if self.labeled else []

    def describe(self) -> str:
        """For people: the parts and their sizes, the classes' counts, what is not used and what the best epoch is chosen on."""
        validation = f"{len(self.val):,} validation and " if self.val is not None else ""
        kind = f"of {self.num_classes} classes" if self.labeled else "without labels"
        text = f"{self.name}: {len(self.train):,} training, {validation}{len(self.test):,} test images {kind}"
        if counts := self.class_counts():
            fewest, most = min(counts), max(counts)
            named = self.classes[counts.index(fewest)] if self.classes else f"class {counts.index(fewest)}"
            text += f"; {fewest:,}{'' if fewest == most else f' ({named}) to {most:,}'} training images a class"
        if self.unused:
            text += f"\nnot used: {', '.join(self.unused)}"
        if self.val is None and self.labeled:
            text += "\nno validation part: the best epoch is chosen on the test images (data.validation=0.1 holds out a tenth)"
        return text


# Fixed, class-balanced choices of images depend on the labels only, not on the seed of a run: every run and rank has the same.


def _class_rank(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image its place in a fixed shuffle, overall and within its class."""
    place = np.random.default_rng(_SEED).permutation(len(labels))
    by_class = np.lexsort((place, labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.empty_like(place)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return place, rank


def balanced(labels: Tensor, n: int) -> Tensor:
    """n images with equal counts of each class as far as possible, ascending: [n] int64. A larger n adds to a smaller one."""
    place, rank = _class_rank(labels.numpy())
    return torch.from_numpy(np.sort(np.lexsort((place, rank))[:n]))


def hold_out(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Split all images into (training, held out), both ascending: the fraction of each class, rounded; one image stays.

    Raises:
        ValueError: the fraction is less than one image of the largest class.
    """
    _, rank = _class_rank(labels.numpy())
    counts = np.bincount(labels.numpy())
    held = rank < np.minimum(np.rint(fraction * counts), np.maximum(counts - 1, 0))[labels.numpy()]
    if fraction > 0 and not held.any():
        raise ValueError(f"data.validation: {fraction} of the largest class ({counts.max()} images) is not one image")
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


@dataclass(kw_only=True, eq=False)
class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits: 1,437 training and 360 test images, always the same; grey levels 0 … 16 become 0 … 255."""

    pad: int = 1
    flip: bool = False

    def read(self) -> None:
        """From scikit-learn's package."""
        if (self.num_classes, self.channels, self.size, self.root) != (10, 1, 8, None):
            found = ", ".join(f"data.{key}={getattr(self, key)}" for key in ("num_classes", "channels", "size", "root"))
            raise ValueError(
                f"{found}: the digits are of 10 classes, 1 channel and size 8, and embedded (root is null)"
            )
        scheme = ViewScheme(self.size, self.pad, self.flip)
        package = find_spec("sklearn")  # importing it takes a second, and pandas
        assert package is not None
        file = Path(str(package.origin)).parent / "datasets/data/digits.csv.gz"
        values = torch.from_numpy(np.loadtxt(file, delimiter=","))
        images = (values[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
        labels = values[:, -1].long()
        test = torch.zeros(len(labels), dtype=torch.bool)
        test[balanced(labels, 360)] = True  # 36 of each digit
        self.classes = tuple("0123456789")
        self.in_memory(scheme, (images[~test], labels[~test]), (images[test], labels[test]))


@dataclass(kw_only=True, eq=False)
class Images(Dataset):
    """Images of people's own, or of the Hub.

    Args:
        root: a folder of `train/<class>/*` and `val/<class>/*` (or as in `images.VALIDATION`, `images.TEST`), or one that
            Hugging Face `datasets` reads: parquet shards, saved to disk, images with metadata.
        path: instead of `root`: such a folder, or else a name on the Hub.
        labeled: false: images without labels, in folders as they like; each has the label −1.
        pad, padding_mode: None: images stay on disk and are augmented as `Augmentation` says, by `resize` (None: `size`) to
            `erase`. A number: they have `size` and stay in memory, augmented as `ViewScheme` says.
        flip: mirror half of the training images.
        background: the colour (R, G, B) behind transparent images.
        image_column, label_column, subset, cache_dir: as in `table_parts`.
    """

    path: str | None = None
    labeled: bool = True
    resize: int | None = None
    area: Sequence[float] = (0.08, 1.0)
    aspect: Sequence[float] = (0.75, 1.3333)
    jitter: float = 0.0
    pca_noise: float = 0.0
    flip: bool = True
    interpolation: "Interpolation" = "bilinear"
    antialias: bool = True
    aspect_sampling: "AspectSampling" = "log_uniform"
    augment: "AutoAugment | None" = None
    erase: float = 0.0
    background: Sequence[int] = WHITE
    pad: int | None = None
    padding_mode: str = "constant"
    image_column: str | None = None
    label_column: str | None = None
    subset: str | None = None
    cache_dir: str | None = None

    def read(self) -> None:
        """From the folder `root`, or as `path` says."""
        byte = range(256)
        check("background", self.background, "R, G, B of 0 … 255", lambda v: len(v) == 3 and all(c in byte for c in v))
        if (self.root is None) == (self.path is None):
            raise ValueError("data.root, data.path: give one of them, the folder of the images")
        if self.pad is not None:
            scheme = ViewScheme(self.size, self.pad, self.flip, self.padding_mode)
            shape = (self.channels, self.size, self.background)
            pairs: list[Any] = [part and (part.images.pixels(*shape), part.labels) for part in self._parts()]
            self.in_memory(scheme, pairs[0], pairs[2], pairs[1])
            return
        from nst.data.augment import Augmentation
        from nst.data.photographs import PhotographSplit

        erased = tuple(float(min(max(round(255 * value), 0), 255)) for value in self.mean)
        keys = {key: getattr(self, key) for key in (f.name for f in fields(Augmentation)) if key != "erased"}
        keys |= {"resize": self.size if self.resize is None else self.resize, "erased": erased}
        keys |= {key: tuple(value) for key, value in keys.items() if isinstance(value, list)}
        augmentation = Augmentation(**keys)

        def split(part: Part, rows: Tensor | slice, augmented: bool) -> Split:
            rows = torch.arange(len(part.labels))[rows]
            about = (augmentation, self.mean, self.std, self.background)
            return PhotographSplit(part.images, rows, part.labels[rows], *about)

        train, val, test = self._parts()
        self.divide(train.labels, train, val, test, split)

    def _parts(self) -> tuple[Part, Part | None, Part | None]:
        """What is trained, validated and tested on. Beside a test part the validation part is one; alone it is the test part.

        Raises:
            ValueError: no part is called train, there is nothing to test on, or there would be two validation parts.
        """
        key, value = ("root", self.root) if self.path is None else ("path", self.path)
        said, folder = f"data.{key}={value}", existing_folder(key, value, needed=self.path is None)
        if folder.is_dir() and not is_table(folder):
            parts, unused = folder_parts(folder, self.labeled)
            said = str(folder)
        else:
            columns = (self.image_column, self.label_column)
            parts, unused = table_parts(said, str(value), self.labeled, *columns, self.subset, self.cache_dir)
        train, val, test = (
            next((name for kind in kinds for name in parts if name.lower() == kind), None)
            for kinds in (TRAIN, VALIDATION, TEST)
        )
        if len(parts) == 1 and not (val or test):
            train = next(iter(parts))
        if train is None:
            raise ValueError(f"{said}: its parts are {listed(list(parts))}; one must be called {' or '.join(TRAIN)}")
        if val and test and self.validation:
            raise ValueError(f"data.validation: {self.validation}; {said} has a validation part, {val}: leave it at 0")
        val, test = (val, test) if test else (None, val)
        if not test and not self.validation:
            names = " or ".join((*VALIDATION[:3], TEST[0]))
            raise ValueError(
                f"{said}: there is no test part; data.validation=0.1 takes a tenth of the images for it, or add a part {names}"
            )
        self.unused = (*(name for name in parts if name not in (train, val, test)), *unused)
        first = parts[train]()
        self.classes = first.classes
        self.check_classes()
        val, test = (self._check(parts[name]()) if name else None for name in (val, test))
        return self._check(first), val, test

    def _check(self, part: Part) -> Part:
        """The part. Raises ValueError unless its classes are those of the training part, and its labels numbers of these."""
        if part.classes != self.classes:
            here, there = set(part.classes or ()), set(self.classes or ())
            text = [f"lacks {name}" for name in sorted(there - here)] + [f"has {name}" for name in sorted(here - there)]
            raise ValueError(f"{part.where}: its classes are not those of the training part: it {listed(text)}")
        outside = ((part.labels < 0) | (part.labels >= self.num_classes)).nonzero().flatten().tolist()
        if self.labeled and outside:
            raise ValueError(
                f"{part.where}, row {outside[0]}: label {int(part.labels[outside[0]])}, but data.num_classes={self.num_classes} allows "
                f"0 to {self.num_classes - 1} ({len(outside)} labels are outside)"
            )
        return part


def existing_folder(key: str, value: str | None, needed: bool) -> Path:
    """The path that `data.<key>` names, `~` expanded. Raises ValueError if it cannot be one, or is needed and does not exist."""
    check(key, value, "the path of a folder", lambda v: bool(v.strip()) and "\0" not in v)
    try:
        folder = Path(str(value)).expanduser()
        if not folder.is_dir() and (needed or folder.exists()):
            raise ValueError("no such folder")
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"data.{key}={value}: {error}. Expected a folder of train/<class>/*.jpg and val/<class>/*.jpg (or test), "
            "or of train-*.parquet and validation-*.parquet"
        ) from None
    return folder


_CIFAR = {  # torchvision's folder, and the column of the labels in the Hub's tables
    "cifar10": ("cifar-10-batches-py", "label"),
    "cifar100": ("cifar-100-python", "fine_label"),
}


@dataclass(kw_only=True, eq=False)
class Cifar(Images):
    """CIFAR-10 or -100 (`name`: cifar10, cifar100), in memory.

    Args:
        root: contains (or is) torchvision's folder, or parquet shards `train-*.parquet` and `test-*.parquet`.
        download: fetch torchvision's folder into `root` if it holds neither.
        pad, flip, padding_mode: as in `ViewScheme`.
        cache_dir: as in `table_parts`, for parquet.
    """

    download: bool = False

    def read(self) -> None:
        """From the folder `root`."""
        check("name", self.name, " or ".join(_CIFAR), lambda v: v in _CIFAR)
        archive, self.label_column = _CIFAR[self.name]
        folder = existing_folder("root", self.root, needed=False)
        folder = folder.parent if folder.name == archive else folder
        if not (folder / archive).is_dir() and folder.is_dir() and is_table(folder):
            super().read()
            return
        scheme = ViewScheme(self.size, self.pad or 0, self.flip, self.padding_mode)
        from nst.vision import datasets

        kind = datasets.CIFAR10 if self.name == "cifar10" else datasets.CIFAR100
        try:
            if self.download:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / ".download.lock"):  # ranks on one machine; a finished download is only checked
                    kind(str(folder), download=True)
            train, test = (kind(str(folder), train=part) for part in (True, False))
        except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong checksum a RuntimeError
            raise ValueError(
                f"data.root={self.root}: it holds neither parquet shards (train-*.parquet, test-*.parquet) nor a whole folder "
                f"{archive} of torchvision's ({error}). data.download=true downloads {self.name} into it"
            ) from None
        self.classes = tuple(train.classes)
        pixels = [torch.tensor(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
        labels = [torch.tensor(part.targets) for part in (train, test)]
        self.in_memory(scheme, *zip(pixels, labels, strict=True))
