"""The data sets that `data=` names: digits, CIFAR, and any images in folders or tables; `Dataset` is the base of one's own."""

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from nst.data.batch import AugmentationSettings, Split, check
from nst.data.images import PARTS, WHITE, EncodedImages, Part, Parts, folder_parts, is_table, listed
from nst.data.memory import MemorySplit, ViewScheme

Pixels = tuple[Tensor, Tensor]
COUNTS = range(1, 2**31)


@dataclass(kw_only=True, eq=False)
class Dataset:
    """Splits of one data set. A subclass has a method `read`, which sets `train`, `val` and `test`, for example by `in_memory`.

    Raises ValueError where a setting is wrong, or the data are; the message names the key or the file.
    """

    name: str
    num_classes: int
    channels: int  # 1 (grey) or 3 (RGB)
    size: int  # height and width of an image, in pixels
    mean: Sequence[float]  # of the channels, on the scale 0 … 1
    std: Sequence[float]
    root: str | None = None  # where the images are
    validation: float = 0.0  # fraction of the training images held out, for testing if there is no test part
    limit: int | None = None  # how many of the other training images are used, classes balanced; None: all

    labeled = True  # false: every label is −1

    def __post_init__(self) -> None:
        self.train: Split
        self.val: Split | None = None
        self.test: Split
        self.classes: tuple[str, ...] | None = None  # their names; None: not known
        self.unused: tuple[str, ...] = ()  # names of parts that were found and are not used
        self.tested = "test"  # the name of the part that is tested on
        check(self, num_classes=COUNTS, channels=(1, 3), size=COUNTS, validation=[0, 0.99])
        check(self, self.channels, mean=[0, 1], std=[1e-6, 1])
        if self.limit is not None:
            check(self, limit=range(self.num_classes if self.labeled else 1, COUNTS.stop))
        self.mean, self.std = tuple(self.mean), tuple(self.std)  # to be compared with those that weights expect
        self.read()

    def read(self) -> None:
        """Read the images into `train`, `val` and `test`."""
        raise NotImplementedError

    def in_memory(self, scheme: ViewScheme, train: Pixels, test: Pixels | None, val: Pixels | None = None) -> None:
        """Make the splits of images in memory: pixels [n, C, size, size] uint8, labels [n] int64; `scheme` numbers the training views."""
        plain = ViewScheme(self.size, 0, False)  # nothing to augment, so nothing padded

        def split(part: Pixels, rows: Tensor | slice, augmented: bool) -> Split:
            return MemorySplit(part[0][rows], part[1][rows], scheme if augmented else plain, self.mean, self.std)

        self.divide(train[1], train, val, test, split)

    def divide(self, labels: Tensor, train: Any, val: Any, test: Any, split: Callable[[Any, Any, bool], Split]) -> None:
        """Make the splits of parts, by `split(part, rows, augmented)`: `validation` is held out first, so it does not change with `limit`."""
        if self.classes and len(self.classes) != self.num_classes:
            found = f"{len(self.classes)}: {listed(self.classes)}"
            raise ValueError(f"data.num_classes={self.num_classes}, but {self.name} has {found}")
        labels = labels.clamp(min=0)  # without labels as if of one class
        kept, held = hold_out(labels, self.validation)
        if self.limit is not None:
            check(self, limit=range(self.num_classes if self.labeled else 1, len(kept) + 1))
            kept = kept[balanced(labels[kept], self.limit)]
        self.train = split(train, kept, True)
        self.val, self.test = (part and split(part, slice(None), False) for part in (val, test))
        if len(held):
            setattr(self, "val" if test else "test", split(train, held, False))

    def split(self, name: str) -> Split:
        """The split called "train", "val" or "test". Raises ValueError if there is none."""
        if (split := getattr(self, name)) is None:
            raise ValueError(f"split {name!r}: {self.name} has none; data.validation=0.1 holds out a validation part")
        return split

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the splits' own fingerprints, hex."""
        parts = [split.fingerprint for split in (self.train, self.val, self.test) if split is not None]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def describe(self) -> str:
        """For people: the parts and their sizes, the classes' counts, what is not used and what the best epoch is chosen on."""
        tested = "test" if self.tested.lower() == "test" else f"test ({self.tested})"
        parts = {"training": self.train, "validation": self.val, tested: self.test}
        sizes = ", ".join(f"{len(split):,} {part}" for part, split in parts.items() if split is not None)
        text = f"{self.name}: {sizes} images without labels"
        if self.labeled:
            counts = torch.bincount(self.train.labels, minlength=self.num_classes).tolist()
            fewest, least, most = min(counts), counts.index(min(counts)), max(counts)
            named = f" ({self.classes[least] if self.classes else f'class {least}'}) to {most:,}" * (fewest < most)
            about = f"of {self.num_classes} classes; {fewest:,}{named} training images a class"
            text = f"{self.name}: {sizes} images {about}"
        if self.unused:
            text += f"\nnot used: {', '.join(self.unused)}"
        if self.val is None and self.labeled:
            text += "\nno validation part besides: the best epoch is chosen on the test images (data.validation=0.1 holds out a tenth)"
        return text


