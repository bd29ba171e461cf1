"""The base class of all losses, those of losses on logits, pooled features and maps; checks, map sizes, precision."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, pi, prod, sqrt
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Convention = Literal["paper", "official", "crd"]
Shape = tuple[int, ...]

STANDARD_EPS = 1e-7
"""What the code of logit standardisation adds to the deviation."""
FEATURE_KEY = "feature-as-it-is"
"""`target_key` of the losses whose target is the teacher's map at its own size: they share it in a cache."""

Input = Literal["labels", "index", "epoch", "progress", "seed"]
"""What a loss may need besides the teacher's target: the images' labels `[B]` int64 and their positions in the training set `[B]`
int64; the epochs done so far and the fraction of the run done so far (float32 scalars, equal for all images of a step; an infinite
number of epochs stands for no moment of a run, where whatever rises or falls during it is at its full strength); a
number for random draws, another one each step and the same on every rank (int64 scalar on the CPU)."""


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
    exported student. Each pair of layers has its own instance.
    """

    source: ClassVar[Literal["teacher", "labels"]] = "teacher"
    """Where the target comes from. Labels are `[B]` int64; of mixed images (`trainer.mixup`) `[B, classes]` probabilities."""
    on_logits: ClassVar[bool] = False
    """The feature is the logits, not a named layer."""
    inputs: ClassVar[tuple[Input, ...]] = ()
    """What is added to the target for `forward`; see `Input`."""
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


def check_convention(convention: str, allowed: Sequence[str] = get_args(Convention)) -> None:
    """Raises ValueError unless `convention` is one of `allowed`."""
    check_choice("convention", convention, allowed)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError, naming the argument, unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def check_number(
    name: str, value: float, *, least: float = -inf, above: float = -inf, below: float = inf, whole: bool = False
) -> None:
    """Raises ValueError, naming the argument, unless `value` is a finite number of the range.

    Args:
        name: of the argument.
        value: what was passed.
        least, above, below: value ≥ least, value > above, value < below.
        whole: it must be an int.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if number and isfinite(value) and value >= least and above < value < below:
        return
    limits = (("at least", least), ("more than", above), ("less than", below))
    bounds = " and ".join(f"{relation} {limit:g}" for relation, limit in limits if isfinite(limit))
    kind = "whole" if whole else "finite"
    raise ValueError(f"{name} is {value!r}; it must be a {kind} number{bounds and ', ' + bounds}")


def check_map(feature: Tensor, owner: str) -> None:
    """Raises ValueError unless `feature` is a floating [B, C, H, W] tensor that holds something."""
    if feature.ndim != 4:
        raise ValueError(f"the {owner}'s feature has shape {tuple(feature.shape)}; a map loss needs [B, C, H, W]")
    if not feature.is_floating_point() or feature.numel() == 0:
        raise ValueError(
            f"the {owner}'s feature is {feature.dtype} of shape {tuple(feature.shape)}; "
            "it must be floating point and not empty"
        )


