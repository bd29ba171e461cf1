"""What a training step takes from the data: batches, the loaders that yield them, and the splits that loaders are made of.

Which images a step has, and in which views, is decided here alone: order and views are functions of (seed, epoch, index).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from nst.data.views import UNLISTED_VIEWS, epoch_order, epoch_slots, epoch_views


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: Tensor  # [B, C, H, W] float32, normalised, on the device
    labels: Tensor  # [B] int64; of mixed images [B, classes] float32, probabilities
    indices: Tensor  # [B] int64, position of the image in its split: the stable key of the image
    views: Tensor  # [B] int64, number of the image's view; in evaluation the unaugmented one


Stream = Callable[[Tensor, Tensor, Sequence[slice]], Iterator[Tensor]]
"""Order and views of an epoch, both [n] int64, and parts of these → normalised images of each part."""


@dataclass(frozen=True)
class Schedule:
    """The steps of one rank over `num_images` images.

    Rank r takes the r-th contiguous part of every global batch, so all ranks together have the batch of one process. The
    last batch is split as evenly as its size allows; no image is dropped or doubled.

    With `subset` ([n, K] view numbers) K epochs show each of an image's K views once.

    Raises:
        ValueError: a batch size, rank or seed that cannot be, or views for another number of images.
    """

    num_images: int
    batch_size: int  # global
    train: bool
    seed: int
    rank: int
    world: int
    num_views: int | None  # None: cannot be enumerated
    unaugmented: int
    subset: Tensor | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch size: {self.batch_size}; it must be at least 1")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world}: a rank is from 0 to {self.world - 1}")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed}; it must not be negative")
        if self.subset is not None and len(self.subset) != self.num_images:
            raise ValueError(f"views for {len(self.subset)} images were given, the split has {self.num_images}")

    @property
    def steps(self) -> int:
        return -(-self.num_images // self.batch_size)

    def plan(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The epoch's images in order and the view of each: two [n] int64 tensors."""
        n = self.num_images
        if not self.train:
            return torch.arange(n), torch.full((n,), self.unaugmented)
        order = epoch_order(n, self.seed, epoch)
        if self.subset is None:
            views = epoch_views(n, self.seed, epoch, self.num_views or UNLISTED_VIEWS)
        else:
            slots = epoch_slots(n, self.seed, epoch, self.subset.shape[1])
            views = self.subset.gather(1, slots[:, None])[:, 0].long()
        return order, views[order]

    def parts(self, first_step: int = 0) -> Iterator[slice]:
        """The positions of this rank's images in the plan, step by step from `first_step` on."""
        if not 0 <= first_step <= self.steps:
            raise ValueError(f"first step {first_step}: an epoch of {self.num_images} images has {self.steps} steps")
        for start in range(first_step * self.batch_size, self.num_images, self.batch_size):
            size = min(self.batch_size, self.num_images - start)
            yield slice(start + size * self.rank // self.world, start + size * (self.rank + 1) // self.world)


class Loader:
    """One rank's loader of a split. The global batch size fixes the number of steps, the same on every rank.

    Args:
        labels: [n], on the device of the batches.
        stream: as `Split.stream` gives it.
    """

    def __init__(self, schedule: Schedule, labels: Tensor, stream: Stream) -> None:
        self.schedule, self.labels, self.stream = schedule, labels, stream
        self.num_images = schedule.num_images  # in the whole split
        self.batch_size = schedule.batch_size  # of the global batch
        self.steps = schedule.steps  # of an epoch; the last batch may be smaller, and empty on some ranks

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of the epoch, from `first_step` on. Steps skipped cost nothing."""
        return self.batches(*self.schedule.plan(epoch), self.schedule.parts(first_step))

    def batches(self, order: Tensor, views: Tensor, parts: Iterable[slice]) -> Iterator[Batch]:
        """The images `order` in the views `views`, both [n] int64: a batch for each part of these."""
        parts, device = list(parts), self.labels.device
        images = self.stream(order, views, parts)
        order, views = order.to(device), views.to(device)  # one copy an epoch
        for part, pixels in zip(parts, images, strict=True):
            indices = order[part]
            yield Batch(pixels, self.labels[indices], indices, views[part])


class Split(ABC):
    """The images of one part of a data set (training, validation or test).

    Attributes:
        labels: [n] int64, on the CPU; −1: not labelled.
        mean, std: of the C channels, on the scale 0 … 1.
        num_views: of an image; None: they cannot be enumerated.
        unaugmented: number of the view used in evaluation.
        view_key: identity of the numbering of views, for a manifest: equal keys number the same views.
        fingerprint: SHA-256 of the images and labels, hex.
    """

    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_views: int | None
    unaugmented: int
    view_key: str

    @cached_property
    @abstractmethod
    def fingerprint(self) -> str: ...

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def view_subset(self, k: int) -> Tensor:
        """[n, k]: the k views of each image in a cache with k views per image. The same for every seed."""

    @abstractmethod
    def render(self, indices: Tensor, views: Tensor, channels_last: bool = False) -> Tensor:
        """Normalised images [B, C, H, W] float32 for any (index, view) pairs, on the device of `indices`."""

    @abstractmethod
    def stream(self, device: torch.device, channels_last: bool, workers: int, keep: bool) -> Stream:
        """What renders the batches of a loader: (order, views, parts) → images of each part, on the device.

        Args:
            workers: processes that decode images, where there are any to decode.
            keep: whether they stay from one epoch to the next.
        """

    def loader(
        self,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        views: Tensor | None = None,
        workers: int = 0,
    ) -> Loader:
        """One rank's loader of this split.

        Args:
            batch_size: images in a global batch, over all ranks.
            train: shuffle and draw views by (seed, epoch); else every image in order, unaugmented.
            views: [n, K] from `view_subset(K)`: show each image in these, in turn.
            workers: processes that decode images, where there are any to decode.
        """
        schedule = Schedule(len(self), batch_size, train, seed, rank, world, self.num_views, self.unaugmented, views)
        stream = self.stream(torch.device(device), channels_last, workers, keep=train)
        return Loader(schedule, self.labels.to(device), stream)