def _class_rank(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image its place in a fixed shuffle, overall and within its class: by labels only, so every run and rank has the same."""
    place = np.random.default_rng(0x1707).permutation(len(labels))
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
    """All images as (training, held out), ascending: the fraction of each class, rounded; one stays. Raises ValueError if that is none."""
    _, rank = _class_rank(labels.numpy())
    counts = np.bincount(labels.numpy())
    held = rank < np.minimum(np.rint(fraction * counts), np.maximum(counts - 1, 0))[labels.numpy()]
    if fraction > 0 and not held.any():
        raise ValueError(f"data.validation: {fraction}; it is not one image of the largest class, of {counts.max()}")
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


@dataclass(kw_only=True, eq=False)
class Digits(Dataset):
    """scikit-learn's 1,797 handwritten digits: 1,437 training and 360 test images, always the same; grey levels 0 … 16 become 0 … 255."""

    pad: int = 1
    flip: bool = False

    def read(self) -> None:
        """From scikit-learn's package."""
        check(self, size=(8,), root=(None,))
        scheme = ViewScheme(self.size, self.pad, self.flip)
        package = str(find_spec("sklearn").origin)  # pyright: ignore[reportOptionalMemberAccess] - importing it takes a second
        values = torch.from_numpy(np.loadtxt(Path(package).parent / "datasets/data/digits.csv.gz", delimiter=","))
        images, labels = values[:, :-1].reshape(-1, 1, 8, 8).mul(255 / 16).round().byte(), values[:, -1].long()
        test = torch.zeros(len(labels), dtype=torch.bool)
        test[balanced(labels, 360)] = True  # 36 of each digit
        self.classes = tuple("0123456789")
        self.in_memory(scheme, (images[~test], labels[~test]), (images[test], labels[test]))


@dataclass(kw_only=True, eq=False)
class Images(AugmentationSettings, Dataset):
    """Images of people's own, or of the Hub: on disk and augmented as `Augmentation` says, or in memory as `ViewScheme` says.

    `root` is a folder of `train/<class>/*` and `val/<class>/*` (or as in `images.PARTS`), or one that `datasets` reads.
    """

    path: str | None = None  # instead of `root`: such a folder, or else a name on the Hub
    labeled: bool = True  # false: images without labels, in folders as they like
    background: Sequence[int] = WHITE  # R, G, B behind transparent images
    pad: int | None = None  # a number: images have `size` and stay in memory, without the keys from `resize` to `erase`
    padding_mode: str = "constant"
    image_column: str | None = None  # this and the next: None: found by their types and names
    label_column: str | None = None
    subset: str | None = None  # of a data set that has several; `datasets` calls it its configuration
    cache_dir: str | None = None  # where `datasets` writes its Arrow files; None: its own folder

    def read(self) -> None:
        """From the folder `root`, or as `path` says."""
        check(self, 3, background=range(256))
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

        erased = tuple(float(round(255 * value)) for value in self.mean)
        recipe = {f.name: getattr(self, f.name) for f in fields(AugmentationSettings)}
        augmentation = Augmentation(size=self.size, erased=erased, **recipe)

        def split(part: Part, rows: Tensor | slice, augmented: bool) -> Split:
            rows, about = torch.arange(len(part.labels))[rows], (augmentation, self.mean, self.std)
            return PhotographSplit(part.images, rows, part.labels[rows], *about, tuple(self.background))

        train, val, test = self._parts()
        self.divide(train.labels, train, val, test, split)

    def _parts(self) -> tuple[Part, Part | None, Part | None]:
        """What is trained, validated and tested on. Beside a test part the validation part is one; alone it is the test part."""
        said = f"data.path={self.path}" if self.root is None else f"data.root={self.root}"
        folder = Path(os.path.expanduser(str(self.root or self.path)))  # noqa: PTH111 - unlike pathlib's it raises nothing
        if folder.is_dir() and not is_table(folder):
            parts, unused = folder_parts(folder, self.labeled)
        elif folder.is_dir() or self.path:
            parts, unused = self._tables(said, str(folder if folder.is_dir() else self.path))
        else:
            raise ValueError(f"{said}: no such folder; train/<class>/*.jpg or train-*.parquet should be in it")
        names = {name.lower(): name for name in parts}
        train, val, test = (next((names[kind] for kind in kinds if kind in names), None) for kinds in PARTS)
        if len(parts) == 1 and not (val or test):
            train = next(iter(parts))
        if train is None:
            raise ValueError(f"{said}: its parts are {listed(list(parts))}; one must be called train")
        if val and test and self.validation:
            raise ValueError(f"data.validation: {self.validation}; it must be 0, since {said} has a validation part")
        val, test = (val, test) if test else (None, val)
        self.tested = test or self.tested
        if not test and not self.validation:
            raise ValueError(f"{said}: there is no test part; data.validation=0.1 takes a tenth of the images for it")
        self.unused = (*(name for name in parts if name not in (train, val, test)), *unused)
        found: dict[str | None, Part] = {name: parts[name]() for name in (train, val, test) if name}
        self.classes = found[train].classes
        for images, labels, classes in found.values():
            if other := sorted({*(classes or ())} ^ {*(self.classes or ())}):
                raise ValueError(f"{images.place}: its classes differ from the training part's in {listed(other)}")
            outside = ((labels < 0) | (labels >= self.num_classes)).nonzero().flatten().tolist()
            if self.labeled and outside:
                row, allowed = outside[0], f"data.num_classes={self.num_classes} allows 0 to {self.num_classes - 1}"
                raise ValueError(f"{images.place}, row {row}: label {int(labels[row])}, but {allowed}")
        return found[train], found.get(val), found.get(test)

    def _tables(self, said: str, place: str) -> Parts:
        """The parts of what `datasets` reads at `place`; and those without labels, where labels are needed."""
        import datasets

        folder, shards = Path(place), Counter[str]()
        for file in folder.rglob("*-of-*.parquet"):  # of train-00000-of-00003.parquet, datasets reads what there is
            shards[re.sub(r"-\d+-of-(\d+).*", r"-*-of-\1", str(file))] += 1
        for name, count in shards.items():
            if count < int(name.rpartition("-")[2]):
                raise ValueError(f"{said}: of the shards {name}.parquet there are {count}")
        if not folder.is_dir():
            print(f"{said}: no such folder here, so the Hugging Face Hub is asked for it", file=sys.stderr)
        if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
            datasets.disable_progress_bars()
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        load: Any = datasets.load_from_disk if saved else datasets.load_dataset
        try:
            tables = load(place) if saved else load(place, self.subset, cache_dir=self.cache_dir)
        except Exception as error:  # its own, pyarrow's, fsspec's, the Hub's
            raise ValueError(f"{said}: Hugging Face datasets cannot read it ({error})") from None
        tables = {"train": tables} if isinstance(tables, datasets.Dataset) else tables
        features = next(iter(tables.values())).features

        def column(key: str, kind: type, names: str) -> str:
            given, typed = getattr(self, key), [name for name, feature in features.items() if isinstance(feature, kind)]
            found = typed if len(typed) == 1 else [*(name for name in names.split() if name in features), *typed, ""]
            if (name := given or found[0]) not in features:
                raise ValueError(f"data.{key}: {given!r}; it must be a column of {said}: {', '.join(features)}")
            return name

        image, classes = column("image_column", datasets.Image, "image img"), None
        labels: dict[str, list[Any]] = {name: [-1] * len(table) for name, table in tables.items()}
        if self.labeled:
            label = column("label_column", datasets.ClassLabel, "label fine_label labels class target")
            for name, table in tables.items():
                labels[name] = table.select_columns([label])[:][label] if label in table.features else []
            texts = {value for values in labels.values() for value in values if isinstance(value, str)}
            classes = tuple(getattr(features[label], "names", None) or sorted(texts)) or None
            numbers = {name: number for number, name in enumerate(classes or ())}
            for values in labels.values():
                values[:] = [numbers[v] if isinstance(v, str) else v if isinstance(v, int) else -1 for v in values]
        unused = [name for name, values in labels.items() if self.labeled and set(values) <= {-1}]
        if len(unused) == len(tables):
            raise ValueError(f"{said}: no part of it has labels; data.labeled=false reads images without them")

        def read(name: str) -> Part:
            table = tables[name].select_columns([image]).cast_column(image, datasets.Image(decode=False))
            return Part(EncodedImages(table, f"{said}, part {name}", not saved), torch.tensor(labels[name]), classes)

        parts = {name: partial(read, name) for name in tables if name not in unused}
        return parts, [f"{name} (no labels)" for name in unused]


@dataclass(kw_only=True, eq=False)
class Cifar(Images):
    """CIFAR-10 or -100 (`name`: cifar10, cifar100), in memory; `root` contains (or is) torchvision's folder, or parquet shards."""

    download: bool = False  # fetch torchvision's folder into `root` if it holds neither

    def read(self) -> None:
        """From the folder `root`."""
        check(self, name=("cifar10", "cifar100"))
        for key in ("jitter", "pca_noise", "augment", "erase"):  # images in memory are cropped and mirrored only
            check(self, **{key: (getattr(AugmentationSettings, key),)})
        ten = self.name == "cifar10"
        archive, self.label_column = ("cifar-10-batches-py", "label") if ten else ("cifar-100-python", "fine_label")
        folder = Path(os.path.expanduser(str(self.root)))  # noqa: PTH111
        folder = folder.parent if folder.name == archive else folder
        if not (folder / archive).is_dir() and folder.is_dir() and is_table(folder):
            super().read()
            return
        scheme = ViewScheme(self.size, self.pad or 0, self.flip, self.padding_mode)
        from nst.vision import datasets

        kind = datasets.CIFAR10 if ten else datasets.CIFAR100
        try:
            if self.download:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / ".download.lock"):  # ranks on one machine; a finished download is only checked
                    kind(str(folder), download=True)
            parts = [kind(str(folder), train=part) for part in (True, False)]
        except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong checksum a RuntimeError
            found = f"neither parquet shards nor a whole folder {archive} ({error})"
            raise ValueError(f"data.root={self.root}: {found}; data.download=true downloads {self.name}") from None
        self.classes = tuple(parts[0].classes)
        pixels = [torch.tensor(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
        self.in_memory(scheme, *zip(pixels, [torch.tensor(part.targets) for part in parts], strict=True))
