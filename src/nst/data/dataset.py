"""A data set: its splits and what a run needs to know of them."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nst.data.batch import Split
from nst.data.memory import MemorySplit
from nst.data.subset import training_parts
from nst.data.views import ViewScheme


@dataclass(frozen=True)
class Dataset:
    """Splits of one data set. `classes` are their names, where known; mean and std are those of the channels."""

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

    def split(self, name: str) -> Split:
        """The split called "train", "val" or "test".

        Raises:
            ValueError: no such split, or the data set has no validation part.
        """
        found = {"train": self.train, "val": self.val, "test": self.test}.get(name)
        if found is None:
            known = [key for key in ("train", "val", "test") if key != "val" or self.val is not None]
            hint = "; data.validation=0.1 holds out a tenth of the training images" if name == "val" else ""
            raise ValueError(f"split {name!r}: {self.name} has {', '.join(known)}{hint}")
        return found

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the splits' own fingerprints, hex."""
        parts = [split.fingerprint for split in (self.train, self.val, self.test) if split is not None]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def check_settings(
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    validation: float,
    limit: int | None,
) -> None:
    """Raises ValueError, naming the key, for settings that fit no data set."""
    whole = {"num_classes": num_classes, "channels": channels, "size": size}
    for key, value in (whole if limit is None else whole | {"limit": limit}).items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"data.{key}: {value!r}; it must be a whole number from 1")
    if channels not in (1, 3):
        raise ValueError(f"data.channels: {channels}; images have 1 channel (grey) or 3 (RGB)")
    for key, values in (("mean", mean), ("std", std)):
        if isinstance(values, str) or not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(f"data.{key}: {values!r}; it must be a list of numbers, one a channel")
        if len(values) != channels:
            raise ValueError(f"data.{key}: {len(values)} values for data.channels={channels}; give one value a channel")
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"data.{key}: {list(values)}; each value must be finite")
    if min(std) <= 0:
        raise ValueError(f"data.std: {list(std)}; each value must be above 0")
    if not isinstance(validation, (int, float)) or not 0 <= validation < 1:
        raise ValueError(
            f"data.validation: {validation!r}; it is a fraction of the training images, 0 (none) to below 1"
        )
    if limit is not None and limit < num_classes:
        raise ValueError(f"data.limit: {limit} is below the {num_classes} classes; keep at least one image a class")


def check_labels(labels: Tensor, num_classes: int, where: Callable[[int], str]) -> None:
    """Raises ValueError for the first label outside 0 … num_classes − 1; `where(i)` names label i's file and row."""
    bad = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{where(first)}: label {int(labels[first])}, but data.num_classes={num_classes} allows 0 to {num_classes - 1}"
            + (f" ({len(bad)} labels are outside)" if len(bad) > 1 else "")
        )


def check_classes(labels: Tensor, num_classes: int, where: str) -> None:
    """Raises ValueError if a class has no image."""
    empty = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if empty:
        shown = ", ".join(str(label) for label in empty[:5]) + (", …" if len(empty) > 5 else "")
        raise ValueError(f"{where}: no training image of class {shown} (data.num_classes={num_classes})")


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
    """Training, validation and test split of images in memory: [n, C, size, size] uint8, labels [n] int64."""
    plain = ViewScheme(scheme.size, 0, False)  # nothing to augment, so nothing padded
    train, held = training_parts(labels, num_classes, validation, limit)
    val = MemorySplit(images[held], labels[held], plain, mean, std) if len(held) else None
    test = MemorySplit(test_images, test_labels, plain, mean, std)
    return MemorySplit(images[train], labels[train], scheme, mean, std), val, test
