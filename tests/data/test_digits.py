from typing import Any

import pytest
import torch

from nst.data.dataset import Dataset
from nst.data.memory import MemorySplit
from nst.data.sources import load_digits


def load(**changes: Any) -> Dataset:
    settings: dict[str, Any] = {
        "name": "digits", "num_classes": 10, "channels": 1, "size": 8, "mean": [0.3055], "std": [0.3756],
        "root": None, "validation": 0.0, "limit": None, "pad": 1, "flip": False,
    }  # fmt: skip
    return load_digits(**(settings | changes))


def test_the_split_is_fixed_and_stratified() -> None:
    data = load()
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.test.labels.bincount().tolist() == [36] * 10
    assert data.train.num_views == 9
    assert isinstance(data.train, MemorySplit)
    assert isinstance(data.test, MemorySplit)
    grey = data.train.images.double() / 255
    assert grey.mean().item() == pytest.approx(data.mean[0], abs=5e-5)
    assert grey.std(correction=0).item() == pytest.approx(data.std[0], abs=5e-5)
    together = torch.cat([data.train.images, data.test.images]).flatten(1).unique(dim=0)
    assert len(together) == 1797


def test_validation_and_limit() -> None:
    data = load(validation=0.1, limit=100)
    assert data.val is not None
    assert len(data.val) == pytest.approx(144, abs=5)
    assert data.train.labels.bincount().tolist() == [10] * 10
    assert data.fingerprint == load(validation=0.1, limit=100).fingerprint != load().fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 12}, "data.num_classes=12, .* the digits are of 10 classes"),
        ({"size": 32}, "data.size=32: the digits are of 10 classes, 1 channel and 8×8"),
        ({"root": "data"}, "data.root: 'data'; the digits are embedded"),
        ({"limit": 2000}, "data.limit: 2000"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**changes)
