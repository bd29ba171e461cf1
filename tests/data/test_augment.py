"""Augmentation of photographs: torchvision's transforms as a function of (index, view), and what is not torchvision's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.samples import noise
from torchvision.transforms.v2 import functional as transforms

from nst.data.augment import Augmentation, SwappedCrop
from nst.data.batch import UNLISTED_VIEWS

PAPERS_CODE = {"interpolation": "bicubic", "antialias": False, "aspect_sampling": "uniform_swapped"}
PLAIN: dict[str, Any] = {"jitter": 0.0, "pca_noise": 0.0}
WHOLE: dict[str, Any] = {"area": (1.0, 1.0), "aspect": (1.0, 1.0)}
KINDS: list[dict[str, Any]] = [{}, PAPERS_CODE, {"augment": "trivial"}, {"augment": "rand"}, {"erase": 1.0}]


def augmentation(**changes: Any) -> Augmentation:
    return Augmentation(**({"size": 16, "resize": 20, "jitter": 0.4, "pca_noise": 0.1} | changes))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_picture_is_a_function_of_index_and_view(kind: dict[str, Any]) -> None:
    """Whatever the global generator, and of however odd a shape; unaugmented it is resized and cropped alone."""
    image, augment = noise(1, 40)[0][:30], augmentation(**kind)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = [augment(image, 5, view) for view in range(10)]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert all(torch.equal(one, augment(image, 5, view)) for view, one in enumerate(first))
    assert not any(torch.equal(first[0], other) for other in (*first[1:], augment(image, 6, 0)))
    assert len({augmentation(**other).key for other in KINDS}) == len(KINDS)
    for height, width in ((10, 1000), (1000, 10), (1, 1)):
        for view in (0, 1, UNLISTED_VIEWS):
            picture = augment(np.zeros((height, width, 3), np.uint8), 0, view)
            assert (picture.shape, picture.dtype) == ((3, 16, 16), torch.uint8)
    if kind != PAPERS_CODE:
        expected = transforms.center_crop(transforms.resize(torch.from_numpy(image).permute(2, 0, 1), [20]), [16, 16])
        assert torch.equal(augment(image, 3, UNLISTED_VIEWS), expected)


def test_half_are_mirrored_and_colours_change_as_much_as_the_settings_say() -> None:
    image = noise(1, 16)[0]
    plain = torch.from_numpy(image).permute(2, 0, 1)
    assert torch.equal(augmentation(**WHOLE, **PLAIN, flip=False)(image, 0, 1), plain)
    seen = [augmentation(**WHOLE, **PLAIN)(image, 0, view) for view in range(200)]
    mirrored = sum(torch.equal(picture, plain.flip(2)) for picture in seen)
    assert mirrored + sum(torch.equal(picture, plain) for picture in seen) == 200
    assert 70 < mirrored < 130
    image = np.full((16, 16, 3), 100, np.uint8)
    bright = [augmentation(**WHOLE, pca_noise=0.0)(image, 0, view).float().mean().item() for view in range(200)]
    assert 57 <= min(bright) < 65  # torchvision rounds down at each step
    assert 135 < max(bright) <= 140
    noisy = torch.stack([augmentation(**WHOLE, jitter=0.0)(image, 0, v)[:, 0, 0].float() for v in range(800)])
    # standard deviation of channel c: 0.1 · sqrt(Σ_k (vector_ck · value_k)²)
    expected = 0.1 * ((-0.5675 * 55.46) ** 2 + (0.7192 * 4.794) ** 2 + (0.4009 * 1.148) ** 2) ** 0.5
    assert noisy.std(0)[0].item() == pytest.approx(expected, rel=0.08)
    assert noisy.mean(0).sub(100).abs().max() < 0.8


@pytest.mark.parametrize("erased", [(9.0, 8.0, 7.0), (9.0,)])
def test_a_rectangle_is_filled_with_the_colour_as_often_as_the_settings_say(erased: tuple[float, ...]) -> None:
    image = np.full((40, 40, len(erased)), 200, np.uint8)
    augment = augmentation(**PLAIN, erase=0.25, erased=erased)
    changed = [picture for view in range(400) if (picture := augment(image, 0, view)).min() < 200]
    assert 70 < len(changed) < 130
    for picture in changed:
        filled = picture[0] == 9
        assert picture[:, filled].unique(dim=1).flatten().tolist() == list(erased)
        assert filled.sum() == filled.any(1).sum() * filled.any(0).sum()


def opencv_bicubic(old: int, new: int) -> np.ndarray:
    """[new, old]: pixel centres map to pixel centres, Keys' kernel with a = -0.75 is as wide however much smaller it gets, borders repeat."""
    weights, a = np.zeros((new, old)), -0.75
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x = abs(centre - j)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[i, min(max(j, 0), old - 1)] += near if x < 1 else far
    return weights


def test_resizing_is_opencvs_without_antialiasing_and_pils_with_it() -> None:
    image = noise(1, 40)[0][:30]  # 30 × 40, to 20 × 26
    opencv = np.einsum("ih,jw,hwc->cij", opencv_bicubic(30, 20), opencv_bicubic(40, 26), image).clip(0, 255)
    pil = np.asarray(Image.fromarray(image).resize((26, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    for antialias, resized, tolerance in ((False, opencv, 0.51), (True, pil, 1)):  # rounding
        found = augmentation(interpolation="bicubic", antialias=antialias)(image, 3, UNLISTED_VIEWS).numpy()
        assert np.abs(found - resized[:, 2:18, 5:21].astype(float)).max() <= tolerance


def distance(values: np.ndarray, probability: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov and Smirnov's: the largest difference of the values' distribution function to the given one."""
    values = np.sort(values)
    return float(np.abs((np.arange(len(values)) + 0.5) / len(values) - probability(values)).max())


def test_the_crops_of_the_papers_code_are_distributed_as_stated() -> None:
    """Aspects uniform, then exchanged for half of them; areas uniform where any aspect fits, else the largest centred square."""
    low, high = 0.5, 1.5
    crop, image = SwappedCrop(16, (0.01, 0.2), (low, high)), torch.zeros(3, 600, 800)
    torch.manual_seed(0)
    crops = [crop.make_params([image]) for _ in range(5000)]
    top, left, height, width = (np.array([c[key] for c in crops]) for key in ("top", "left", "height", "width"))

    def uniform(x: np.ndarray, low: float = 0, high: float = 1) -> np.ndarray:
        return np.clip((x - low) / (high - low), 0, 1)

    assert distance(width / height, lambda x: (uniform(x, low, high) + 1 - uniform(1 / x, low, high)) / 2) < 0.03
    assert distance(height * width / 480_000, lambda x: uniform(x, 0.01, 0.2)) < 0.03
    assert distance(top / (600 - height), uniform) < 0.03
    assert distance(left / (800 - width), uniform) < 0.03
    square = SwappedCrop(16, (1.0, 1.0), (0.75, 4 / 3)).make_params([torch.zeros(3, 10, 1000)])
    assert square == {"top": 0, "left": 495, "height": 10, "width": 10}
