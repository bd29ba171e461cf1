"""What every loss is; checks of its arguments and of what it is given, precision, warm-up and decay."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, pi
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

Convention = Literal["paper", "official", "crd"]
Shape = tuple[int, ...]
T = TypeVar("T")

Input = Literal["labels", "index", "epoch", "progress", "seed"]
"""What a loss may need besides the teacher's target: the images' labels `[B]` int64 and their positions in the training set `[B]`
int64; the epochs done so far and the fraction of the run done so far (float32 scalars, equal for all images of a step; an infinite
number of epochs stands for no moment of a run, where whatever rises or falls during it is at its full strength); a
number for random draws, another one each step and the same on every rank (int64 scalar on the CPU)."""
BY_IMAGE: tuple[Input, ...] = ("labels", "index")


@dataclass(frozen=True)
class LossSpec:
    """Implementation and memory of a loss for given shapes.

    Attributes:
        implementation: name of the exact implementation that is used, e.g. "gram".
        target: shape of each tensor of the teacher's target, for one image (no batch dimension).
        workspace: bytes for one image, about the extra memory of a forward and backward pass.
    """

    implementation: str
    target: dict[str, Shape]
    workspace: int


class TransferLoss(nn.Module, ABC):
    """A loss in two steps: `target = loss.target(teacher_feature)`, `value = loss(student_feature, target)`.

    Features are `[B, C, H, W]`, logits `[B, classes]`. A target is a dictionary of tensors whose first dimension is
    the batch; it may be cached in half precision. Values are means over the batch, computed in float32
    (float64 for float64 features) whatever the autocast state, and carry no weight λ.

    A loss declares its properties by class attributes, and a run treats it accordingly. Parameters and buffers, created in
    `__init__`, `setup` or `init_memory`, are optimised, synchronised over ranks and kept in checkpoints, but are no part of the
    exported student. Each pair of layers has its own instance. Constructors raise ValueError, naming the argument, for one that is
    out of the range that `Args` states.
    """

    source: ClassVar[Literal["teacher", "labels"]] = "teacher"
    """Where the target comes from. Labels are `[B]` int64; of mixed images (`trainer.mixup`) `[B, classes]` probabilities."""
    on_logits: ClassVar[bool] = False
    """The feature is the logits, not a named layer."""
    inputs: tuple[Input, ...] = ()
    """What is added to the target for `forward`; see `Input`. An instance may need less than its class."""
    relational: ClassVar[bool] = False
    """Relates the images of a batch, or keeps values of them in a buffer: `forward` gets the global batch, the same on
    every rank, and gradient accumulation is refused."""
    all_layers: ClassVar[bool] = False
    """Compares several pairs of layers at once: `setup` and `forward` get lists, in the order of the layers, and there is one
    instance for all pairs. `target` and `spec` are still of one layer."""
    normalises_maps: ClassVar[bool] = False
    """It compares maps scaled to unit length over the positions, so a map of 1×1 carries no information."""

    teacher_layer: ClassVar[str | None] = None
    """A layer of the teacher of which the loss needs something over the whole training set; see `teacher_statistics`."""

    @property
    def target_key(self) -> str | None:
        """Everything that the target depends on besides shapes and implementation: losses with equal keys share cached targets.

        None: unknown, so that the target is never cached.
        """
        return None

    def setup(self, student_shape: Any, teacher_shape: Any) -> None:
        """Create what depends on the shapes, such as parameters; called once, under the run's seed, before training.

        Args:
            student_shape, teacher_shape: (C, H, W) of one image, (classes,) for logits; with `all_layers` lists of them.
        """

    def init_memory(self, num_images: int) -> None:
        """Create buffers with a row for each training image; called once, under the run's seed, after the data is read."""

    def teacher_statistics(self, features: Tensor, labels: Tensor) -> Tensor:
        """What `init_teacher` takes, computed once for a teacher and kept beside it.

        Args:
            features: `[N, D]`, at `teacher_layer`, pooled over the positions: the unaugmented training images in their order.
            labels: `[N]` int64.
        """
        raise NotImplementedError(f"{type(self).__name__} has no statistics of the teacher")

    def init_teacher(self, statistics: Tensor) -> None:
        """Set what depends on the teacher's statistics; called once before training, after `setup`, if `teacher_layer` is set."""

    @abstractmethod
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """Teacher side, without gradient. `student_shape` is (C, H, W), by default the teacher's own."""

    def reduce_student(self, student_feature: Tensor) -> Tensor:
        """The reduced feature that `forward` also accepts, row by row; for a relational loss it is gathered over the ranks."""
        return student_feature

    @abstractmethod
    def forward(self, student_feature: Any, target: Any) -> Tensor:
        """Student side: a scalar, the mean over the batch. Of one feature and its target; with `all_layers` lists of them."""

    @abstractmethod
    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Implementation, target and memory for one image of the given shapes: (C, H, W), or (classes,) for logits."""

    def given(self, target: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """What `inputs` names, out of a target that it was added to. Raises ValueError as `target_tensor` does."""
        return {name: target_tensor(target, name, batch if name in BY_IMAGE else None) for name in self.inputs}


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError, naming the argument, unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def check_flags(**values: bool) -> None:
    """Raises ValueError, naming the argument, unless each of `values` is a bool."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be true or false")


