"""Sources of the teacher's targets, and prefetching of the next batches."""

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from nst.data.batch import Batch, Loader
from nst.distiller import Targets


class TargetSource(Protocol):
    """Computes or reads the teacher's targets that the student's terms need."""

    prefetch_batches: int  # how many batches ahead to prefetch; 0: none

    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, by spec key."""
        ...

    def prefetch(self, batch: Batch) -> None:
        """Start on a later batch; calls follow in the order of prefetching."""
        ...

    def compile(self, batch_size: int) -> None:
        """Compile for batches of this size (0: none); other sizes stay eager."""
        ...


class NoTeacher:
    """The source of a run without a teacher."""

    prefetch_batches = 0

    def __call__(self, batch: Batch) -> Targets:
        return {}

    def prefetch(self, batch: Batch) -> None: ...

    def compile(self, batch_size: int) -> None: ...


class MixedSource:
    """Some target_specs from one source, the others from another."""

    def __init__(self, first: TargetSource, second: TargetSource) -> None:
        self.sources = (first, second)
        self.prefetch_batches = max(first.prefetch_batches, second.prefetch_batches)

    def __call__(self, batch: Batch) -> Targets:
        first, second = self.sources
        return {**first(batch), **second(batch)}

    def prefetch(self, batch: Batch) -> None:
        for source in self.sources:
            if source.prefetch_batches:
                source.prefetch(batch)

    def compile(self, batch_size: int) -> None:
        for source in self.sources:
            source.compile(batch_size)


class Prefetch:
    """A loader that has the source prefetch each batch `prefetch_batches` batches ahead."""

    def __init__(self, loader: Loader, source: TargetSource) -> None:
        self.loader, self.source = loader, source

    @property
    def num_images(self) -> int:
        return self.loader.num_images

    @property
    def batch_size(self) -> int:
        return self.loader.batch_size

    @property
    def steps(self) -> int:
        return self.loader.steps

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """As `Loader.epoch`."""
        waiting: deque[Batch] = deque()
        for batch in self.loader.epoch(epoch, first_step):
            self.source.prefetch(batch)
            waiting.append(batch)
            if len(waiting) > self.source.prefetch_batches:
                yield waiting.popleft()
        yield from waiting

    def sequential(self, views: Tensor, first_step: int = 0, stride: int = 1) -> Iterator[Batch]:
        """As `Loader.sequential`; nothing is prefetched."""
        return self.loader.sequential(views, first_step, stride)
