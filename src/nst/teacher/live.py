"""The teacher beside the student: its targets are computed batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nst.data.batch import Batch
from nst.dist import autocast
from nst.distiller import Targets, TargetSpec
from nst.layers import LOGITS, LayerHooks

if TYPE_CHECKING:
    from nst.teacher.cache import CachedTeacher, TeacherCache

BatchAndTargets = tuple[Batch, Targets]


class LiveTeacher:
    """Runs the teacher without gradient and keeps only the targets that the student's terms need."""

    def __init__(
        self, model: nn.Module, specs: Sequence[TargetSpec], precision: str = "fp32", batch_statistics: bool = False
    ) -> None:
        """Attach to a teacher, which is put into `eval()` mode.

        Args:
            precision: "fp32", or "bf16" or "fp16": autocast of its forward pass; targets are always computed in fp32.
            batch_statistics: normalise by each batch's own mean and variance; the running statistics stay as they are.
        """
        self.model, self.precision = model.eval().requires_grad_(False), precision
        norms = model.modules() if batch_statistics else ()
        self._norms = [norm for norm in norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
        for norm in self._norms:
            norm.momentum = 0.0
        self.target_specs, self.hooks = tuple(specs), LayerHooks(model, [spec.layer for spec in specs])
        self._compiled_size, self._compiled = 0, None

    def beside(self, specs: Sequence[TargetSpec]) -> "LiveTeacher":
        """Another one of the same network, for other targets; `hooks.remove()` detaches it."""
        return LiveTeacher(self.model, specs, self.precision, bool(self._norms))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, by spec key."""
        for norm in self._norms:
            norm.train()  # other code may have set the network to `eval()`
        compiled = self._compiled if len(batch.images) == self._compiled_size else None
        return (compiled or self._targets)(batch.images)

    def _targets(self, images: Tensor) -> Targets:
        with nullcontext() if self.precision == "fp32" else autocast(images.device, self.precision):
            logits = self.model(images)
        features = self.hooks.read() | {LOGITS: logits}
        if self.precision != "fp32":
            features = {layer: feature.float() for layer, feature in features.items()}
        return {spec.key: spec.loss.target(features[spec.layer], spec.student_shape) for spec in self.target_specs}

    def compile(self, batch_size: int) -> None:
        """Compile for batches of this size (0: eager again), with frozen weights, without operations that no target needs."""
        self._compiled_size = batch_size
        if batch_size and self._compiled is None:
            self._compiled = torch.compile(self._targets, dynamic=False, options={"freezing": True})

    def add_targets(self, batches: Iterable[BatchAndTargets]) -> Iterator[BatchAndTargets]:
        """Each batch with its targets added."""
        for batch, targets in batches:
            yield batch, targets | self(batch)


@dataclass(frozen=True)
class Teacher:
    """Where a run's targets come from, and what is known of the teacher. Without arguments: no teacher, so no targets."""

    sources: "Sequence[LiveTeacher | CachedTeacher]" = ()
    about: dict[str, Any] | None = None  # name, weights and accuracy of the teacher, for summary.json
    live: LiveTeacher | None = None  # the teacher, if it was loaded
    views: Tensor | None = None  # [images, K]: the views that epochs show; None: all
    cache: "TeacherCache | None" = None

    def targets(self, batches: Iterable[Batch]) -> Iterator[BatchAndTargets]:
        """Each batch with its targets, by spec key. Reads or computes those of later batches ahead."""
        pairs: Iterator[BatchAndTargets] = ((batch, {}) for batch in batches)
        for source in self.sources:
            pairs = source.add_targets(pairs)
        return pairs

    def __call__(self, batch: Batch) -> Targets:
        """Targets of a single batch, by spec key."""
        return {key: target for source in self.sources for key, target in source(batch).items()}

    def compile(self, batch_size: int) -> None:
        """Compile a live teacher for batches of this size (0: eager again)."""
        for source in self.sources:
            if isinstance(source, LiveTeacher):
                source.compile(batch_size)
