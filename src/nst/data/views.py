"""A view (augmentation) of an image is a number, and the view in an epoch is a function of (seed, epoch, index)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

UNLISTED_VIEWS = 2**63 - 1
"""The number of view numbers if the views of an image cannot be enumerated (random-sized crops)."""

_SUBSET_SEED = 0x5EED  # the views in a cache do not depend on the seed of a run


@dataclass(frozen=True)
class ViewScheme:
    """Crops of `size` from an image padded by `pad` on each side, mirrored or not.

    The border is zero ("constant") or the image mirrored at its edge without repeating it ("reflect").

    view = (dy · (2·pad + 1) + dx) · (2 if flip else 1) + mirrored, with dy and dx the crop's corner in the padded image.
    """

    size: int
    pad: int
    flip: bool
    padding_mode: str = "constant"

    def __post_init__(self) -> None:
        if not isinstance(self.pad, int) or not 0 <= self.pad <= 63:
            raise ValueError(f"data.pad: {self.pad!r}; it is from 0 (no crops) to 63 pixels")
        if not isinstance(self.flip, bool):
            raise ValueError(f"data.flip: {self.flip!r}; it is true or false")
        if self.padding_mode not in ("constant", "reflect"):
            raise ValueError(f"data.padding_mode: {self.padding_mode!r}; it is constant (zeros) or reflect")
        if self.padding_mode == "reflect" and self.pad >= self.size:
            raise ValueError(f"data.pad: {self.pad}; reflect padding needs fewer pixels than data.size={self.size}")

    @property
    def offsets(self) -> int:
        """Positions of the crop along one axis."""
        return 2 * self.pad + 1

    @property
    def num_views(self) -> int:
        return self.offsets**2 * (2 if self.flip else 1)

    @property
    def unaugmented(self) -> int:
        """The view that is the image itself."""
        return (self.pad * self.offsets + self.pad) * (2 if self.flip else 1)

    @property
    def key(self) -> str:
        """The identity of the scheme in a manifest: equal keys number the same views."""
        border = "reflect" if self.padding_mode == "reflect" else ""
        return f"size{self.size}-{border}pad{self.pad}-{'flip' if self.flip else 'noflip'}"

    def padded(self, images: Tensor) -> Tensor:
        """Images [n, C, size, size] with their border: [n, C, size + 2·pad, size + 2·pad]."""
        if self.padding_mode == "constant":
            return nn.functional.pad(images, (self.pad,) * 4)
        last = self.size - 1
        place = torch.arange(-self.pad, self.size + self.pad, device=images.device).abs()
        place = last - (last - place).abs()  # torch's own reflect padding takes no uint8
        return images.index_select(2, place).index_select(3, place)

    def decode(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View numbers [B] → dy [B], dx [B] (int64, 0 … 2·pad), mirrored [B] (bool)."""
        sides = 2 if self.flip else 1
        place = views // sides
        return place // self.offsets, place % self.offsets, views % sides == 1


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch shows n images: a permutation, [n] int64."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 0]).permutation(n))


def epoch_views(n: int, seed: int, epoch: int, num_views: int) -> Tensor:
    """The view that an epoch shows of each of n images, by index: [n] int64 in [0, num_views)."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 1]).integers(0, num_views, n))


def epoch_slots(n: int, seed: int, epoch: int, k: int) -> Tensor:
    """Which of its k views each of n images has in an epoch: [n] int64 in [0, k).

    k epochs show each view once: an image starts at a random one and cycles.
    """
    start = torch.from_numpy(np.random.default_rng([seed, 0, 1]).integers(0, k, n))
    return (start + epoch) % k


@dataclass(frozen=True)
class Mixture:
    """How images are mixed with their partners."""

    share: Tensor  # [n] float32 in 0 … 1: λ, the weight of the image itself
    boxed: Tensor  # [n] bool: a box is replaced; else all is averaged
    centre: Tensor  # [n, 2] float32 in 0 … 1: of the box, by rows and columns

    def of(self, indices: Tensor) -> "Mixture":
        """That of some images."""
        return Mixture(self.share[indices], self.boxed[indices], self.centre[indices])

    def boxes(self, height: int, width: int) -> list[Tensor]:
        """Top, bottom, left, right [n] int64: a box of 1 − λ of the area, clipped at the border."""
        side, sides = (1 - self.share).sqrt(), []
        for axis, size in enumerate((height, width)):
            middle, half = self.centre[:, axis] * size, side * size / 2
            sides += [(middle + reach).round().clamp(0, size).long() for reach in (-half, half)]
        return sides

    def shares(self, height: int, width: int) -> Tensor:
        """[n] float32: λ for an image of this size, corrected where a box is clipped at the border."""
        top, bottom, left, right = self.boxes(height, width)
        kept = 1 - (bottom - top) * (right - left) / (height * width)
        return torch.where(self.boxed, kept, self.share)


def epoch_mixture(n: int, seed: int, epoch: int, mixup: float, cutmix: float) -> Mixture:
    """The mixing of each of n images in an epoch, by index: λ from Beta(α, α) with the α of mixup or cutmix (0: off)."""
    draw = np.random.default_rng([seed, epoch, 2])
    boxed = draw.random(n) < (0.5 if mixup and cutmix else float(cutmix > 0))
    share = np.where(boxed, draw.beta(cutmix or 1, cutmix or 1, n), draw.beta(mixup or 1, mixup or 1, n))
    centre = draw.random((n, 2), dtype=np.float32)
    return Mixture(torch.from_numpy(share).float(), torch.from_numpy(boxed), torch.from_numpy(centre))


def view_subset(n: int, k: int, num_views: int) -> Tensor:
    """k distinct views for each of n images, ascending: [n, k] int16.

    They do not depend on a seed, the views for k are among those for k + 1, and k = num_views gives 0 … num_views − 1.

    Raises:
        ValueError: k is not in 1 … num_views.
    """
    if not 1 <= k <= num_views:
        raise ValueError(f"views per image: {k}; this data set has 1 to {num_views}")
    rows = np.tile(np.arange(num_views, dtype=np.int16), (n, 1))
    np.random.default_rng(_SUBSET_SEED).permuted(rows, axis=1, out=rows)
    return torch.from_numpy(np.sort(rows[:, :k], axis=1))
