"""Augmentation of photographs by torchvision's transforms, which draw under a seed made of (index, view)."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nst.data.batch import UNLISTED_VIEWS, AugmentationSettings, check
from nst.vision import InterpolationMode, transforms as functional, v2

# Eigenvalues and eigenvectors (columns) of the RGB covariance over ImageNet's training images, on the scale 0 … 255: the
# published figures of AlexNet's colour augmentation, as MXNet and others ship them.
_EIGENVALUES = torch.tensor([55.46, 4.794, 1.148])
_EIGENVECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


@dataclass(kw_only=True, eq=False)
class Augmentation(AugmentationSettings):
    """Pixels of any size → `size` × `size`. Raises ValueError for a value out of range, by the key `data.…`.

    The paper's code resizes with OpenCV's cubic interpolation: "bicubic", no antialiasing, "uniform_swapped".
    """

    size: int
    erased: tuple[float, ...] = (0.0, 0.0, 0.0)  # with this colour rectangles are filled, 0 … 255 by channel

    def __post_init__(self) -> None:
        self.resize = self.size if self.resize is None else self.resize
        check(self, resize=range(self.size, 2**31), pca_noise=[0, 1e6], jitter=[0, 1], erase=[0, 1])
        check(self, 2, area=[1e-6, 1], aspect=[1e-6, 1e6])
        if self.area[0] > self.area[1] or self.aspect[0] > self.aspect[1]:
            raise ValueError(f"data.area: {self.area}, data.aspect: {self.aspect}; they must be [from, to]")
        self.area, self.aspect = ((low, high) for low, high in (self.area, self.aspect))  # YAML has lists
        check(self, flip=(True, False), antialias=(True, False), interpolation=("bilinear", "bicubic"))
        check(self, aspect_sampling=("log_uniform", "uniform_swapped"), augment=("trivial", "rand", None))
        if self.pca_noise and len(self.erased) != 3:
            raise ValueError(f"data.pca_noise: {self.pca_noise}; it must be 0 for images that are not RGB")

    @property
    def key(self) -> str:
        """The identity of the augmentation in a manifest: equal keys give the same picture for the same (index, view)."""
        values = (self.size, *(getattr(self, f.name) for f in fields(AugmentationSettings)), self.erased)
        return f"torchvision {' '.join(map(str, values))}"

    def __call__(self, pixels: np.ndarray, index: int, view: int) -> Tensor:
        """[H, W, C] uint8 → [C, size, size] uint8. torch's global generator is as before afterwards."""
        if view == UNLISTED_VIEWS:
            return centre_crop(pixels, self.size, self.resize or self.size, self.interpolation, self.antialias)
        (seed,) = np.random.SeedSequence([index, view]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            image = _resizable(pixels, self.antialias)
            crop = self._crop.make_params([image])
            image = _to_bytes(self._crop.transform(image, crop))  # a call of it takes half as long again
            if self.flip and torch.rand(()) < 0.5:
                image = image.flip(-1)
            for step in self._colours:
                image = step(image)
            return image

    @cached_property
    def _crop(self) -> v2.RandomResizedCrop:
        kind = v2.RandomResizedCrop if self.aspect_sampling == "log_uniform" else SwappedCrop
        return kind(self.size, self.area, self.aspect, InterpolationMode(self.interpolation), self.antialias)

    @cached_property
    def _colours(self) -> list[Callable[[Tensor], Tensor]]:
        automatic = v2.TrivialAugmentWide if self.augment == "trivial" else v2.RandAugment
        steps = {
            automatic(interpolation=InterpolationMode.BILINEAR): self.augment,
            v2.ColorJitter(self.jitter, self.jitter, self.jitter): self.jitter,
            self._with_pca_noise: self.pca_noise,
            v2.RandomErasing(self.erase, value=list(self.erased)): self.erase,  # pyright: ignore[reportArgumentType]
        }
        return [step for step, used in steps.items() if used]

    def _with_pca_noise(self, image: Tensor) -> Tensor:
        """[3, H, W] uint8 and one colour: normal noise of `pca_noise` times the eigenvalue along each principal axis of RGB."""
        noise = _EIGENVECTORS @ (torch.randn(3) * self.pca_noise * _EIGENVALUES)
        return _to_bytes(image.float().add_(noise[:, None, None]))


class SwappedCrop(v2.RandomResizedCrop):
    """Random crops as the MXNet of the paper's code draws them: aspects uniform, then width and height exchanged for half of them."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Corner and size of the crop of `flat_inputs[0]` [C, H, W]."""
        height, width = flat_inputs[0].shape[-2:]
        for _ in range(10):
            area, aspect = (float(torch.empty(()).uniform_(*ends)) for ends in (self.scale, self.ratio))
            area *= height * width
            if torch.rand(()) < 0.5:
                aspect = 1 / aspect
            w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = (int(torch.randint(room + 1, ())) for room in (height - h, width - w))
                return {"top": top, "left": left, "height": h, "width": w}
        side = min(height, width)  # after ten tries, the largest centred square
        return {"top": (height - side) // 2, "left": (width - side) // 2, "height": side, "width": side}


def centre_crop(pixels: np.ndarray, size: int, resize: int, interpolation: str, antialias: bool) -> Tensor:
    """As in evaluation: the shorter side of [H, W, C] uint8 becomes `resize`, then the centre is cut out: [C, size, size] uint8."""
    image = _resizable(pixels, antialias)
    image = functional.resize(image, [resize], InterpolationMode(interpolation), antialias=antialias)
    return functional.center_crop(_to_bytes(image), [size, size])


def _resizable(pixels: np.ndarray, antialias: bool) -> Tensor:
    """[H, W, C] uint8 → [C, H, W]; as floats, without antialiasing, a cubic has OpenCV's coefficient of −0.75 instead of −0.5."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)  # in memory as before, which resizes fast
    return image if antialias else image.float()


def _to_bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else image.round_().clamp_(0, 255).to(torch.uint8)
