"""Fixed, class-balanced choices of images: the validation part, a limited training set, the digits' test set.

They depend on the labels only, not on the seed of a run, so every run and rank has the same images.
"""

import numpy as np
import torch
from torch import Tensor

_SEED = 0x1707  # of the fixed shuffle


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
