"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8×8 pixels. Nothing is downloaded."""

from collections.abc import Sequence

import torch

from nst.data.checks import check_classes, check_labels, check_settings, check_text, check_whole
from nst.data.dataset import Dataset, memory_splits
from nst.data.subset import balanced
from nst.data.views import ViewScheme

_TEST_IMAGES = 360  # 36 of each digit; 1,437 images are left for training


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
    """1,437 training and 360 test images, always the same ones; grey levels 0 … 16 become 0 … 255.

    Raises:
        ValueError: a setting does not fit this data set.
    """
    check_settings(num_classes, channels, size, mean, std, validation, limit)
    if (channels, size) != (1, 8):
        raise ValueError(f"data.channels={channels}, data.size={size}: the digits are 1 channel of 8×8 pixels")
    if root is not None:
        raise ValueError(
            f"data.root: {root!r}; the digits are embedded, leave it null (or choose data=cifar10, data=folder)"
        )
    check_text("name", name)
    check_whole("pad", pad, 0)
    scheme = ViewScheme(size, pad, flip)
    from sklearn.datasets import load_digits as read_digits

    pixels, targets = read_digits(return_X_y=True)
    images = (torch.as_tensor(pixels).reshape(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    labels = torch.as_tensor(targets, dtype=torch.int64)
    check_labels(labels, num_classes, lambda row: f"scikit-learn's digits, row {row}")
    check_classes(labels, num_classes, "scikit-learn's digits")
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[balanced(labels, _TEST_IMAGES)] = True
    parts = memory_splits(
        images[~test], labels[~test], images[test], labels[test],
        num_classes=num_classes, scheme=scheme, mean=mean, std=std, validation=validation, limit=limit,
    )  # fmt: skip
    classes = tuple(str(digit) for digit in range(10))
    return Dataset(name, num_classes, channels, size, tuple(mean), tuple(std), classes, *parts)
