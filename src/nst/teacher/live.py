"""The teacher beside the student: its targets are computed batch by batch, as deep in the network as a term needs."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

from nst.data.batch import Batch
from nst.dist import autocast
from nst.distiller import Targets, TargetSpec
from nst.layers import LOGITS, LayerHooks, resolve
from nst.models.external import InputFormat

if TYPE_CHECKING:
    from nst.teacher.cache import CachedTeacher, TeacherCache

BatchAndTargets = tuple[Batch, Targets]

FOLDING_TOLERANCE = 1e-3  # of the largest value: folding in float32 moves a deep network's logits by about 1e-4


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of a network's inputs, per channel, for pixels in 0…1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"

    def onto(self, other: "Normalization") -> tuple[list[float], list[float]]:
        """Scale and shift per channel that turn images normalised by `self` into images normalised by `other`."""
        scale = [s / o for s, o in zip(self.std, other.std, strict=True)]
        shift = [(m - o) / s for m, o, s in zip(self.mean, other.mean, other.std, strict=True)]
        return scale, shift


def expected_normalization(
    mean: Sequence[float] | None, std: Sequence[float] | None, metadata: Mapping[str, str]
) -> Normalization | None:
    """The normalisation that weights were trained with: as given, else as stored with them (metadata), else unknown."""
    stored = {key: [float(v) for v in metadata[key].split(",")] for key in ("mean", "std") if key in metadata}
    mean, std = mean or stored.get("mean"), std or stored.get("std")
    return Normalization(tuple(mean), tuple(std)) if mean and std else None


def input_normalization(
    model: nn.Module,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    metadata: Mapping[str, str],
    images: Normalization,
) -> tuple[Normalization, str]:
    """The normalisation of a teacher's inputs, and in words where it is from.

    Args:
        mean, std: as the user gives them.
        metadata: of its weights file.
        images: the data's, for a teacher of which nothing else is known.
    """
    if mean and std:
        return Normalization(tuple(mean), tuple(std)), "as given"
    if (stored := expected_normalization(None, None, metadata)) is not None:
        return stored, "as stored with its weights"
    record: InputFormat | None = getattr(model, "input_format", None)
    if record is not None:
        return Normalization(record.mean, record.std), f"by the record of {record.source}"
    return images, "as the data, since its weights say nothing else"


class _LastLayerReached(Exception):
    """Ends a forward pass: all named features have been computed."""


class _Depth:
    """Ends a network's forward pass at its last named layer. The first pass runs to the end and counts the layers' calls."""

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

    def run(self, forward: Callable[[Tensor], Tensor], images: Tensor) -> None:
        """`forward(images)` as far as needed."""
        self.events, self.running = 0, True
        try:
            forward(images)
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
        device = next(model.parameters()).device
        self._convert = None
        if images is not None and expects is not None and images != expects:
            self._convert = [torch.tensor(v, device=device).view(1, -1, 1, 1) for v in images.onto(expects)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def set_target_specs(self, target_specs: Sequence[TargetSpec]) -> None:
        """Compute these targets from now on, with eager code."""
        self.hooks.remove()
        if self._depth is not None:
            self._depth.remove()
        self.target_specs, self._compiled = tuple(target_specs), None
        layers = [spec.layer for spec in target_specs]
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
        """The teacher's own output for images `[B, C, H, W]` of the data's normalisation."""
        images = images if self._convert is None else self.convert(images)
        if self.precision == "fp32":
            return self.model(images)
        with autocast(images.device, self.precision):
            return self.model(images)

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
        started: BatchAndTargets | None = None
        for batch, targets in batches:
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                upcoming = batch, targets | self.targets(batch.images)
            if started is not None:
                yield self._finished(started)
            started = upcoming
        if started is not None:
            yield self._finished(started)

    def _finished(self, started: BatchAndTargets) -> BatchAndTargets:
        """On a GPU: targets that later work on the current stream may use."""
        assert self._stream is not None
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for value in (value for target in started[1].values() for value in target.values()):
            value.record_stream(current)  # its memory belongs to the teacher's stream
        return started

    @torch.no_grad()
    def targets(self, images: Tensor) -> Targets:
        """Targets of images `[B, C, H, W]`, by spec key. Raises ValueError for one that is no dict."""
        for norm in self._norms:
            norm.train()  # other code may have set the network to `eval()`
        if self._compiled is not None and len(images) == self._compiled_size:
            return self._compiled(images)
        if self._depth is None:
            return self._full_forward(images)
        self._depth.run(self.logits, images)
        return self._make_targets(self.hooks.read())

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


def fold_batch_norm(model: nn.Module, images: Tensor, layers: Iterable[str] = ()) -> int:
    """Fold each `BatchNorm2d` into the `Conv2d` before it, in place: the norm becomes `nn.Identity`.

    For networks that only run forward, in `eval()` mode, before hooks are attached. Modules keep their names, so layers can
    be named as before. If the output or a feature moves by more than rounding, the network stays as it was: its forward
    then uses a convolution's output elsewhere, too.

    Args:
        model: in `eval()` mode, on the device of `images`.
        images: `[B, C, H, W]`; pairs are found, and outputs compared, by running the model on them.
        layers: named layers; a pair is not folded if the value between its two modules is one of these.

    Returns:
        How many pairs were folded.
    """
    named = {resolve(model, layer) for layer in layers}
    convolved: dict[
        int, tuple[str, Tensor]
    ] = {}  # id of an output → convolution and the output, which keeps the id in use
    pairs: dict[str, str] = {}  # norm → convolution
    calls: dict[str, int] = {}
    handles: list[RemovableHandle] = []

    def note(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if type(module) is nn.Conv2d:
                convolved[id(output)] = (name, output)
            elif found := convolved.get(id(inputs[0])):
                pairs[name] = found[0]

        return hook

    for name, module in model.named_modules():
        # A convolution with other parameters computes its weight from them (`weight_norm`), so it is left as it is.
        plain = type(module) is nn.Conv2d and module._parameters.keys() == {"weight", "bias"}
        if plain or (type(module) is nn.BatchNorm2d and module.running_mean is not None):
            handles.append(module.register_forward_hook(note(name, module)))
    before = _features(model, images, layers)
    for handle in handles:
        handle.remove()
    originals: dict[str, nn.Module] = {}
    for norm, conv in pairs.items():
        if calls[norm] == calls[conv] == 1 and conv not in named and f"{norm}:input" not in named:
            originals |= {name: model.get_submodule(name) for name in (conv, norm)}
            exact: list[Any] = [copy.deepcopy(originals[name]).double() for name in (conv, norm)]
            dtype = next(originals[conv].parameters()).dtype
            model.set_submodule(conv, fuse_conv_bn_eval(exact[0], exact[1]).to(dtype).requires_grad_(False))
            model.set_submodule(norm, nn.Identity())
    after = _features(model, images, layers)
    if all((after[k] - value).abs().max() <= FOLDING_TOLERANCE * value.abs().max() for k, value in before.items()):
        return len(originals) // 2
    for name, module in originals.items():
        model.set_submodule(name, module)
    return 0


@torch.no_grad()
def _features(model: nn.Module, images: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """Logits and the features at the layers."""
    hooks = LayerHooks(model, layers)
    logits = model(images)
    hooks.remove()
    return hooks.read() | {LOGITS: logits}
