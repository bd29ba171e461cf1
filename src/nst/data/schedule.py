"""The images and views of a rank at each step: the only place where the data path draws random numbers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from nst.data.batch import Batch
from nst.data.views import UNLISTED_VIEWS, epoch_order, epoch_slots, epoch_views


@dataclass(frozen=True)
class Schedule:
    """The steps of one rank over `num_images` images.

    Rank r takes the r-th contiguous part of every global batch, so all ranks together have the batch of one process. The
    last batch is split as evenly as its size allows; no image is dropped or doubled.

    With `subset` ([n, K] view numbers) K epochs show each of an image's K views once.
    """

    num_images: int
    batch_size: int
    train: bool
    seed: int
    rank: int
    world: int
    num_views: int | None
    identity: int
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
            return torch.arange(n), torch.full((n,), self.identity)
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


class ScheduledLoader(ABC):
    """Base class of loaders: follows a schedule; see `Loader`."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    @property
    def num_images(self) -> int:
        return self.schedule.num_images

    @property
    def batch_size(self) -> int:
        return self.schedule.batch_size

    @property
    def steps(self) -> int:
        return self.schedule.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of the epoch, from `first_step` on."""
        return self._batches(*self.schedule.plan(epoch), self.schedule.parts(first_step))

    def sequential(self, views: Tensor, first_step: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Every image once, in order, image i in view `views[i]`; of the batches every `stride`-th from `first_step` on."""
        parts = islice(self.schedule.parts(first_step), 0, None, stride)
        return self._batches(torch.arange(self.num_images), views.long(), parts)

    @abstractmethod
    def _batches(self, order: Tensor, views: Tensor, parts: Iterable[slice]) -> Iterator[Batch]:
        """The images `order` in the views `views`, both [n] int64: a batch for each part of these."""
