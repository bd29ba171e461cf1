from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from tests.data.samples import noise, write_tree
from torchvision.transforms.v2 import functional as transforms

from nst.data.augment import UNAUGMENTED, Augmentation
from nst.data.encoded_split import EncodedSplit
from nst.data.folder import load_folder

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PAPERS_CODE = {"interpolation": "bicubic", "antialias": False, "aspect_sampling": "uniform_swapped"}


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
    assert torch.equal(augmentation()(image, 3, UNAUGMENTED), expected)


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
    assert augmentation()(image, 0, UNAUGMENTED).shape == (3, 16, 16)


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


def linear(x: float) -> float:
    return max(0.0, 1 - abs(x))


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, OpenCV's."""
    x, a = abs(x), -0.75
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def opencv_weights(old: int, new: int, kernel: Callable[[float], float]) -> np.ndarray:
    """[new, old]: pixel centres map to pixel centres, the kernel is as wide however much smaller it gets, borders repeat."""
    weights = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 2, int(np.floor(centre)) + 4):
            weights[i, min(max(j, 0), old - 1)] += kernel(centre - j)
    return weights


@pytest.mark.parametrize(("interpolation", "kernel"), [("bilinear", linear), ("bicubic", cubic)])
def test_without_antialiasing_resizing_is_opencvs(interpolation: str, kernel: Callable[[float], float]) -> None:
    image = noise(1, 40)[0][:30]  # 30 × 40, to 20 × 26
    augment = augmentation(interpolation=interpolation, antialias=False)
    rows, columns = opencv_weights(30, 20, kernel), opencv_weights(40, 26, kernel)
    resized = np.clip(np.einsum("ih,jw,hwc->cij", rows, columns, image), 0, 255)
    expected = resized[:, 2:18, 5:21]
    assert np.abs(augment(image, 3, UNAUGMENTED).numpy() - expected).max() < 0.51  # rounding
    if interpolation == "bicubic":
        assert resized.min() == 0  # the kernel overshoots: clipped, not wrapped
        assert resized.max() == 255


@pytest.mark.parametrize(
    ("interpolation", "resampling"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_with_antialiasing_resizing_is_pils(interpolation: str, resampling: Image.Resampling) -> None:
    image = noise(1, 60)[0][:40]  # 40 × 60, to 20 × 30
    expected = np.asarray(Image.fromarray(image).resize((30, 20), resampling)).transpose(2, 0, 1)[:, 2:18, 7:23]
    found = augmentation(interpolation=interpolation)(image, 3, UNAUGMENTED).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_crops_are_resized_like_the_test_images() -> None:
    image = noise(1, 60)[0]
    augment = augmentation(**PAPERS_CODE, jitter=0.0, pca_noise=0.0, flip=False)
    draw = np.random.default_rng([4, 7])
    top, left, height, width = augment._crop(draw, 60, 60)
    rows, columns = opencv_weights(height, 16, cubic), opencv_weights(width, 16, cubic)
    crop = image[top : top + height, left : left + width]
    expected = np.clip(np.einsum("ih,jw,hwc->cij", rows, columns, crop), 0, 255)
    assert np.abs(augment(image, 4, 7).numpy() - expected).max() < 0.51


def distance(values: np.ndarray, probability: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov and Smirnov's: the largest difference of the values' distribution function to the given one."""
    values = np.sort(values)
    return float(np.abs((np.arange(len(values)) + 0.5) / len(values) - probability(values)).max())


def test_aspects_are_distributed_as_stated() -> None:
    """Where 95 % of samples of 20,000 are within 0.0096 of the true distribution function; the other one is 0.02 away."""
    low, high = 0.5, 1.5

    def uniform(x: np.ndarray) -> np.ndarray:
        return np.clip((x - low) / (high - low), 0, 1)

    def swapped(x: np.ndarray) -> np.ndarray:
        return (uniform(x) + 1 - uniform(1 / x)) / 2

    def log_uniform(x: np.ndarray) -> np.ndarray:
        return np.clip(np.log(x / low) / np.log(high / low), 0, 1)

    for sampling, probability in (("log_uniform", log_uniform), ("uniform_swapped", swapped)):
        augment, draw = augmentation(aspect=(low, high), aspect_sampling=sampling), np.random.default_rng(0)
        values = np.array([augment._aspect(draw) for _ in range(20_000)])
        assert distance(values, probability) < 0.0096, sampling
        others = [other for other in (uniform, swapped, log_uniform) if other is not probability]
        assert all(distance(values, other) > 0.02 for other in others), sampling


def test_what_no_try_fits_is_the_largest_centred_crop() -> None:
    """Of an image 10 × 1000 no crop of the whole area has an allowed aspect: of aspect 4/3, and a square in the paper's code."""
    whole: dict[str, Any] = {"area": (1.0, 1.0)}
    assert augmentation(**whole)._crop(np.random.default_rng(0), 10, 1000) == (0, 493, 10, 13)
    papers = augmentation(**whole, aspect_sampling="uniform_swapped")
    assert papers._crop(np.random.default_rng(0), 10, 1000) == (0, 495, 10, 10)


def test_key_names_what_differs_from_the_first_version() -> None:
    first = "size16-resize20-area0.08to1-aspect0.75to1.333-jitter0.4-pca0.1-flip"
    assert augmentation().key == first
    assert augmentation(**PAPERS_CODE).key == f"{first}-bicubic-noantialias-uniform_swapped"
    assert len({augmentation(**{key: value}).key for key, value in PAPERS_CODE.items()} - {first}) == 3


def test_data_settings_reach_the_augmentation(tmp_path: Path) -> None:
    """By the shipped files with their defaults, and by files of one's own that lack the new keys."""
    write_tree(tmp_path)
    for name in ("imagenet", "folder"):
        settings = OmegaConf.load(CONFIGS / "data" / f"{name}.yaml")
        assert {key: settings[key] for key in PAPERS_CODE} == {key: getattr(augmentation(), key) for key in PAPERS_CODE}
        settings = OmegaConf.merge(settings, {"root": str(tmp_path), "num_classes": 3})
        changed = instantiate(OmegaConf.merge(settings, PAPERS_CODE)).train
        assert isinstance(changed, EncodedSplit)
        assert {key: getattr(changed.augmentation, key) for key in PAPERS_CODE} == PAPERS_CODE
        older = {str(key): value for key, value in settings.items() if key not in (*PAPERS_CODE, "_target_")}
        kept = load_folder(**older).train
        assert isinstance(kept, EncodedSplit)
        assert kept.augmentation == instantiate(settings).train.augmentation


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
        ({"interpolation": "cubic"}, "interpolation"),
        ({"antialias": "no"}, "antialias"),
        ({"aspect_sampling": "uniform"}, "aspect_sampling"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"data.{key}"):
        augmentation(**changes)
