"""The paper's ImageNet augmentation: random area, aspect, mirror, colour jitter, PCA noise; to test, resize and centre crop.

The result for an image is a function of (index, view) only: the draws come from a generator seeded by the two.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nst.data.views import UNLISTED_VIEWS
from nst.vision import InterpolationMode, transforms, v2

UNAUGMENTED = UNLISTED_VIEWS
"""The view used in evaluation; random views are numbered below it."""

Interpolation = Literal["bilinear", "bicubic"]
AspectSampling = Literal["log_uniform", "uniform_swapped"]
Augment = Literal["trivial", "rand"]

# Eigenvalues and eigenvectors (columns) of the RGB covariance over ImageNet's training images, on the scale 0 … 255: the
# published figures of AlexNet's colour augmentation, as MXNet and others ship them.
_EIGENVALUES = np.array([55.46, 4.794, 1.148])
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
)


@dataclass(frozen=True)
class Augmentation:
    """Pixels of any size → `size` × `size`.

    Args:
        resize: length of the shorter side before the centre crop, in evaluation.
        area: the part of the image that a random crop covers, from … to.
        aspect: its width over its height, from … to.
        jitter: brightness, contrast and saturation change by factors from 1 − jitter to 1 + jitter, in random order.
        pca_noise: standard deviation of the noise along the colours' principal axes.
        flip: mirror half of the images.
        interpolation: how pixels are resized, "bilinear" or "bicubic".
        antialias: smooth before an image becomes smaller, as PIL does; false: take the nearest 2 × 2 (4 × 4) pixels, as
            OpenCV does.
        aspect_sampling: "log_uniform", as torchvision: log(aspect) is uniform; or "uniform_swapped", as the MXNet of the
            paper's code: aspect is uniform, then width and height are exchanged with probability ½.
        augment: after cropping and mirroring, torchvision's TrivialAugmentWide ("trivial", Müller & Hutter, 2021) or RandAugment
            ("rand", two operations of magnitude 9, Cubuk et al., 2020).
        erase: last, with this probability a rectangle is filled with `erased`: torchvision's RandomErasing (Zhong et al., 2020).
        erased: the colour, R, G, B in 0 … 255.

    The paper's code resizes with OpenCV's cubic interpolation: "bicubic", no antialiasing, "uniform_swapped".
    """

    size: int
    resize: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    jitter: float
    pca_noise: float
    flip: bool
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    aspect_sampling: AspectSampling = "log_uniform"
    augment: Augment | None = None
    erase: float = 0.0
    erased: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if not isinstance(self.resize, int) or self.resize < self.size:
            raise ValueError(
                f"data.resize: {self.resize!r}; it must be a whole number of at least data.size={self.size}"
            )
        for key, values, top in (("area", self.area, 1.0), ("aspect", self.aspect, math.inf)):
            if len(values) != 2 or not 0 < values[0] <= values[1] <= top:
                ends = "two positive numbers, the smaller first" + (", at most 1" if top == 1 else "")
                raise ValueError(f"data.{key}: {list(values)}; it must be {ends}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"data.jitter: {self.jitter}; it is from 0 (none) to 1")
        if not 0 <= self.pca_noise < math.inf:
            raise ValueError(f"data.pca_noise: {self.pca_noise}; it must not be negative")
        for key, value in (("flip", self.flip), ("antialias", self.antialias)):
            if not isinstance(value, bool):
                raise ValueError(f"data.{key}: {value!r}; it is true or false")
        for key, value, values in (
            ("interpolation", self.interpolation, get_args(Interpolation)),
            ("aspect_sampling", self.aspect_sampling, get_args(AspectSampling)),
        ):
            if value not in values:
                raise ValueError(f"data.{key}: {value!r}; it is {' or '.join(values)}")
        if self.augment not in (None, *get_args(Augment)):
            raise ValueError(f"data.augment: {self.augment!r}; it is null (none), {' or '.join(get_args(Augment))}")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"data.erase: {self.erase}; it is a probability, 0 (never) to 1")

    @property
    def key(self) -> str:
        """The identity of the augmentation in a manifest: equal keys give the same picture for the same (index, view)."""
        area, aspect = ("to".join(f"{value:.4g}" for value in ends) for ends in (self.area, self.aspect))
        # Only differences from the first version's behaviour are added, so that its manifests stay valid.
        later = "" if self.interpolation == "bilinear" else f"-{self.interpolation}"
        later += "" if self.antialias else "-noantialias"
        later += "" if self.aspect_sampling == "log_uniform" else f"-{self.aspect_sampling}"
        later += "" if self.augment is None else f"-{self.augment}"
        later += f"-erase{self.erase:g}" if self.erase else ""
        return (
            f"size{self.size}-resize{self.resize}-area{area}-aspect{aspect}-jitter{self.jitter:g}-pca{self.pca_noise:g}"
            f"-{'flip' if self.flip else 'noflip'}{later}"
        )

    def __call__(self, pixels: np.ndarray, index: int, view: int) -> Tensor:
        """[H, W, 3] uint8 → [3, size, size] uint8."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)  # channels_last: the fast layout for resizing
        size = [self.size, self.size]
        if view == UNAUGMENTED:
            return transforms.center_crop(self._resize(image, [self.resize]), size)
        draw = np.random.default_rng([index, view])
        top, left, height, width = self._crop(draw, *pixels.shape[:2])
        image = self._resize(transforms.crop(image, top, left, height, width), size)
        if self.flip and draw.random() < 0.5:
            image = transforms.horizontal_flip(image)
        if self.augment is not None:
            image = _seeded(draw, self._augment, image)
        if self.jitter > 0:
            image = self._jitter(draw, image)
        if self.pca_noise > 0:
            noise = _EIGENVECTORS @ (draw.normal(0, self.pca_noise, 3) * _EIGENVALUES)
            shift = torch.from_numpy(noise).float()[:, None, None]
            image = image.float().add_(shift).round_().clamp_(0, 255).to(torch.uint8)
        if self.erase > 0:
            image = _seeded(draw, self._erase, image)
        return image

    @cached_property
    def _augment(self) -> torch.nn.Module:
        kind = v2.TrivialAugmentWide if self.augment == "trivial" else v2.RandAugment
        return kind(interpolation=InterpolationMode.BILINEAR)

    @cached_property
    def _erase(self) -> torch.nn.Module:
        colour = [float(value) for value in self.erased]
        return v2.RandomErasing(self.erase, value=colour)  # pyright: ignore[reportArgumentType]

    def _resize(self, image: Tensor, size: list[int]) -> Tensor:
        """[3, H, W] uint8 → uint8 of that size, or with that shorter side."""
        mode = InterpolationMode(self.interpolation)
        if self.antialias:
            return transforms.resize(image, size, mode, antialias=True)
        # In floats: there a cubic has OpenCV's coefficient of -0.75; on 8-bit pixels torch takes the -0.5 that goes with
        # antialiasing.
        resized = transforms.resize(image.float(), size, mode, antialias=False)
        return resized.round_().clamp_(0, 255).to(torch.uint8)

    def _crop(self, draw: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height, width. Ten tries, then the largest centred crop: of an allowed aspect, as in torchvision, or
        square, as in the paper's code.
        """
        for _ in range(10):
            area = height * width * draw.uniform(*self.area)
            aspect = self._aspect(draw)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1)), h, w
        narrowest, widest = self.aspect if self.aspect_sampling == "log_uniform" else (1.0, 1.0)
        w = max(1, min(width, round(height * widest)))
        h = max(1, min(height, round(width / narrowest)))
        return (height - h) // 2, (width - w) // 2, h, w

    def _aspect(self, draw: np.random.Generator) -> float:
        """Width over height of a crop."""
        if self.aspect_sampling == "log_uniform":
            return math.exp(draw.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
        aspect = draw.uniform(*self.aspect)
        return 1 / aspect if draw.random() < 0.5 else aspect

    def _jitter(self, draw: np.random.Generator, image: Tensor) -> Tensor:
        steps = (transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation)
        factors = draw.uniform(1 - self.jitter, 1 + self.jitter, len(steps))
        for step in draw.permutation(len(steps)):
            image = steps[step](image, float(factors[step]))
        return image


def _seeded(draw: np.random.Generator, transform: torch.nn.Module, image: Tensor) -> Tensor:
    """An image through a transform of torchvision's, which draws from torch's global generator: seeded here, put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(draw.integers(2**63)))
        return transform(image)
