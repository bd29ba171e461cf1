"""Which images a training step has, in which views and how they are mixed: functions of (seed, epoch, index), decided here alone."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

UNLISTED_VIEWS = 2**63 - 1
"""Where views cannot be enumerated (random-sized crops): random ones are numbered below it, the unaugmented one is it."""

T = TypeVar("T", bound=Sized)


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: Tensor  # [B, C, H, W] float32, normalised, on the device
    labels: Tensor  # [B] int64; of mixed images [B, classes] float32, probabilities
    indices: Tensor  # [B] int64, position of the image in its split: the stable key of the image
    views: Tensor  # [B] int64, number of the image's view; in evaluation the unaugmented one


Stream = Callable[[Tensor, Tensor, list[slice]], Iterator[Tensor]]
"""Order and views of an epoch, both [n] int64 on the device, and parts of these → normalised images of each part."""


class Split(ABC):
    """The images of one part of a data set: training, validation or test."""

    labels: Tensor  # [n] int64, on the CPU; −1: not labelled
    mean: Sequence[float]  # of the C channels, on the scale 0 … 1
    std: Sequence[float]
    num_views: int | None  # of an image; None: they cannot be enumerated
    unaugmented: int  # the view used in evaluation
    view_key: str  # for a manifest: equal keys number the same views

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of the images and labels, hex."""

    @abstractmethod
    def view_subset(self, k: int) -> Tensor:
        """[n, k]: the views of each image in a cache with k of them, the same for every seed; those for k are among those for k + 1."""

    @abstractmethod
    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """Normalised images [B, C, H, W] float32 for any (index, view) pairs, on the device of `indices`."""

    def stream(self, loader: "Loader") -> Stream:
        """What renders the epochs of a loader."""
        layout = loader.channels_last
        return lambda order, views, parts: (self.render(order[part], views[part], layout) for part in parts)

    def loader(self, batch_size: int, *, train: bool, **settings: Any) -> "Loader":
        """One rank's loader of this split; the settings are those of `Loader`."""
        return Loader(self, batch_size, train, **settings)


