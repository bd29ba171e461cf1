"""A data set: its splits and their metadata."""

import hashlib
from collections.abc import Sequence
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
        _check_tensors(name, pixels, classes, (len(mean), scheme.size, scheme.size))
    plain = ViewScheme(scheme.size, 0, False)  # nothing to augment, so nothing padded
    train, held = training_parts(labels, num_classes, validation, limit)
    val = MemorySplit(images[held], labels[held], plain, mean, std) if len(held) else None
    test = MemorySplit(test_images, test_labels, plain, mean, std)
    return MemorySplit(images[train], labels[train], scheme, mean, std), val, test


def _check_tensors(name: str, images: Tensor, labels: Tensor, shape: tuple[int, int, int]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"the {name} images are {images.dtype} of shape {tuple(images.shape)}; pixels 0 … 255 in torch.uint8 of shape "
            f"(images, {', '.join(map(str, shape))}) are needed: data.mean has {shape[0]} values, the views are of size {shape[1]}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"the {name} labels are {labels.dtype} of shape {tuple(labels.shape)}; torch.int64 of shape ({len(images)},) is needed"
        )
