"""Augmentation of photographs: torchvision's transforms as a function of (index, view), and what is not torchvision's."""

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
    for shape in ((10, 1000, 3), (1000, 10, 3), (1, 1, 3)):
        for view in (0, 1, UNLISTED_VIEWS):
            picture = augment(np.zeros(shape, np.uint8), 0, view)
            assert (picture.shape, picture.dtype) == ((3, 16, 16), torch.uint8)
    if kind != PAPERS_CODE:
        expected = transforms.center_crop(transforms.resize(torch.from_numpy(image).permute(2, 0, 1), [20]), [16, 16])
        assert torch.equal(augment(image, 3, UNLISTED_VIEWS), expected)


def test_mirror_jitter_and_noise_change_as_much_as_the_settings_say() -> None:
    image, grey = noise(1, 16)[0], np.full((16, 16, 3), 100, np.uint8)
    plain = torch.from_numpy(image).permute(2, 0, 1)
    still, mirrors = (augmentation(**WHOLE, jitter=0.0, pca_noise=0.0, flip=flip) for flip in (False, True))
    assert torch.equal(still(image, 0, 1), plain)
    assert 70 < sum(torch.equal(mirrors(image, 0, view), plain.flip(2)) for view in range(200)) < 130
    bright = [augmentation(**WHOLE, pca_noise=0.0)(grey, 0, view).float().mean().item() for view in range(200)]
    assert (min(bright), max(bright)) == pytest.approx((60, 140), abs=5)  # torchvision rounds down at each step
    red = torch.stack([augmentation(**WHOLE, jitter=0.0)(grey, 0, view)[0, 0, 0].float() for view in range(800)])
    # standard deviation of channel c: 0.1 · sqrt(Σ_k (vector_ck · value_k)²)
    expected = 0.1 * ((-0.5675 * 55.46) ** 2 + (0.7192 * 4.794) ** 2 + (0.4009 * 1.148) ** 2) ** 0.5
    assert red.std().item() == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("erased", [(9.0, 8.0, 7.0), (9.0,)])
def test_a_rectangle_is_filled_with_the_colour_as_often_as_the_settings_say(erased: tuple[float, ...]) -> None:
    image = np.full((40, 40, len(erased)), 200, np.uint8)
    augment = augmentation(jitter=0.0, pca_noise=0.0, erase=0.25, erased=erased)
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


def test_the_crops_of_the_papers_code() -> None:
    """Aspects uniform, then exchanged for half of them; areas uniform where any aspect fits, else the largest centred square."""
    crop, image = SwappedCrop(16, (0.01, 0.2), (0.5, 1.5)), torch.zeros(3, 600, 800)
    torch.manual_seed(0)
    crops = [crop.make_params([image]) for _ in range(2000)]
    area, aspect = (np.array([f(c["height"], c["width"]) for c in crops]) for f in (np.multiply, np.true_divide))
    assert np.percentile(area / 480_000, (0, 50, 100)) == pytest.approx((0.01, 0.105, 0.2), abs=0.008)
    assert (aspect.min(), (aspect < 1).mean(), aspect.max()) == pytest.approx((0.5, 0.5, 2), abs=0.04)
    square = SwappedCrop(16, (1.0, 1.0), (0.75, 4 / 3)).make_params([torch.zeros(3, 10, 1000)])
    assert square == {"top": 0, "left": 495, "height": 10, "width": 10}
