"""A teacher that computes its targets batch by batch."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nst.data.batch import Batch
from nst.distiller import Targets, TargetSpec
from nst.layers import LOGITS, LayerHooks, resolve
from nst.precision import autocast


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of a network's inputs, per channel, for pixels in 0…1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def onto(self, other: "Normalization") -> tuple[list[float], list[float]]:
        """Scale and shift per channel that turn images normalised by `self` into images normalised by `other`."""
        scale = [s / o for s, o in zip(self.std, other.std, strict=True)]
        shift = [(m - o) / s for m, o, s in zip(self.mean, other.mean, other.std, strict=True)]
        return scale, shift


class _LastLayerReached(Exception):
    """Ends a forward pass: all named features have been computed."""


class _Depth:
    """Ends a network's forward pass at its last layer. The first pass runs to the end and counts the layers' calls."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        """Attach after the layers' own hooks, which then run first."""
        self.events = 0  # layers reached in this forward pass
        self.last: int | None = None  # how many a full pass reaches
        self.running = False
        self.handles: list[RemovableHandle] = []
        modules = dict(model.named_modules())
        for path in dict.fromkeys(resolve(model, layer) for layer in layers):
            module = modules[path.removesuffix(":input")]
            inputs = path.endswith(":input")
            register = module.register_forward_pre_hook if inputs else module.register_forward_hook
            self.handles.append(register(self._passed))

    def _passed(self, *_: Any) -> None:
        self.events += 1
        if self.running and self.events == self.last:
            raise _LastLayerReached

    def run(self, forward: Callable[[], Tensor]) -> None:
        """`forward()` as far as needed."""
        self.events, self.running = 0, True
        try:
            forward()
            self.last = self.events
        except _LastLayerReached:
            return
        finally:
            self.running = False

    def remove(self) -> None:
        """Remove the hooks: forward passes run to the end again."""
        for handle in self.handles:
            handle.remove()


class LiveTeacher:
    """Runs the teacher without gradient and keeps only the targets that the student's terms need.

    On a GPU the next batch's targets are computed on a separate stream, in parallel with the current step.
    """

    def __init__(
        self,
        model: nn.Module,
        target_specs: Sequence[TargetSpec],
        *,
        images: Normalization | None = None,
        expects: Normalization | None = None,
        precision: str = "fp32",
    ) -> None:
        """Attach to a teacher.

        Args:
            model: is put into `eval()` mode.
            target_specs: from the distiller; `set_target_specs` replaces them.
            images, expects: normalisation of the given images, and of those the teacher was trained on; if
                they differ, the teacher's input is converted.
            precision: "fp32", or "bf16" or "fp16": autocast of its forward pass; targets are always computed in fp32.
        """
        self.precision = precision
        self._norms: list[nn.modules.batchnorm._BatchNorm] = []  # those that use the batch's statistics
        self.model = model.eval().requires_grad_(False)
        self.target_specs: tuple[TargetSpec, ...] = ()
        self.hooks = LayerHooks(model, ())
        self._depth: _Depth | None = None
        self._compiled: Callable[[Tensor], Targets] | None = None
        self._compiled_size = 0
        self.set_target_specs(target_specs)
        self._convert = None
        device = next(model.parameters()).device
        if images is not None and expects is not None and images != expects:
            self._convert = [torch.tensor(v, device=device).view(1, -1, 1, 1) for v in images.onto(expects)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._prefetched: deque[tuple[Batch, Targets]] = deque()
        self.prefetch_batches = 0 if self._stream is None else 1

    def set_target_specs(self, target_specs: Sequence[TargetSpec]) -> None:
        """Compute the targets of these target_specs from now on, with eager code."""
        self.hooks.remove()
        if self._depth is not None:
            self._depth.remove()
        self.target_specs, self._compiled = tuple(target_specs), None
        layers = [r.layer for r in target_specs]
        self.hooks = LayerHooks(self.model, layers)
        self._depth = None if LOGITS in layers or not layers else _Depth(self.model, layers)

    def use_batch_statistics(self) -> None:
        """From now on normalise by each batch's own mean and variance; the running statistics stay as they are."""
        self._norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in self._norms:
            norm.momentum = 0.0

    def convert(self, images: Tensor) -> Tensor:
        """Images `[B, C, H, W]` from the data's normalisation to the teacher's."""
        return images if self._convert is None else images * self._convert[0] + self._convert[1]

    def logits(self, images: Tensor) -> Tensor:
        """The teacher's own output for images `[B, C, H, W]` of the student's normalisation."""
        if self.precision == "fp32":
            return self.model(self.convert(images))
        with autocast(images.device, self.precision):
            return self.model(self.convert(images))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Targets:
        """Targets of a batch, by spec key."""
        if self._stream is None or not self._prefetched or self._prefetched[0][0] is not batch:
            return self.targets(batch.images)
        _, targets = self._prefetched.popleft()
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for value in (value for target in targets.values() for value in target.values()):
            value.record_stream(current)  # its memory belongs to the teacher's stream
        return targets

    @torch.no_grad()
    def prefetch(self, batch: Batch) -> None:
        """On a GPU: start on a later batch, in parallel with the device's current work."""
        if self._stream is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._prefetched.append((batch, self.targets(batch.images)))

    @torch.no_grad()
    def targets(self, images: Tensor) -> Targets:
        """Targets of images `[B, C, H, W]`: the network runs as deep as the last layer. Raises ValueError for one that is no dict."""
        for norm in self._norms:
            norm.train()  # other code may have set the network to `eval()`
        if self._compiled is not None and len(images) == self._compiled_size:
            return self._compiled(images)
        if self._depth is None:
            return self._full_forward(images)
        self._depth.run(lambda: self.logits(images))
        return self._summarize(self.hooks.read())

    def compile(self, batch_size: int) -> None:
        """Compile for batches of this size, with frozen weights; operations that no target needs are removed.

        0: eager code again.
        """
        if not batch_size:
            self._compiled_size = 0
            return
        if self._depth is not None:
            self._depth.remove()  # hooks that count calls would cause recompilation
            self._depth = None
        if self._compiled is None:
            self._compiled = torch.compile(self._full_forward, dynamic=False, options={"freezing": True})
        self._compiled_size = batch_size

    def _full_forward(self, images: Tensor) -> Targets:
        logits = self.logits(images)
        return self._summarize(self.hooks.read() | {LOGITS: logits})

    def _summarize(self, features: dict[str, Tensor]) -> Targets:
        if self.precision != "fp32":
            features = {layer: feature.float() for layer, feature in features.items()}
        targets: Targets = {}
        for r in self.target_specs:
            targets[r.key] = target = r.loss.target(features[r.layer], r.student_shape)
            if not isinstance(target, dict):
                raise ValueError(
                    f"loss.{r.key.split(':')[0]}: target returns a {type(target).__name__}; a dict of tensors is needed, "
                    'such as {"map": feature}'
                )
        return targets
