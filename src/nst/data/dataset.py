"""A data set: its splits and what is known of them, and the fixed choices of images that splits are made of."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nst.data.batch import Split
from nst.data.memory import MemorySplit
from nst.data.views import ViewScheme, check

_SEED = 0x1707  # of the fixed shuffle


@dataclass(frozen=True)
class Dataset:
    """Splits of one data set. `classes` are their names, if known; mean and std are per channel."""

    name: str
    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None
    train: Split
    val: Split | None
    test: Split
    unused: tuple[str, ...] = ()  # parts that were found and are not used
    labeled: bool = True  # False: every label is −1

    def split(self, name: str) -> Split:
        """The split called "train", "val" or "test".

        Raises:
            ValueError: no such split, or the data set has no validation part.
        """
        split = {"train": self.train, "val": self.val, "test": self.test}.get(name)
        if split is None:
            names = [key for key in ("train", "val", "test") if key != "val" or self.val is not None]
            hint = "; data.validation=0.1 holds out a tenth of the training images" if name == "val" else ""
            raise ValueError(f"split {name!r}: {self.name} has {', '.join(names)}{hint}")
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
            text += f"; {fewest:,} training images a class" if fewest == most else ""
            text += f"; {fewest:,} ({named}) to {most:,} training images a class" if fewest != most else ""
        if self.unused:
            text += f"\nnot used: {', '.join(self.unused)}"
        if self.val is None and self.labeled:
            text += "\nno validation part: the best epoch is chosen on the test images (data.validation=0.1 holds out a tenth)"
        return text


def check_settings(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    validation: float,
    limit: int | None,
) -> None:
    """Raises ValueError with the key for settings that no data set can have."""
    check("name", name, "a text that is not empty", lambda v: bool(v.strip()))
    for key, value in (("num_classes", num_classes), ("size", size)):
        check(key, value, "a whole number from 1", lambda v: type(v) is int and v >= 1)
    check("channels", channels, "1 (grey) or 3 (RGB)", lambda v: type(v) is int and v in (1, 3))
    count = f"a list of {channels} finite numbers for data.channels={channels}"
    check("mean", mean, count, lambda v: len(v) == channels and np.isfinite(v).all())
    check(
        "std",
        std,
        f"{count}, each above 0 (at least 1e-6)",
        lambda v: len(v) == channels and 1e-6 <= min(v) <= max(v) < np.inf,
    )
    right = "a fraction of the training images, 0 (none) to below 1"
    check("validation", validation, right, lambda v: type(v) in (int, float) and 0 <= v < 1)
    if limit is not None:
        check(
            "limit",
            limit,
            f"a whole number from data.num_classes={num_classes}",
            lambda v: type(v) is int and v >= num_classes,
        )


def memory_splits(
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    scheme: ViewScheme,
    mean: Sequence[float],
    std: Sequence[float],
    validation: float,
    limit: int | None,
) -> tuple[MemorySplit, MemorySplit | None, MemorySplit]:
    """Training, validation and test split of images in memory: [n, C, size, size] uint8, labels [n] int64.

    Raises:
        ValueError: images or labels of another type or shape.
    """
    for name, pixels, classes in (("training", images, labels), ("test", test_images, test_labels)):
        check_tensors(name, pixels, classes, (len(mean), scheme.size, scheme.size))
    plain = ViewScheme(scheme.size, 0, False)  # nothing to augment, so nothing padded
    train, held = training_parts(labels, num_classes, validation, limit)
    val = MemorySplit(images[held], labels[held], plain, mean, std) if len(held) else None
    test = MemorySplit(test_images, test_labels, plain, mean, std)
    return MemorySplit(images[train], labels[train], scheme, mean, std), val, test


def check_tensors(name: str, images: Tensor, labels: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises ValueError unless images are [n, *shape] uint8 and labels [n] int64; `name` is the part's."""
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"the {name} images are {images.dtype} of shape {tuple(images.shape)}; pixels 0 … 255 in torch.uint8 of shape "
            f"(images, {', '.join(map(str, shape))}) are needed: data.mean has {shape[0]} values, the views are of size {shape[1]}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"the {name} labels are {labels.dtype} of shape {tuple(labels.shape)}; torch.int64 of shape ({len(images)},) is needed"
        )


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
    held_counts = np.minimum(np.rint(fraction * counts), np.maximum(counts - 1, 0))
    held = rank < held_counts[labels.numpy()]
    if fraction > 0 and not held.any():
        raise ValueError(f"data.validation: {fraction} of the largest class ({counts.max()} images) is not one image")
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def training_parts(labels: Tensor, num_classes: int, validation: float, limit: int | None) -> tuple[Tensor, Tensor]:
    """Training and validation images: `validation` is taken first, so it does not change with `limit`.

    Raises:
        ValueError: `limit` exceeds the training images or is below one image per class.
    """
    train, held = hold_out(labels, validation)
    if limit is not None:
        if not num_classes <= limit <= len(train):
            raise ValueError(
                f"data.limit: {limit}; the training set has {len(train)} images of {num_classes} classes, so it is "
                f"from {num_classes} to {len(train)}, or null for all"
            )
        train = train[balanced(labels[train], limit)]
    return train, held
