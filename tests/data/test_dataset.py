"""Digits, the fixed choices of images (what is held out, a limit), and settings that fit no data set."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tests.conftest import ROOT

from nst import build
from nst.config import EvaluateConfig
from nst.data.dataset import Dataset, Digits, balanced, hold_out
from nst.data.memory import MemorySplit, ViewScheme

LABELS = torch.tensor([0] * 10 + [1] * 20 + [2] * 3)[torch.randperm(33, generator=torch.Generator().manual_seed(1))]


def digits(**changes: Any) -> Dataset:
    settings: dict[str, Any] = {"num_classes": 10, "channels": 1, "size": 8, "mean": [0.3055], "std": [0.3756]}
    return Digits(name="digits", **(settings | changes))


def test_a_limit_balances_classes_and_only_grows() -> None:
    chosen = [set(balanced(LABELS, n).tolist()) for n in range(34)]
    assert all(len(chosen[n]) == n and chosen[n] < chosen[n + 1] for n in range(33))
    assert LABELS[balanced(LABELS, 9)].bincount().tolist() == [3, 3, 3]
    assert LABELS[balanced(LABELS, 23)].bincount().tolist() == [10, 10, 3]


@pytest.mark.parametrize(("fraction", "counts"), [(0.2, [2, 4, 1]), (0.99, [9, 19, 2]), (0.0, [0, 0, 0])])
def test_the_held_out_part_is_stratified_and_apart_and_empties_no_class(fraction: float, counts: list[int]) -> None:
    kept, held = hold_out(LABELS, fraction)
    assert LABELS[held].bincount(minlength=3).tolist() == counts
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(33))


def test_the_digits_are_split_in_a_fixed_and_stratified_way_and_validation_does_not_change_with_the_limit() -> None:
    whole, data, fewer = digits(), digits(validation=0.1), digits(validation=0.1, limit=100)
    assert (len(whole.train), whole.val, len(whole.test), whole.train.num_views) == (1437, None, 360, 9)
    assert whole.test.labels.bincount().tolist() == [36] * 10
    train, test = (split.images for split in (whole.train, whole.test) if isinstance(split, MemorySplit))
    moments = (train / 255).mean().item(), (train / 255).std(correction=0).item()
    assert moments == pytest.approx((*whole.mean, *whole.std), abs=5e-5)
    assert len(torch.cat([train, test]).flatten(1).unique(dim=0)) == 1797
    assert len(data.split("val")) == pytest.approx(144, abs=5)
    assert data.split("val").fingerprint == fewer.split("val").fingerprint
    assert fewer.train.labels.bincount().tolist() == [10] * 10
    assert len({part.fingerprint for part in (whole, data, fewer)}) == 3
    with pytest.raises(ValueError, match=r"data\.limit: 1400; .*1294"):
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
    assert "6 training, 3 validation, 12 test" in data.describe()


NAN, INF = float("nan"), float("inf")

BAD: dict[str, dict[str, list[Any]]] = {
    "digits": {"size": [16], "root": ["data", 5], "limit": [5], "pad": [-1, 64]},
    "cifar10": {
        "num_classes": [0, 10.0, "10", True, None], "channels": [2, "3"], "size": [-32, None],
        "mean": [0.5, [0.5] * 5, {"r": 0.5}, [0.5, 0.5, "0.5"], [0.5, 0.5, NAN], [124.0, 116.0, 104.0]],
        "std": [[0.5, 0.5, 0.0], [0.5, 0.5, INF]], "validation": [1.0, -0.1], "limit": [0, "all"],
        "name": ["cifar11", ["cifar10"]], "pad": [-1, 64], "flip": [1, "yes"], "padding_mode": ["mirror", None],
        "root": [None, "", ["data"], "a\0b", "~nobody-of-this-name/x"],
    },
    "folder": {
        "root": [None, "", 5], "resize": [10], "area": [0.5, [1.0, 0.5], [0, 1.0]], "aspect": [[1.0, INF], [2, 1]],
        "jitter": [1.1], "pca_noise": [INF], "interpolation": ["cubic"], "antialias": ["no"],
        "aspect_sampling": ["uniform"], "augment": ["auto", 1], "erase": [1.5],
        "background": ["white", [256, 0, 0], [0.5, 0.5, 0.5]],
    },
}  # fmt: skip


@pytest.mark.parametrize(("config", "key"), [(config, key) for config, keys in BAD.items() for key in keys])
def test_each_bad_value_is_an_error_that_names_its_key(config: str, key: str) -> None:
    """Before anything is read."""
    node: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "data" / f"{config}.yaml"))
    node |= {"num_classes": 12, "root": "."} if config == "folder" else {}
    for value in BAD[config][key]:
        with pytest.raises(ValueError, match=rf"data\.{key}\b") as caught:
            build.dataset(EvaluateConfig(data={**node, key: value}))
        assert caught.value.__cause__ is None or isinstance(caught.value.__cause__.__cause__, ValueError), value