@dataclass(eq=False)
class Loader:
    """One rank's loader of a split.

    Rank r takes the r-th contiguous part of every global batch, so all ranks together have the batch of one process. The
    last batch is split as evenly as its size allows (it may be empty on some ranks); no image is dropped or doubled.
    """

    split: Split
    batch_size: int  # global, over all ranks
    train: bool  # shuffle and draw views by (seed, epoch); else every image in order, unaugmented
    seed: int = 0
    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"
    channels_last: bool = False
    views: Tensor | None = None  # [n, K] of `view_subset(K)`: each image in these only; K epochs show each once
    workers: int = 0  # processes that decode images, where there are any to decode

    def __post_init__(self) -> None:
        self.num_images = len(self.split)  # in the whole split
        self.steps = -(-self.num_images // self.batch_size)  # of an epoch, the same on every rank
        self.labels = self.split.labels.to(self.device)
        self.stream = self.split.stream(self)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The epoch's images in order and the view of each: two [n] int64 tensors."""
        n = self.num_images
        if not self.train:
            return torch.arange(n), torch.full((n,), self.split.unaugmented)
        order = torch.from_numpy(np.random.default_rng([self.seed, epoch, 0]).permutation(n))
        if self.views is None:
            draw = np.random.default_rng([self.seed, epoch, 1])
            views = torch.from_numpy(draw.integers(0, self.split.num_views or UNLISTED_VIEWS, n))
        else:  # an image starts at a random one of its views and cycles
            count = self.views.shape[1]
            start = torch.from_numpy(np.random.default_rng([self.seed, 0, 1]).integers(0, count, n))
            views = self.views.gather(1, ((start + epoch) % count)[:, None])[:, 0].long()
        return order, views[order]

    def parts(self, first_step: int = 0) -> Iterator[slice]:
        """The positions of this rank's images in the plan, step by step from `first_step` on."""
        for start in range(first_step * self.batch_size, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            yield slice(start + size * self.rank // self.world, start + size * (self.rank + 1) // self.world)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of the epoch, from `first_step` on. Steps skipped cost nothing."""
        return self.batches(*self.plan(epoch), self.parts(first_step))

    def batches(self, order: Tensor, views: Tensor, parts: Iterable[slice]) -> Iterator[Batch]:
        """The images `order` in the views `views`, both [n] int64: a batch for each part of these."""
        parts, device = list(parts), self.labels.device
        order, views = order.to(device), views.to(device)  # one copy an epoch
        images = self.stream(order, views, parts)
        for part, pixels in zip(parts, images, strict=True):
            indices = order[part]
            yield Batch(pixels, self.labels[indices], indices, views[part])


@dataclass(eq=False)
class MixingLoader(Loader):
    """A loader whose training batches are mixed: mixup (Zhang et al., 2018), cutmix (Yun et al., 2019), or one of both.

    Images 2j and 2j + 1 of each global batch are partners, so that an image is rarely fetched from another rank's part; of an odd
    number, the last one stays unmixed. Each image has its own λ from Beta(α, α): mixup gives λ · image + (1 − λ) · partner,
    cutmix the image with a box of the partner that covers 1 − λ of it, clipped at the border. Labels become [B, classes]
    probabilities with these weights. With both, each image gets one of them with probability ½.
    """

    num_classes: int = 0
    mixup: float = 0.0  # α; 0: off
    cutmix: float = 0.0

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """As of `Loader`, mixed."""
        order, views = self.plan(epoch)
        mixture = epoch_mixture(self.num_images, self.seed, epoch, self.mixup, self.cutmix)
        for part, batch in zip(self.parts(first_step), super().epoch(epoch, first_step), strict=True):
            device = batch.images.device
            start, places = part.start // self.batch_size * self.batch_size, torch.arange(part.start, part.stop)
            partners = start + ((places - start) ^ 1)
            partners = partners.where(partners < min(start + self.batch_size, self.num_images), places)
            # the partners are in the batch itself, except for one or two in another rank's part
            inside = (partners >= part.start) & (partners < part.stop)
            others = batch.images.index_select(0, torch.where(inside, partners - part.start, 0).to(device))
            if not bool(inside.all()):
                outside = partners[~inside]
                fetched = self.split.render(order[outside].to(device), views[outside].to(device), self.channels_last)
                others.index_copy_(0, (~inside).nonzero()[:, 0].to(device), fetched)
            images, share = mixed(batch.images, others, *(values[order[part]].to(device) for values in mixture))
            own = F.one_hot(batch.labels, self.num_classes)
            other = F.one_hot(self.labels[order[partners].to(device)], self.num_classes)
            yield batch._replace(images=images, labels=share[:, None] * own + (1 - share[:, None]) * other)


def epoch_mixture(n: int, seed: int, epoch: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor, Tensor]:
    """How each image is mixed in an epoch, by index.

    Its own weight λ [n] float32; whether a box is replaced, else all is averaged [n] bool; the box's centre [n, 2] on the scale 0 … 1.
    """
    draw = np.random.default_rng([seed, epoch, 2])
    boxed = draw.random(n) < (0.5 if mixup and cutmix else float(cutmix > 0))
    share = np.where(boxed, draw.beta(cutmix or 1, cutmix or 1, n), draw.beta(mixup or 1, mixup or 1, n))
    centre = draw.random((n, 2), dtype=np.float32)
    return torch.from_numpy(share).float(), torch.from_numpy(boxed), torch.from_numpy(centre)


def mixed(images: Tensor, others: Tensor, share: Tensor, boxed: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] mixed with `others`, as `epoch_mixture` says; and the weight of each in its mixture, [B] float32.

    That is λ, corrected where a box is clipped at the border.
    """
    inside, area, sizes = [], torch.ones((), dtype=torch.int64, device=images.device), images.shape[2:]
    for axis, size in enumerate(sizes):
        middle, half = centre[:, axis] * size, (1 - share).sqrt() * size / 2
        low, high = ((middle + reach).round().clamp(0, size).long()[:, None] for reach in (-half, half))
        place = torch.arange(size, device=images.device)
        inside.append((place >= low) & (place < high))  # [B, size]
        area = area * (high - low)[:, 0]
    kept = ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
    weight = torch.where(boxed[:, None, None, None], kept, share[:, None, None, None])
    images = torch.lerp(others, images, weight, out=torch.empty_like(images))
    return images, torch.where(boxed, 1 - area / (sizes[0] * sizes[1]), share)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(a, b), each [C] float32, with a · pixel + b = (pixel / 255 − mean) / std for uint8 pixels."""
    mean64, std64 = torch.tensor(list(mean), dtype=torch.float64), torch.tensor(list(std), dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()


def check(
    settings: Any, key: str, right: type | tuple[Any, ...], least: float = -inf, most: float = inf, count: int = 0
) -> None:
    """Raises ValueError unless `settings.<key>`, which is `data.<key>`, is right.

    Args:
        right: the values allowed; or int or float: a finite number from `least` to `most`, or a list of `count` of them.
    """
    value = getattr(settings, key)
    if isinstance(right, tuple):
        good = any(value == one and type(value) is type(one) for one in right)
        said = " or ".join("null" if one is None else str(one).lower() for one in right)
    else:
        values = value if count else [value]
        good = isinstance(values, list | tuple) and len(values) == (count or 1)
        good = good and all(isinstance(v, int | right) and not isinstance(v, bool) and abs(v) < inf for v in values)
        good = good and all(least <= v <= most for v in values)
        said = (
            f"{count or 'a'} {'whole ' if right is int else ''}number{'s' if count > 1 else ''} from {least} to {most}"
        )
    if not good:
        raise ValueError(f"data.{key}: {value!r}; it must be {said}")


def counted(items: Iterable[T], what: str, total: int, unit: str = " images") -> Iterator[T]:
    """Batches, or anything with a length, of a long pass before training; its progress on stderr of the first rank."""
    terminal, hidden = sys.stderr.isatty(), os.environ.get("RANK", "0") != "0"
    often = 0.1 if terminal else 30  # seconds: in a file a line every half minute
    bar = tqdm(total=total, desc=what, unit=unit, delay=2, leave=not terminal, disable=hidden, mininterval=often)
    with bar as progress:
        for item in items:
            progress.update(len(item.labels if isinstance(item, Batch) else item))
            yield item