def check_shape(shape: Shape, owner: str) -> None:
    """Raises ValueError unless `shape` is (C, H, W) with positive sizes."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"the {owner}'s shape is {tuple(shape)}; a map loss needs (C, H, W), each at least 1")


def map_shape(shape: Shape, owner: str) -> Shape:
    """(C, H, W), of a vector (C, 1, 1). Raises ValueError for other shapes."""
    shape = (*shape, 1, 1) if len(shape) == 1 else shape
    check_shape(shape, owner)
    return shape


def target_tensor(target: Mapping[str, Tensor], name: str, batch: int) -> Tensor:
    """The tensor `name` of a target; ValueError when it is missing or of another batch size, TypeError for a bare tensor."""
    if isinstance(target, Tensor):
        raise TypeError("the teacher's side is a tensor; it must be a target: loss(student, loss.target(teacher))")
    if name not in target:
        raise ValueError(f"the target holds {sorted(target)}; this loss needs {name!r} (from its own target)")
    value = target[name]
    if value.ndim == 0 or value.shape[0] != batch:
        raise ValueError(f"target {name!r} has shape {tuple(value.shape)}; the student's batch is {batch} images")
    return value


def scalar(target: Mapping[str, Tensor], name: Input) -> Tensor:
    """A scalar that a run hands over with the target; ValueError when it is missing."""
    if name not in target:
        raise ValueError(f"the target holds {sorted(target)}; this loss also needs {name!r}, a scalar tensor")
    return target[name]


def warmup_factor(target: Mapping[str, Tensor], epochs: float) -> Tensor | float:
    """min(1, e / epochs) in the e-th epoch, counted from 1: how mdistiller raises a loss. 1 where `epochs` is 0."""
    return 1.0 if epochs == 0 else ((scalar(target, "epoch").floor() + 1) / epochs).clamp(max=1.0)


def cosine_decay_factor(target: Mapping[str, Tensor], start: float, epochs: float | None) -> Tensor | float:
    """1 in the e-th epoch up to `start`, counted from 1, then half a cosine to 0 in the last of `epochs`; 1 where that is null."""
    if epochs is None or start >= epochs:
        return 1.0
    epoch = scalar(target, "epoch")
    done = ((epoch.floor() + 1 - start) / (epochs - start)).clamp(0.0, 1.0)
    return torch.where(epoch.isinf(), 1.0, 0.5 * (1 + torch.cos(pi * done)))


def laid_out_like(tensor: Tensor, feature: Tensor) -> Tensor:
    """A map `[B, C, H, W]` or `[B, C, N]` in the memory order of the student's `feature` (itself where it already is).

    What comes from a cache is contiguous, what comes from a network may be channels last, and the order of the sums of a
    matrix product, and with it the last bit, depends on that.
    """
    if feature.stride(1) != 1 or feature.stride(-1) == 1:
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def working_dtype(feature: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if feature.dtype == torch.float64 else torch.float32


def no_autocast(feature: Tensor) -> torch.autocast:
    """Context in which autocast leaves the precision alone."""
    return torch.autocast(feature.device.type, enabled=False)


def shared_size(student: Shape, teacher: Shape, convention: str) -> tuple[int, int]:
    """The (H, W) at which two maps are compared: the student's; under "crd" the smaller one's.

    Args:
        student: (C, H, W) of the student's feature.
        teacher: (C, H, W) of the teacher's.
        convention: "paper", "official" or "crd".

    Raises:
        ValueError: a shape is not (C, H, W), or under "crd" the aspect ratios differ.
    """
    check_shape(student, "student")
    check_shape(teacher, "teacher")
    (_, h_s, w_s), (_, h_t, w_t) = student, teacher
    if convention != "crd":
        return h_s, w_s
    if h_s * w_t != h_t * w_s:
        raise ValueError(
            f"convention 'crd' pools the larger map to the smaller, so both need one aspect ratio: the student's "
            f"map is {h_s}×{w_s}, the teacher's {h_t}×{w_t}; use convention 'paper' for such a pair"
        )
    return min(h_s, h_t), min(w_s, w_t)


def resize_teacher(feature: Tensor, student_shape: Shape | None, convention: str) -> Tensor:
    """The teacher's map at the size of the comparison: bilinear ("crd": adaptive average pooling)."""
    check_map(feature, "teacher")
    teacher_shape = tuple(feature.shape[1:])
    size = shared_size(student_shape or teacher_shape, teacher_shape, convention)
    if size == tuple(feature.shape[2:]):
        return feature
    feature = feature.to(working_dtype(feature))
    if convention == "crd":
        return F.adaptive_avg_pool2d(feature, size)
    return F.interpolate(feature, size=size, mode="bilinear", align_corners=False)


def resize_key(convention: str) -> str:
    """How `resize_teacher` brings a map to another size, for a `target_key`."""
    return "pooled" if convention == "crd" else "bilinear"


def resize_student(feature: Tensor, positions: int, convention: str) -> Tensor:
    """The student's map at the number of positions of the target: itself ("crd": pooled when it is the larger).

    Raises:
        ValueError: the target was made for another map size.
    """
    height, width = feature.shape[2:]
    if height * width == positions:
        return feature
    ratio = sqrt(positions / (height * width))
    size = (round(height * ratio), round(width * ratio))
    if convention != "crd" or ratio > 1 or prod(size) != positions or size[0] * width != size[1] * height:
        raise ValueError(
            f"the target has {positions} positions, the student's map {height}×{width}; "
            "pass student_shape=(C, H, W) to target so that the teacher's map is brought to that size"
        )
    return F.adaptive_avg_pool2d(feature.to(working_dtype(feature)), size)


