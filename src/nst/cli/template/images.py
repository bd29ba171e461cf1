"""A data set: noise with a bright row; the class is which one."""

from collections.abc import Sequence

import torch

from nst.data.dataset import Dataset, memory_splits
from nst.data.views import ViewScheme


def stripes(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    root: str | None,
    validation: float,
    limit: int | None,
) -> Dataset:
    """400 training and 200 test images; `root` is not needed."""
    draw = torch.Generator().manual_seed(0)

    def images(labels: torch.Tensor) -> torch.Tensor:
        pixels = torch.randint(0, 128, (len(labels), channels, size, size), generator=draw, dtype=torch.uint8)
        pixels[torch.arange(len(labels)), :, labels] += 100
        return pixels

    train, test = torch.arange(400) % num_classes, torch.arange(200) % num_classes
    parts = memory_splits(
        images(train),
        train,
        images(test),
        test,
        num_classes=num_classes,
        scheme=ViewScheme(size, pad=0, flip=True),
        mean=mean,
        std=std,
        validation=validation,
        limit=limit,
    )
    return Dataset(name, num_classes, channels, size, tuple(mean), tuple(std), None, *parts)
