"""What a source of the teacher's summaries is, and how the next batches are announced to it."""

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from nst.data.batch import Batch, Loader
from nst.distiller import Summaries


class SummarySource(Protocol):
    """Says of a batch what the student's terms ask of the teacher."""

    prefetch_batches: int  # how many batches before its turn a batch should be announced; 0: not at all

    def __call__(self, batch: Batch) -> Summaries:
        """Summaries of a batch, by request key."""
        ...

    def prefetch(self, batch: Batch) -> None:
        """Start on a batch whose turn comes later; batches come in the order announced."""
        ...

    def compile(self, batch_size: int) -> None:
        """Compile what there is to compile, for batches of this size (0: none); other sizes stay eager."""
        ...


class NoTeacher:
    """Of a run without a teacher."""

    prefetch_batches = 0

    def __call__(self, batch: Batch) -> Summaries:
        return {}

    def prefetch(self, batch: Batch) -> None: ...

    def compile(self, batch_size: int) -> None: ...


class MixedSource:
    """Some requests from one source, the rest from another."""

    def __init__(self, first: SummarySource, second: SummarySource) -> None:
        self.sources = (first, second)
        self.prefetch_batches = max(first.prefetch_batches, second.prefetch_batches)

    def __call__(self, batch: Batch) -> Summaries:
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
    """A loader that announces each batch to the knowledge `prefetch_batches` batches before its turn."""

    def __init__(self, loader: Loader, knowledge: SummarySource) -> None:
        self.loader, self.knowledge = loader, knowledge

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
        """As the loader's own."""
        waiting: deque[Batch] = deque()
        for batch in self.loader.epoch(epoch, first_step):
            self.knowledge.prefetch(batch)
            waiting.append(batch)
            if len(waiting) > self.knowledge.prefetch_batches:
                yield waiting.popleft()
        yield from waiting

    def sequential(self, views: Tensor, first_step: int = 0, stride: int = 1) -> Iterator[Batch]:
        """As the loader's own; nothing is announced."""
        return self.loader.sequential(views, first_step, stride)
