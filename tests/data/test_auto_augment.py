"""TrivialAugment, RandAugment and random erasing: torchvision's, as a function of (index, view)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.samples import noise, write_tree
from tests.data.test_augment import augmentation
from tests.data.test_folder import load, same
from torchvision.transforms import InterpolationMode, v2

from nst.data.augment import UNAUGMENTED, Augmentation

PLAIN: dict[str, Any] = {"jitter": 0.0, "pca_noise": 0.0}
KINDS: list[dict[str, Any]] = [{"augment": "trivial"}, {"augment": "rand"}, {"erase": 1.0, "erased": (9, 8, 7)}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_picture_is_a_function_of_index_and_view(kind: dict[str, Any]) -> None:
    image, plain, augment = noise(1, 40)[0], augmentation(**PLAIN), augmentation(**PLAIN, **kind)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = [augment(image, 5, view) for view in range(20)]
    torch.manual_seed(1)
    assert all(torch.equal(one, augment(image, 5, view)) for view, one in enumerate(first))
    torch.manual_seed(0)
    augment(image, 5, 0)
    assert torch.equal(state, torch.get_rng_state())
    changed = [not torch.equal(one, plain(image, 5, view)) for view, one in enumerate(first)]
    assert sum(changed) > 10
    assert any(not torch.equal(augment(image, 6, view), one) for view, one in enumerate(first))
    assert torch.equal(augment(image, 5, UNAUGMENTED), plain(image, 5, UNAUGMENTED))
    assert all(one.dtype == torch.uint8 and one.shape == (3, 16, 16) for one in first)


@pytest.mark.parametrize(("name", "transform"), [("trivial", v2.TrivialAugmentWide), ("rand", v2.RandAugment)])
def test_it_is_torchvisions_after_crop_and_mirror(name: Any, transform: Any) -> None:
    image = noise(1, 40)[0]
    cropped = augmentation(**PLAIN)
    draw = np.random.default_rng([2, 3])
    cropped._crop(draw, 40, 40)
    draw.random()  # mirrored or not
    torch.manual_seed(int(draw.integers(2**63)))
    expected = transform(interpolation=InterpolationMode.BILINEAR)(cropped(image, 2, 3))
    assert torch.equal(augmentation(**PLAIN, augment=name)(image, 2, 3), expected)


def test_a_rectangle_is_filled_with_the_colour_as_often_as_asked() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    augment = augmentation(**PLAIN, erase=0.25, erased=(9, 8, 7))
    erased = [picture for view in range(400) if (picture := augment(image, 0, view)).min() < 200]
    assert 70 < len(erased) < 130
    parts = []
    for picture in erased:
        filled = picture[0] == 9
        assert picture[:, filled].unique(dim=1).flatten().tolist() == [9, 8, 7]
        rows, columns = filled.any(1).sum(), filled.any(0).sum()
        assert filled.sum() == rows * columns
        parts.append(float(filled.float().mean()))
    assert 0.01 < min(parts) < max(parts) < 0.36


def test_workers_change_nothing_and_view_keys_differ(tmp_path: Path) -> None:
    write_tree(tmp_path)
    changes: dict[str, Any] = {"augment": "trivial", "erase": 0.5}
    loaders = [load(tmp_path, **changes).train.loader(6, train=True, seed=1, workers=workers) for workers in (0, 1)]
    assert same(*(list(loader.epoch(0)) for loader in loaders))
    plain, mixed = load(tmp_path).train, load(tmp_path, **changes).train
    assert mixed.view_key == plain.view_key + "-trivial-erase0.5"
    assert isinstance(mixed.augmentation, Augmentation)  # type: ignore[attr-defined]
    assert mixed.augmentation.erased == (128, 128, 128)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "auto"}, r"data\.augment: 'auto'; it is null \(none\), trivial or rand"),
        ({"erase": 1.5}, r"data\.erase: 1\.5; it is a probability"),
        ({"erase": "often"}, r"data\.erase: 'often'; it must be a finite number"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("nowhere", **changes)
