"""A view (augmentation) of an image is a number, and the view in an epoch is a function of (seed, epoch, index)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

UNLISTED_VIEWS = 2**63 - 1
"""The number of view numbers if the views of an image cannot be enumerated (random-sized crops)."""

_SUBSET_SEED = 0x5EED  # the views in a cache do not depend on the seed of a run


def check(key: str, value: Any, right: str, holds: Callable[[Any], bool]) -> None:
    """Raises ValueError for the setting `data.<key>` unless the value holds; one of another type, which cannot be tested, does not."""
    try:
        good = holds(value)
    except (AttributeError, LookupError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"data.{key}: {value!r}; it must be {right}")


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
        check("pad", self.pad, "from 0 (no crops) to 63 pixels", lambda v: type(v) is int and 0 <= v <= 63)
        check("flip", self.flip, "true or false", lambda v: isinstance(v, bool))
        modes = ("constant", "reflect")
        check("padding_mode", self.padding_mode, "constant (zeros) or reflect", lambda v: v in modes)
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
