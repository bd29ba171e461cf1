"""Dist with other images than rank 0 are found before any training."""

import pytest
import torch
from torch import Tensor

from nst.data.dataset import Dataset, memory_splits
from nst.data.views import ViewScheme
from nst.dist import Dist
from nst.runs.same_data import check_same_data


class WithOther(Dist):
    """Rank 0 of two; the other one has `others`."""

    others: Dataset
    digests: list[float] | None = None

    def gather(self, *numbers: float) -> list[list[float]]:
        kind = type(self)
        if kind.digests is not None:  # called for the other rank
            kind.digests = [*numbers]
            return [[*numbers], [*numbers]]
        kind.digests = []
        check_same_data(self.others, self)
        digests, kind.digests = kind.digests, None
        return [[*numbers], digests]


def dataset(images: Tensor, labels: Tensor) -> Dataset:
    parts = memory_splits(
        images, labels, images, labels, num_classes=2, scheme=ViewScheme(4, 0, flip=False), mean=(0.5,), std=(0.25,), validation=0.0,
        limit=None,
    )  # fmt: skip
    return Dataset("own", 2, 1, 4, (0.5,), (0.25,), None, *parts)


def test_a_rank_with_other_pixels_or_labels_is_named() -> None:
    images, labels = torch.arange(8 * 16).view(8, 1, 4, 4).to(torch.uint8), torch.arange(8) % 2
    first, ranks = dataset(images, labels), WithOther(0, 2, torch.device("cpu"))
    WithOther.others = dataset(images, labels)
    check_same_data(first, ranks)
    for other in (dataset(images + 1, labels), dataset(images, 1 - labels), dataset(images[:6], labels[:6])):
        WithOther.others = other
        with pytest.raises(ValueError, match=r"data=own: rank 1 has other images or labels than rank 0"):
            check_same_data(first, ranks)