def check_numbers(
    *, least: float = -inf, above: float = -inf, below: float = inf, whole: bool = False, **values: float
) -> None:
    """Raises ValueError, naming the argument, unless each of `values` is a finite number of the range.

    Args:
        least, above, below: value ≥ least, value > above, value < below.
        whole: it must be an int.
        values: arguments by name.
    """
    limits = (("at least", least), ("more than", above), ("less than", below))
    bounds = " and ".join(f"{relation} {limit:g}" for relation, limit in limits if isfinite(limit))
    kind = "whole" if whole else "finite"
    for name, value in values.items():
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not (number and isfinite(value) and value >= least and above < value < below):
            raise ValueError(f"{name} is {value!r}; it must be a {kind} number{bounds and ', ' + bounds}")


def target_tensor(target: Mapping[str, Tensor], name: str, batch: int | None) -> Tensor:
    """The tensor `name` of a target, with a row for each of `batch` images; None: it is a scalar of the run.

    Raises:
        ValueError: it is missing, or of another batch size.
        TypeError: the target is a bare tensor.
    """
    if isinstance(target, Tensor):
        raise TypeError("the teacher's side is a tensor; it must be a target: loss(student, loss.target(teacher))")
    if name not in target:
        origin = "a scalar, added to it" if batch is None else "from its own target; labels and index are added to it"
        raise ValueError(f"the target holds {sorted(target)}; this loss needs {name!r} ({origin})")
    value = target[name]
    if batch is not None and (value.ndim == 0 or value.shape[0] != batch):
        raise ValueError(f"target {name!r} has shape {tuple(value.shape)}; the student's batch is {batch} images")
    return value


def made(module: T | None, what: str) -> T:
    """What `setup` makes. Raises ValueError, beginning with `what`, if it was not called."""
    if module is None:
        raise ValueError(f"{what}: call setup(student_shape, teacher_shape) first")
    return module


def warmup_factor(epoch: Tensor | None, epochs: float) -> Tensor | float:
    """min(1, e / epochs) in the e-th epoch, counted from 1: how mdistiller raises a loss. 1 without an `epoch`."""
    return 1.0 if epoch is None else ((epoch.floor() + 1) / epochs).clamp(max=1.0)


def cosine_decay_factor(epoch: Tensor | None, start: float, epochs: float | None) -> Tensor | float:
    """1 in the e-th epoch up to `start`, counted from 1, then half a cosine to 0 in the last of `epochs`; 1 where that is null."""
    if epoch is None or epochs is None or start >= epochs:
        return 1.0
    done = ((epoch.floor() + 1 - start) / (epochs - start)).clamp(0.0, 1.0)
    return torch.where(epoch.isinf(), 1.0, 0.5 * (1 + torch.cos(pi * done)))


def working_dtype(feature: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if feature.dtype == torch.float64 else torch.float32


def no_autocast(feature: Tensor) -> torch.autocast:
    """Context in which autocast leaves the precision alone."""
    return torch.autocast(feature.device.type, enabled=False)
