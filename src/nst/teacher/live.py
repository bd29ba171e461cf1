"""The teacher beside the student: its targets are computed batch by batch, as deep in the network as a term needs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nst.data.batch import Batch
from nst.dist import autocast
from nst.distiller import Targets, TargetSpec
from nst.layers import LOGITS, LayerHooks, resolve

if TYPE_CHECKING:
    from nst.teacher.cache import CachedTeacher, TeacherCache

BatchAndTargets = tuple[Batch, Targets]


class _LastLayerReached(Exception):
    """Ends a forward pass: all named features have been computed."""


class LiveTeacher:
    """Runs the teacher without gradient and keeps only the targets that the student's terms need.

    On a GPU the next batch's targets are computed on a separate stream, in parallel with the current step.
    """

    def __init__(
        self,
        model: nn.Module,
        target_specs: Sequence[TargetSpec],
        *,
        precision: str = "fp32",
        batch_statistics: bool = False,
    ) -> None:
        """Attach to a teacher.

        Args:
            model: takes the images as they are, see `nst.teacher.convert_inputs`; is put into `eval()` mode.
            target_specs: from the distiller; `set_target_specs` replaces them.
            precision: "fp32", or "bf16" or "fp16": autocast of its forward pass; targets are always computed in fp32.
            batch_statistics: normalise by each batch's own mean and variance; the running statistics stay as they are.
        """
        self.model, self.precision = model.eval().requires_grad_(False), precision
        norms = model.modules() if batch_statistics else ()
        self._norms = [norm for norm in norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
        for norm in self._norms:
            norm.momentum = 0.0
        self.hooks = LayerHooks(model, ())
        self._handles: list[RemovableHandle] = []  # hooks that count the calls of named layers
        self._compiled_size = 0
        self.set_target_specs(target_specs)
        device = next(model.parameters()).device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def beside(self, target_specs: Sequence[TargetSpec]) -> "LiveTeacher":
        """Another one of the same network, for other targets; `set_target_specs(())` detaches it."""
        return LiveTeacher(self.model, target_specs, precision=self.precision, batch_statistics=bool(self._norms))

    def set_target_specs(self, target_specs: Sequence[TargetSpec]) -> None:
        """Compute these targets from now on, with eager code."""
        self.hooks.remove()
        self._count_calls(())
        self.target_specs, self._compiled = tuple(target_specs), None
        layers = [spec.layer for spec in target_specs]
        self.hooks = LayerHooks(self.model, layers)
        self._count_calls(() if LOGITS in layers else layers)

    def _count_calls(self, layers: Iterable[str]) -> None:
        """Let forward passes end at the last of these layers; without any they run to the end."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._running = [], False
        self._calls, self._last = 0, 0  # of the layers in this forward pass, and in a whole one, which is the first
        for path in dict.fromkeys(resolve(self.model, layer) for layer in layers):
            module = self.model.get_submodule(path.removesuffix(":input"))
            hook = module.register_forward_pre_hook if path.endswith(":input") else module.register_forward_hook
            self._handles.append(hook(self._called))  # after the layer's own hook, which then runs first

    def _called(self, *_: Any) -> None:
        self._calls += 1
        if self._running and self._calls == self._last:
            raise _LastLayerReached

    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, by spec key."""
        return self.targets(batch.images)

    def add_targets(self, batches: Iterable[BatchAndTargets]) -> Iterator[BatchAndTargets]:
        """Each batch with its targets added; on a GPU those of the next batch are started before a batch is yielded."""
        if self._stream is None:
            for batch, targets in batches:
                yield batch, targets | self.targets(batch.images)
            return
        current = torch.cuda.current_stream(self._stream.device)
        started: tuple[Batch, Targets, Any] | None = None
        for pair in chain(batches, [None]):
            upcoming = None
            if pair is not None:
                self._stream.wait_stream(current)
                with torch.cuda.stream(self._stream):
                    upcoming = pair[0], pair[1] | self.targets(pair[0].images), self._stream.record_event()
            if started is not None:
                batch, targets, computed = started
                current.wait_event(computed)
                for value in (value for target in targets.values() for value in target.values()):
                    value.record_stream(current)  # its memory belongs to the teacher's stream
                yield batch, targets
            started = upcoming

    @torch.no_grad()
    def targets(self, images: Tensor) -> Targets:
        """Targets of images `[B, C, H, W]`, by spec key. Raises ValueError for one that is no dict."""
        for norm in self._norms:
            norm.train()  # other code may have set the network to `eval()`
        if self._compiled is not None and len(images) == self._compiled_size:
            return self._compiled(images)
        if not self._handles:
            return self._full_forward(images)
        self._calls, self._running = 0, True
        try:
            self._forward(images)
            self._last = self._calls
        except _LastLayerReached:
            pass
        finally:
            self._running = False
        return self._make_targets(self.hooks.read())

    def compile(self, batch_size: int) -> None:
        """Compile for batches of this size, with frozen weights; operations that no target needs are removed.

        0: eager code again.
        """
        self._compiled_size = batch_size
        if batch_size and self._compiled is None:
            self._count_calls(())  # hooks that count would cause recompilation
            self._compiled: Callable[[Tensor], Targets] | None = torch.compile(
                self._full_forward, dynamic=False, options={"freezing": True}
            )

    def _forward(self, images: Tensor) -> Tensor:
        if self.precision == "fp32":
            return self.model(images)
        with autocast(images.device, self.precision):
            return self.model(images)

    def _full_forward(self, images: Tensor) -> Targets:
        logits = self._forward(images)
        return self._make_targets(self.hooks.read() | {LOGITS: logits})

    def _make_targets(self, features: dict[str, Tensor]) -> Targets:
        if self.precision != "fp32":
            features = {layer: feature.float() for layer, feature in features.items()}
        targets: Targets = {}
        for spec in self.target_specs:
            targets[spec.key] = target = spec.loss.target(features[spec.layer], spec.student_shape)
            if not isinstance(target, dict):
                raise ValueError(
                    f"loss.{spec.key.split(':')[0]}: target returns a {type(target).__name__}; a dict of tensors is needed, "
                    'such as {"map": feature}'
                )
        return targets


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
        pairs: Iterable[BatchAndTargets] = ((batch, {}) for batch in batches)
        for source in self.sources:
            pairs = source.add_targets(pairs)
        return iter(pairs)

    def __call__(self, batch: Batch) -> Targets:
        """Targets of a single batch, by spec key."""
        return {key: target for source in self.sources for key, target in source(batch).items()}

    def compile(self, batch_size: int) -> None:
        """Compile a live teacher for batches of this size (0: eager again)."""
        for source in self.sources:
            if isinstance(source, LiveTeacher):
                source.compile(batch_size)
