"""Which images a training step has, in which views and how they are mixed: functions of (seed, epoch, index), decided here alone."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

UNLISTED_VIEWS = 2**63 - 1
"""Where views cannot be enumerated (random-sized crops): random ones are numbered below it, the unaugmented one is it."""


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
        mixture = [v.to(self.device) for v in epoch_mixture(self.num_images, self.seed, epoch, self.mixup, self.cutmix)]
        parts, wider = list(self.parts(first_step)), []
        for part in parts:  # with the partners of its first and last image, which may be another rank's
            start = part.start // self.batch_size * self.batch_size
            end = min(part.stop + (part.stop - start) % 2, start + self.batch_size, self.num_images)
            wider.append(slice(part.start - (part.start - start) % 2, end))
        for part, wide, batch in zip(parts, wider, self.batches(*self.plan(epoch), wider), strict=True):
            places = torch.arange(len(batch.labels), device=batch.labels.device)
            partners = (places ^ 1).where(places ^ 1 < len(places), places)
            images, share = mixed(batch.images, partners, *(values[batch.indices] for values in mixture))
            own = F.one_hot(batch.labels, self.num_classes)
            labels = share[:, None] * own + (1 - share[:, None]) * own[partners]
            inside = slice(part.start - wide.start, part.stop - wide.start)
            yield Batch(*(values[inside] for values in batch._replace(images=images, labels=labels)))


def epoch_mixture(n: int, seed: int, epoch: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor, Tensor]:
    """By index, each image's own weight λ [n] float32, whether a box is replaced [n] bool (else all is averaged), and the box's centre
    [n, 2] on the scale 0 … 1.
    """
    draw = np.random.default_rng([seed, epoch, 2])
    boxed = draw.random(n) < (0.5 if mixup and cutmix else float(cutmix > 0))
    share = np.where(boxed, draw.beta(cutmix or 1, cutmix or 1, n), draw.beta(mixup or 1, mixup or 1, n))
    centre = draw.random((n, 2), dtype=np.float32)
    return torch.from_numpy(share).float(), torch.from_numpy(boxed), torch.from_numpy(centre)


def mixed(images: Tensor, partners: Tensor, share: Tensor, boxed: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] mixed as `epoch_mixture` says; and λ of each [B], corrected where a box is clipped at the border."""
    outside, area = [], 1
    for axis, size in enumerate(images.shape[2:]):
        middle, half = centre[:, axis] * size, (1 - share).sqrt() * size / 2
        low, high = ((middle + reach).round().clamp(0, size).long()[:, None] for reach in (-half, half))
        place = torch.arange(size, device=images.device)
        outside.append((place < low) | (place >= high))  # [B, size]
        area = area * (high - low)[:, 0]
    kept = outside[0][:, None, :, None] | outside[1][:, None, None, :]
    weight = torch.where(boxed[:, None, None, None], kept, share[:, None, None, None])
    images = torch.lerp(images.index_select(0, partners), images, weight, out=torch.empty_like(images))
    return images, torch.where(boxed, 1 - area / (images.shape[2] * images.shape[3]), share)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(a, b), each [C] float32, with a · pixel + b = (pixel / 255 − mean) / std for uint8 pixels."""
    mean64, std64 = torch.tensor(list(mean), dtype=torch.float64), torch.tensor(list(std), dtype=torch.float64)
    return (1 / (255 * std64)).float(), (-mean64 / std64).float()


@dataclass(kw_only=True, eq=False)
class AugmentationSettings:
    """How photographs are augmented, by `nst.data.augment`."""

    resize: int | None = None  # the shorter side before the centre crop, in evaluation; None: `size`
    area: tuple[float, float] = (0.08, 1.0)  # the part of the image that a random crop covers, from … to
    aspect: tuple[float, float] = (0.75, 1.3333)  # its width over its height, from … to
    jitter: float = 0.0  # brightness, contrast, saturation: factors from 1 − jitter to 1 + jitter, in random order
    pca_noise: float = 0.0  # standard deviation of the noise along the colours' principal axes
    flip: bool = True  # mirror half of the images
    interpolation: str = "bilinear"
    antialias: bool = True  # smooth before shrinking, as PIL; false: take the nearest 2 × 2 (4 × 4) pixels, as OpenCV
    aspect_sampling: str = "log_uniform"  # log(aspect) is uniform, as in torchvision; else as `SwappedCrop`
    augment: str | None = None  # "trivial" (Müller & Hutter, 2021) or "rand" (Cubuk et al., 2020), after mirroring
    erase: float = 0.0  # last, with this probability, fill a rectangle: RandomErasing (Zhong et al., 2020)


def check(settings: Any, count: int = 0, /, **allowed: tuple[Any, ...] | range | list[float]) -> None:
    """Raises ValueError unless these attributes of `settings`, which are keys of `data`, are as allowed.

    That is one of a tuple, of a range of whole numbers, or a number in [least, most]; where `count` is not 0, a list of so many of them.
    """
    for key, right in allowed.items():
        value = getattr(settings, key)
        values = value if isinstance(value, list | tuple) else [value]
        if isinstance(right, tuple):
            good = [any(v == one and type(v) is type(one) for one in right) for v in values]
            said = " or ".join("null" if one is None else str(one).lower() for one in right)
        else:
            whole = isinstance(right, range)
            kind, (least, most) = (int, (right.start, right.stop - 1)) if whole else (int | float, right)
            good = [isinstance(v, kind) and not isinstance(v, bool) and least <= v <= most for v in values]
            said = f"{count or 'a'} {'whole ' * whole}number{'s' * (count > 1)} from {least} to {most}"
        if isinstance(value, list | tuple) != bool(count) or len(values) != (count or 1) or not all(good):
            raise ValueError(f"data.{key}: {value!r}; it must be {said}")


def counted(items: Iterable[Any], what: str, total: int, unit: str = " images") -> Iterator[Any]:
    """Batches, or anything with a length, of a long pass before training; its progress on stderr of the first rank."""
    terminal, hidden = sys.stderr.isatty(), os.environ.get("RANK", "0") != "0"
    often = 0.1 if terminal else 30  # seconds: in a file a line every half minute
    with tqdm(None, what, total, not terminal, mininterval=often, disable=hidden, unit=unit, delay=2) as progress:
        for item in items:
            progress.update(len(item.labels if isinstance(item, Batch) else item))
            yield item
