from typing import Any

import numpy as np
import pytest
import torch
from tests.data.samples import noise
from torchvision.transforms.v2 import functional as transforms

from nst.data.augment import CENTRE, Augmentation


def augmentation(**changes: Any) -> Augmentation:
    settings: dict[str, Any] = {
        "size": 16, "resize": 20, "area": (0.08, 1.0), "aspect": (0.75, 4 / 3), "jitter": 0.4, "pca_noise": 0.1, "flip": True,
    }  # fmt: skip
    return Augmentation(**(settings | changes))


def test_a_picture_is_a_function_of_index_and_view() -> None:
    image, augment = noise(1, 40)[0], augmentation()
    state = torch.get_rng_state()
    first = augment(image, 5, 9)
    assert first.shape == (3, 16, 16)
    assert first.dtype == torch.uint8
    assert torch.equal(first, augment(image, 5, 9))
    assert not torch.equal(first, augment(image, 5, 10))
    assert not torch.equal(first, augment(image, 6, 9))
    assert torch.equal(state, torch.get_rng_state())


def test_the_centre_view_is_resize_and_crop() -> None:
    image = noise(1, 40)[0][:30]
    expected = transforms.center_crop(transforms.resize(torch.from_numpy(image).permute(2, 0, 1), [20]), [16, 16])
    assert torch.equal(augmentation()(image, 3, CENTRE), expected)


def test_crops_keep_to_area_and_aspect_and_fill_the_image() -> None:
    augment, draw = augmentation(), np.random.default_rng(0)
    crops = np.array([augment._crop(draw, 300, 400) for _ in range(4000)])
    top, left, height, width = crops.T
    area, aspect = height * width / 120_000, width / height
    assert 0.078 < area.min() < 0.09
    assert 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.35
    assert (top + height).max() == 300
    assert (left + width).max() == 400
    assert top.min() == left.min() == 0
    # log(aspect) is uniform for crops small enough to fit whatever their aspect
    assert abs(np.log(aspect[area < 0.4]).mean()) < 0.02


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1), (1, 50)])
def test_extreme_images_still_give_a_picture(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    for view in range(3):
        assert augmentation()(image, 0, view).shape == (3, 16, 16)
    assert augmentation()(image, 0, CENTRE).shape == (3, 16, 16)


def test_each_part_can_be_turned_off() -> None:
    image = noise(1, 16)[0]
    whole = {"area": (1.0, 1.0), "aspect": (1.0, 1.0), "jitter": 0.0, "pca_noise": 0.0}
    plain = torch.from_numpy(image).permute(2, 0, 1)
    assert torch.equal(augmentation(**whole, flip=False)(image, 0, 1), plain)
    seen = [augmentation(**whole, flip=True)(image, 0, view) for view in range(200)]
    mirrored = sum(torch.equal(picture, plain.flip(2)) for picture in seen)
    assert mirrored + sum(torch.equal(picture, plain) for picture in seen) == 200
    assert 70 < mirrored < 130


def test_colours_are_jittered_as_much_as_asked() -> None:
    image = np.full((16, 16, 3), 100, np.uint8)
    whole = {"area": (1.0, 1.0), "aspect": (1.0, 1.0), "flip": False}
    bright = [augmentation(**whole, pca_noise=0.0)(image, 0, view).float().mean().item() for view in range(300)]
    assert 57 <= min(bright) < 64  # torchvision rounds down at each step
    assert 136 < max(bright) <= 140
    noisy = torch.stack([augmentation(**whole, jitter=0.0)(image, 0, v)[:, 0, 0].float() for v in range(2000)])
    # standard deviation of channel c: 0.1 · sqrt(Σ_k (vector_ck · value_k)²)
    expected = [0.1 * ((-0.5675 * 55.46) ** 2 + (0.7192 * 4.794) ** 2 + (0.4009 * 1.148) ** 2) ** 0.5]
    assert noisy.std(0)[0].item() == pytest.approx(expected[0], rel=0.05)
    assert noisy.mean(0).sub(100).abs().max() < 0.3


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"resize": 15}, "resize"),
        ({"area": (0.0, 1.0)}, "area"),
        ({"area": (0.5, 1.1)}, "area"),
        ({"aspect": (1.5, 0.5)}, "aspect"),
        ({"jitter": 1.5}, "jitter"),
        ({"pca_noise": -0.1}, "pca_noise"),
        ({"flip": "yes"}, "flip"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"data.{key}"):
        augmentation(**changes)