class MapLoss(TransferLoss):
    """A loss whose target is the teacher's map: as it is (`own_size`), or at the size of the comparison by `convention`."""

    own_size: bool = True
    convention: str = "paper"

    @property
    def target_key(self) -> str:
        """The map, by how it is resized."""
        return FEATURE_KEY if self.own_size else f"feature-{resize_key(self.convention)}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"feature": [B, C_T, H, W]}`.

        Raises:
            ValueError: a feature that is not [B, C, H, W]; under "crd", different aspect ratios.
        """
        check_map(teacher_feature, "teacher")
        if self.own_size:
            return {"feature": teacher_feature}
        return {"feature": resize_teacher(teacher_feature, student_shape, self.convention)}


def pool(feature: Tensor, owner: str) -> Tensor:
    """`[B, C, H, W]` → its mean over positions `[B, C]` in the working precision; `[B, C]` stays.

    Raises:
        ValueError: another number of dimensions, not floating point, or empty.
    """
    if feature.ndim not in (2, 4) or not feature.is_floating_point() or feature.numel() == 0:
        raise ValueError(
            f"the {owner}'s feature is {feature.dtype} of shape {tuple(feature.shape)}; [B, C, H, W] or [B, C] is needed, "
            "floating point and not empty"
        )
    dtype = working_dtype(feature)
    return feature.to(dtype) if feature.ndim == 2 else feature.mean(dim=(2, 3), dtype=dtype)


def unit_rows(x: Tensor, eps: float = 0.0) -> Tensor:
    """x / (‖x‖₂ + eps) of each row of `[B, C]`; a row of zeros stays, and gets no gradient. Large rows do not overflow."""
    peak = x.detach().abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak == 0, 1.0, peak)
    x = x / scale
    length = torch.where(peak == 0, 1.0, x.square().sum(dim=1, keepdim=True)).sqrt()
    return x / (length + eps / scale)


class PooledLoss(TransferLoss):
    """A loss between the pooled features of the images of a batch, as before a network's classifier."""

    relational: ClassVar[bool] = True

    @property
    def target_key(self) -> str:
        """The pooled feature, whatever the settings."""
        return "pooled"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"pooled": [B, C_T]}`. Raises ValueError for a feature that is neither [B, C, H, W] nor [B, C]."""
        with no_autocast(teacher_feature):
            return {"pooled": pool(teacher_feature, "teacher")}

    def reduce_student(self, student_feature: Tensor) -> Tensor:
        """The pooled feature `[B, C_S]`: H·W times smaller than the map."""
        with no_autocast(student_feature):
            return pool(student_feature, "student")

    def read(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Student's `[B, C_S]` and teacher's `[B, C_T]` in the student's working precision.

        Raises:
            ValueError: the target is of another loss or batch.
        """
        student = pool(student_feature, "student")
        return student, target_tensor(target, "pooled", student.shape[0]).to(student.dtype)

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the pooled feature. Memory: the gradient of the student's."""
        c_s, c_t = map_shape(student_shape, "student")[0], map_shape(teacher_shape, "teacher")[0]
        return LossSpec("pooled", {"pooled": (c_t,)}, 16 * (c_s + c_t))


def standardise(logits: Tensor) -> Tensor:
    """Zero mean and unit deviation over the classes of an image: (z − z̄) / (1e-7 + std z), `[B, classes]`.

    As in the code of Sun et al. (2024), with the deviation over classes − 1. Logits that are equal but for rounding, and
    those of one class, become zeros, and get no gradient. A class of −∞, which a teacher does not know, counts as none.
    """
    unknown = logits == -torch.inf
    known, classes = (~unknown).sum(dim=1, keepdim=True), logits.shape[1]
    logits = logits.masked_fill(unknown, 0.0)
    centred = (logits - logits.mean(dim=1, keepdim=True) * (classes / known.clamp(min=1))).masked_fill(unknown, 0.0)
    squared = centred.square().sum(dim=1, keepdim=True) / max(1, classes - 1)
    squared = squared * (max(1, classes - 1) / (known - 1).clamp(min=1))  # 1 where all classes are known
    flat = squared <= (4 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1, keepdim=True)) ** 2
    standard = torch.where(flat, 0.0, centred) / (torch.where(flat, 1.0, squared).sqrt() + STANDARD_EPS)
    return standard.masked_fill(unknown, -torch.inf)


def kl_divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(p_T ‖ p_S) of log-probabilities `[B, n]`, mean over the batch. 0 · log 0 = 0: a class that the teacher does not know adds nothing."""
    unknown = log_t == -torch.inf
    log_s, log_t = log_s.masked_fill(unknown, 0.0), log_t.masked_fill(unknown, -1e4)  # e to this power is 0
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


class LogitLoss(TransferLoss):
    """A loss between logits `[B, classes]` of one number of classes."""

    on_logits: ClassVar[bool] = True
    rows: ClassVar[int] = 6
    """About how many tensors `[B, classes]` its forward and backward pass hold at once."""

    def __init__(self, standardize: bool) -> None:
        super().__init__()
        if not isinstance(standardize, bool):
            raise ValueError(f"standardize is {standardize!r}; it must be true or false")
        self.standardize = standardize

    @property
    def target_key(self) -> str:
        """The logits, whatever the settings."""
        return "logits"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The teacher's logits `[B, classes]`. Raises ValueError for another number of dimensions or classes."""
        if teacher_feature.ndim != 2:
            raise ValueError(
                f"the teacher's logits have shape {tuple(teacher_feature.shape)}; {type(self).__name__} needs [B, classes]"
            )
        if student_shape is not None:
            self.spec(student_shape, tuple(teacher_feature.shape[1:]))
        return {"logits": teacher_feature}

    def read(self, student: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Student's and teacher's logits in the working precision, standardised with `standardize`.

        Raises:
            ValueError: the class counts differ, or the target holds no logits of this batch.
        """
        teacher = target_tensor(target, "logits", student.shape[0])
        if teacher.shape != student.shape:
            raise ValueError(
                f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
            )
        dtype = working_dtype(student)
        pair = student.to(dtype), teacher.to(dtype)
        return (standardise(pair[0]), standardise(pair[1])) if self.standardize else pair

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the logits. Raises ValueError when the class counts differ."""
        if tuple(student_shape) != tuple(teacher_shape) or len(teacher_shape) != 1:
            raise ValueError(
                f"the student's logits are {tuple(student_shape)}, the teacher's {tuple(teacher_shape)} per image; "
                f"{type(self).__name__} needs both to be (classes,) with one number of classes"
            )
        return LossSpec("soft targets", {"logits": (teacher_shape[0],)}, 4 * self.rows * teacher_shape[0])


def expectation(p: Tensor, values: Tensor) -> Tensor:
    """Σ_c p_c · v_c of each row of `[R, classes]`, `[R]`; 0 · ∞ is 0, and an infinite value there gets no gradient."""
    return (p * values.masked_fill(p == 0, 0.0)).sum(dim=1)


def log_softmax_without(logits: Tensor, left_out: Tensor) -> Tensor:
    """Logarithm of the softmax over the classes that are not left out, `[R, classes]`; −∞ at those that are.

    In a row of which nothing is left all are −∞, without gradient.
    """
    kept = logits.masked_fill(left_out, -torch.inf)
    empty = (kept == -torch.inf).all(dim=1, keepdim=True)
    return F.log_softmax(kept.masked_fill(empty, 0.0), dim=1).masked_fill(left_out | empty, -torch.inf)


def log_binary(logits: Tensor, index: Tensor) -> Tensor:
    """Logarithms of (p_i, 1 − p_i), `[R, 2]`, of the softmax p of logits `[R, classes]` and one class of each row, `[R]`."""
    own = F.one_hot(index, logits.shape[1]).bool()
    logarithms = F.log_softmax(logits, dim=1)
    others = logarithms.masked_fill(own, -torch.inf)
    none = (others == -torch.inf).all(dim=1)
    rest = others.masked_fill(none[:, None], 0.0).logsumexp(dim=1).masked_fill(none, -torch.inf)
    return torch.stack((logarithms.gather(1, index[:, None])[:, 0], rest), dim=1)


class CrossEntropy(TransferLoss):
    """H(y, p_S) = −Σ_c y_c log softmax(z_S)[c], mean over the batch.

    `forward(logits, {"labels": labels})` with logits `[B, classes]` and int64 labels `[B]`, or `[B, classes]` probabilities of
    images that are mixtures.

    Args:
        label_smoothing: ε, 0 <= ε < 1: each class gets ε / classes of the target (Szegedy et al., 2016).

    Raises:
        ValueError: ε outside its range.
    """

    source: ClassVar[Literal["teacher", "labels"]] = "labels"
    on_logits: ClassVar[bool] = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; 0 (none) or more, and below 1, is needed")
        self.label_smoothing = float(label_smoothing)

    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """Raises TypeError: labels come from the data, not from a teacher."""
        raise TypeError("CrossEntropy has no teacher: pass {'labels': labels} as its target")

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy. Raises ValueError when the labels are missing or of another batch size."""
        labels = target_tensor(target, "labels", student_feature.shape[0])
        with no_autocast(student_feature):
            logits = student_feature.to(working_dtype(student_feature))
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Labels are no part of a teacher's target."""
        return LossSpec("cross-entropy", {}, 8 * student_shape[0])
