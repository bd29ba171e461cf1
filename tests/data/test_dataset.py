"""Digits, and the fixed choices of images: what is held out, and a limit."""

from typing import Any

import pytest
import torch

from nst.data.dataset import Dataset, Digits, balanced, hold_out
from nst.data.memory import MemorySplit, ViewScheme

LABELS = torch.tensor([0] * 10 + [1] * 20 + [2] * 3)[torch.randperm(33, generator=torch.Generator().manual_seed(1))]


def digits(**changes: Any) -> Dataset:
    settings: dict[str, Any] = {"num_classes": 10, "channels": 1, "size": 8, "mean": [0.3055], "std": [0.3756]}
    return Digits(name="digits", **(settings | changes))


def test_a_limit_balances_classes_and_only_grows() -> None:
    chosen = [set(balanced(LABELS, n).tolist()) for n in range(34)]
    for n in range(33):
        assert len(chosen[n]) == n
        assert chosen[n] < chosen[n + 1]
    assert LABELS[balanced(LABELS, 9)].bincount().tolist() == [3, 3, 3]
    assert LABELS[balanced(LABELS, 23)].bincount().tolist() == [10, 10, 3]


@pytest.mark.parametrize(("fraction", "counts"), [(0.2, [2, 4, 1]), (0.99, [9, 19, 2]), (0.0, [0, 0, 0])])
def test_the_held_out_part_is_stratified_and_apart_and_empties_no_class(fraction: float, counts: list[int]) -> None:
    kept, held = hold_out(LABELS, fraction)
    assert LABELS[held].bincount(minlength=3).tolist() == counts
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(33))


def test_the_digits_are_split_in_a_fixed_and_stratified_way() -> None:
    data = digits()
    assert (len(data.train), data.val, len(data.test)) == (1437, None, 360)
    assert data.test.labels.bincount().tolist() == [36] * 10
    assert data.train.num_views == 9
    train, test = (split.images for split in (data.train, data.test) if isinstance(split, MemorySplit))
    assert (train / 255).mean().item() == pytest.approx(data.mean[0], abs=5e-5)
    assert (train / 255).std(correction=0).item() == pytest.approx(data.std[0], abs=5e-5)
    assert len(torch.cat([train, test]).flatten(1).unique(dim=0)) == 1797


def test_validation_does_not_change_with_the_limit() -> None:
    data, fewer = digits(validation=0.1), digits(validation=0.1, limit=100)
    assert data.val is not None
    assert fewer.val is not None
    assert len(data.val) == pytest.approx(144, abs=5)
    assert data.val.fingerprint == fewer.val.fingerprint
    assert fewer.train.labels.bincount().tolist() == [10] * 10
    assert len({data.fingerprint, fewer.fingerprint, digits().fingerprint}) == 3
    with pytest.raises(ValueError, match=r"data\.limit: 1400; .* from 10 to 1294"):
        digits(validation=0.1, limit=1400)


def test_a_data_set_of_ones_own() -> None:
    """With a validation part of its own."""

    class Squares(Dataset):
        def read(self) -> None:
            images = torch.zeros(12, 1, 4, 4, dtype=torch.uint8)
            part = images, torch.arange(12) % 3
            self.in_memory(ViewScheme(4, 1, flip=True), part, part, (images[:3], part[1][:3]))

    data = Squares(name="squares", num_classes=3, channels=1, size=4, mean=[0.5], std=[0.5], limit=6)
    assert (len(data.train), len(data.split("val")), len(data.test)) == (6, 3, 12)
    assert (data.train.num_views, data.test.num_views) == (18, 1)
    assert "squares: 6 training, 3 validation, 12 test images of 3 classes; 2 training images" in data.describe()
