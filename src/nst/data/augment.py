"""Augmentation of photographs by torchvision's transforms: crops, mirroring, colours, erasing; to test, resize and centre crop.

The result for an image is a function of (index, view) only: the transforms draw under a seed made of the two.
"""

from dataclasses import astuple, dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from nst.data.views import UNLISTED_VIEWS, check
from nst.vision import InterpolationMode, v2
from nst.vision import transforms as functional

UNAUGMENTED = UNLISTED_VIEWS
"""The view used in evaluation; random views are numbered below it."""

Interpolation = Literal["bilinear", "bicubic"]
AspectSampling = Literal["log_uniform", "uniform_swapped"]
AutoAugment = Literal["trivial", "rand"]

# Eigenvalues and eigenvectors (columns) of the RGB covariance over ImageNet's training images, on the scale 0 … 255: the
# published figures of AlexNet's colour augmentation, as MXNet and others ship them.
_EIGENVALUES = torch.tensor([55.46, 4.794, 1.148])
_EIGENVECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


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
        aspect_sampling: "log_uniform", as torchvision: log(aspect) is uniform; or "uniform_swapped": see `SwappedCrop`.
        augment: after cropping and mirroring, torchvision's TrivialAugmentWide ("trivial", Müller & Hutter, 2021) or RandAugment
            ("rand", two operations of magnitude 9, Cubuk et al., 2020).
        erase: last, with this probability a rectangle is filled with `erased`: torchvision's RandomErasing (Zhong et al., 2020).
        erased: the colour, 0 … 255 by channel.

    The paper's code resizes with OpenCV's cubic interpolation: "bicubic", no antialiasing, "uniform_swapped".

    Raises:
        ValueError: a value out of range, by the key `data.…`.
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
    augment: AutoAugment | None = None
    erase: float = 0.0
    erased: tuple[float, ...] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check("size", self.size, "a whole number from 1", lambda v: type(v) is int and v >= 1)
        check(
            "resize",
            self.resize,
            f"a whole number from data.size={self.size}",
            lambda v: type(v) is int and v >= self.size,
        )
        check(
            "area",
            self.area,
            "a part of the image, [from, to] in 0 … 1",
            lambda v: 0 < v[0] <= v[1] <= 1 and len(v) == 2,
        )
        check(
            "aspect", self.aspect, "width over height, [from, to]", lambda v: 0 < v[0] <= v[1] < np.inf and len(v) == 2
        )
        check("jitter", self.jitter, "from 0 (none) to 1", lambda v: 0 <= v <= 1)
        check("pca_noise", self.pca_noise, "a standard deviation from 0 (none)", lambda v: 0 <= v < np.inf)
        check("erase", self.erase, "a probability, 0 (never) to 1", lambda v: 0 <= v <= 1)
        for key, value in (("flip", self.flip), ("antialias", self.antialias)):
            check(key, value, "true or false", lambda v: isinstance(v, bool))
        kinds = {"interpolation": Interpolation, "aspect_sampling": AspectSampling, "augment": AutoAugment}
        for key, kind in kinds.items():
            values = (*get_args(kind), None) if key == "augment" else get_args(kind)
            check(key, getattr(self, key), " or ".join(map(str, values)), lambda v, values=values: v in values)
        if self.pca_noise and len(self.erased) != 3:
            raise ValueError(f"data.pca_noise: {self.pca_noise}; it is noise of RGB images, data.channels is not 3")

    @property
    def key(self) -> str:
        """The identity of the augmentation in a manifest: equal keys give the same picture for the same (index, view)."""
        return f"torchvision {' '.join(map(str, astuple(self)))}"

    def __call__(self, pixels: np.ndarray, index: int, view: int) -> Tensor:
        """[H, W, C] uint8 → [C, size, size] uint8. torch's global generator is as before afterwards."""
        if view == UNAUGMENTED:
            return centre_crop(pixels, self.size, self.resize, self.interpolation, self.antialias)
        (seed,) = np.random.SeedSequence([index, view]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            image = channels_last(pixels)
            image = image if self.antialias else image.float()
            image = self._crop.transform(
                image, self._crop.make_params([image])
            )  # a call of it takes half as long again
            image = image if self.antialias else _to_bytes(image)
            if self.flip and torch.rand(()) < 0.5:
                image = image.flip(-1)
            return self._colours(image)

    @cached_property
    def _crop(self) -> v2.RandomResizedCrop:
        kind = v2.RandomResizedCrop if self.aspect_sampling == "log_uniform" else SwappedCrop
        return kind(self.size, self.area, self.aspect, InterpolationMode(self.interpolation), self.antialias)

    @cached_property
    def _colours(self) -> nn.Sequential:
        steps = []
        if self.augment is not None:
            kind = v2.TrivialAugmentWide if self.augment == "trivial" else v2.RandAugment
            steps.append(kind(interpolation=InterpolationMode.BILINEAR))
        if self.jitter:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        if self.pca_noise:
            steps.append(PCANoise(self.pca_noise))
        if self.erase:
            steps.append(v2.RandomErasing(self.erase, value=list(self.erased)))  # pyright: ignore[reportArgumentType]
        return nn.Sequential(*steps)


class SwappedCrop(v2.RandomResizedCrop):
    """Random crops as the MXNet of the paper's code draws them.

    The aspect is uniform in its range, then width and height are exchanged with probability ½. Ten tries, then the largest
    centred square.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Corner and size of the crop of `flat_inputs[0]` [C, H, W]."""
        height, width = flat_inputs[0].shape[-2:]
        for _ in range(10):
            area = height * width * _uniform(*self.scale)
            aspect = _uniform(*self.ratio)
            if torch.rand(()) < 0.5:
                aspect = 1 / aspect
            w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = (int(torch.randint(room + 1, ())) for room in (height - h, width - w))
                return {"top": top, "left": left, "height": h, "width": w}
        side = min(height, width)
        return {"top": (height - side) // 2, "left": (width - side) // 2, "height": side, "width": side}


class PCANoise(nn.Module):
    """A colour is added to the whole image: normal noise of `deviation` times the eigenvalue along each principal axis of RGB."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, image: Tensor) -> Tensor:
        """[3, H, W] uint8 → uint8."""
        noise = _EIGENVECTORS @ (torch.randn(3) * self.deviation * _EIGENVALUES)
        return _to_bytes(image.float().add_(noise[:, None, None]))


def centre_crop(
    pixels: np.ndarray, size: int, resize: int, interpolation: Interpolation = "bilinear", antialias: bool = True
) -> Tensor:
    """As in evaluation: the shorter side becomes `resize`, then the centre is cut out.

    Args:
        pixels: [H, W, C] uint8.

    Returns:
        [C, size, size] uint8.
    """
    image = channels_last(pixels)
    image = image if antialias else image.float()
    image = functional.resize(image, [resize], InterpolationMode(interpolation), antialias=antialias)
    return functional.center_crop(image if antialias else _to_bytes(image), [size, size])


def channels_last(pixels: np.ndarray) -> Tensor:
    """[H, W, C] uint8 → [C, H, W], in memory as before: the fast layout for resizing."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


# Without antialiasing images are resized in floats: there a cubic has OpenCV's coefficient of −0.75, on 8-bit pixels torch takes the
# −0.5 that goes with antialiasing.


def _to_bytes(image: Tensor) -> Tensor:
    return image.round_().clamp_(0, 255).to(torch.uint8)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
