"""What every loss is, and cross-entropy; checks of arguments and of what is given; work on blocks of images; first derivatives.

On a CPU most of the time of an elementwise operation on a whole batch goes into touching fresh memory: blocks, whose temporaries stay
in the processor's cache, make NST's Gram implementation 1.5 times faster, and its extra memory little more than the gradient.
On a GPU, and inside a compiled graph, which fuses, the batch is one block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from math import inf, isfinite, prod, sqrt
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Convention = Literal["paper", "official", "crd"]
Shape = tuple[int, ...]
T = TypeVar("T")

Input = Literal["labels", "index", "epoch", "progress", "seed"]
"""What a loss may need besides the teacher's target: the images' labels `[B]` int64 and their positions in the training set `[B]`
int64; the epochs and the fraction of the run done so far (float32 scalars; an infinite number of epochs stands for no moment of a run,
where whatever rises or falls is at its full strength); a number for random draws, another one each step and the same on every rank
(int64 scalar on the CPU)."""
BY_IMAGE: tuple[Input, ...] = ("labels", "index")


class TransferLoss(nn.Module, ABC):
    """A loss in two steps: `target = loss.target(teacher_feature)`, `value = loss(student_feature, target)`.

    Features are `[B, C, H, W]`, logits `[B, classes]`. A target is a dictionary of tensors whose first dimension is the batch; it may be
    cached in half precision. Values are means over the batch, computed in float32 (float64 for float64 features) whatever the autocast
    state, and carry no weight λ. `forward` raises ValueError where shapes or batches differ or the target lacks what it needs, a
    constructor, naming the argument, where one is out of the range that `Args` states.

    A loss declares its properties by class attributes. Parameters and buffers, created in `__init__`, `setup` or `init_memory`, are
    optimised, synchronised over ranks and kept in checkpoints, but are no part of the exported student. Each pair of layers has its own
    instance.
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
    instance for all pairs. `target` and `target_shapes` are still of one layer."""
    normalises_maps: ClassVar[bool] = False
    """It compares maps scaled to unit length over the positions, so a map of 1×1 carries no information."""
    teacher_layer: ClassVar[str | None] = None
    """A layer of the teacher of which the loss needs something over the whole training set; see `teacher_statistics`."""

    @property
    def target_key(self) -> str | None:
        """Everything that the target depends on besides shapes: losses with equal keys share cached tensors of one name.

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
    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The shape of each tensor of one image's target, for the shapes of `setup`.

        Raises:
            ValueError: the two cannot be compared; a run then stops before any work.
        """

    def given(self, target: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
        """What `inputs` names, out of a target that it was added to. Raises ValueError as `target_tensor` does."""
        return {name: target_tensor(target, name, batch if name in BY_IMAGE else None) for name in self.inputs}


class ReducedLoss(TransferLoss):
    """A loss between what `reduce` makes of either side's feature: one tensor, named `key`, with a row for each image.

    `value(student, teacher, **what inputs names)` compares the two in the working precision.
    """

    key: ClassVar[str]
    same_shape: ClassVar[bool] = True
    """Only tensors of one shape can be compared."""
    value: Callable[..., Tensor]

    @property
    def target_key(self) -> str:
        """The tensor's name, where `reduce` does not depend on settings."""
        return self.key

    @abstractmethod
    def reduce(self, feature: Tensor, owner: str) -> Tensor:
        """Of the "student" or "teacher". Raises ValueError for a feature of other dimensions."""

    def prepare(self, reduced: Tensor) -> Tensor:
        """What `value` gets, of either side."""
        return reduced

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The teacher's side. Raises ValueError as `reduce` and `target_shapes` do."""
        if student_shape is not None:
            self.target_shapes(student_shape, tuple(teacher_feature.shape[1:]))
        with no_autocast(teacher_feature):
            return {self.key: self.reduce(teacher_feature, "teacher")}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """A feature as `reduce` takes it → scalar."""
        teacher, dtype = target_tensor(target, self.key, len(student_feature)), working_dtype(student_feature)
        given = self.given(target, len(student_feature))
        with no_autocast(student_feature):
            student = self.reduce(student_feature, "student")
            if self.same_shape:
                check_equal(student, teacher)
            return self.value(self.prepare(student.to(dtype)), self.prepare(teacher.to(dtype)), **given)


class CrossEntropy(TransferLoss):
    """H(y, p_S) = −Σ_c y_c log softmax(z_S)[c], mean over the batch.

    `forward(logits, {"labels": labels})` with logits `[B, classes]` and int64 labels `[B]`, or `[B, classes]` probabilities of
    images that are mixtures.

    Args:
        label_smoothing: ε, 0 <= ε < 1: each class gets ε / classes of the target (Szegedy et al., 2016).
    """

    source: ClassVar[Literal["teacher", "labels"]] = "labels"
    on_logits: ClassVar[bool] = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_numbers(least=0, below=1, label_smoothing=label_smoothing)
        self.label_smoothing = float(label_smoothing)

    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """Raises TypeError: labels come from the data, not from a teacher."""
        raise TypeError("CrossEntropy has no teacher: pass {'labels': labels} as its target")

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy."""
        labels = target_tensor(target, "labels", student_feature.shape[0])
        with no_autocast(student_feature):
            logits = student_feature.to(working_dtype(student_feature))
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """Labels are no part of a teacher's target."""
        return {}


def check_choice(name: str, value: str | bool, allowed: Sequence[str | bool]) -> None:
    """Raises ValueError, naming the argument, unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, allowed))}")


def check_numbers(
    *, least: float = -inf, above: float = -inf, below: float = inf, whole: bool = False, **values: float
) -> None:
    """Raises ValueError, naming the argument, unless each of `values` is a finite number, at least `least`, more than `above` and
    less than `below`; `whole`: an int."""
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
        raise ValueError(f"the target holds {sorted(target)}, not {name!r} of its own target or added to it")
    value = target[name]
    if batch is not None and (value.ndim == 0 or value.shape[0] != batch):
        raise ValueError(f"target {name!r} has shape {tuple(value.shape)}; the student's batch is {batch} images")
    return value


def made(value: T | None) -> T:
    """What `setup` makes. Raises ValueError if it was not called."""
    if value is None:
        raise ValueError("call setup(student_shape, teacher_shape) first: it makes what the loss learns")
    return value


def check_equal(student: Tensor, teacher: Tensor) -> None:
    """Raises ValueError unless the two have one shape."""
    if student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher)"
        raise ValueError(f"shapes {shapes} must be equal; a loss with parameters: call setup first")


def check_map(feature: Tensor, owner: str, dimensions: Sequence[int] = (4,)) -> None:
    """Raises ValueError unless `feature` is a floating [B, C, H, W] tensor that holds something; `dimensions` may allow 2, [B, C]."""
    if feature.ndim not in dimensions or not feature.is_floating_point() or feature.numel() == 0:
        needed = " or ".join("[B, C, H, W]" if n == 4 else "[B, C]" for n in dimensions)
        found = f"{feature.dtype} of shape {tuple(feature.shape)}"
        raise ValueError(f"the {owner}'s feature is {found}; {needed} is needed, floating point and not empty")


def map_shapes(student: Shape, teacher: Shape, vectors: bool = False) -> tuple[Shape, Shape]:
    """Both as (C, H, W), with `vectors` (C,) as (C, 1, 1). Raises ValueError for another shape."""
    shapes = []
    for owner, shape in (("student", student), ("teacher", teacher)):
        shapes.append((*shape, 1, 1) if vectors and len(shape) == 1 else tuple(shape))
        if len(shapes[-1]) != 3 or min(shape) < 1:
            raise ValueError(f"the {owner}'s shape is {tuple(shape)}; (C, H, W) is needed, each at least 1")
    return shapes[0], shapes[1]


def working_dtype(feature: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if feature.dtype == torch.float64 else torch.float32


def no_autocast(feature: Tensor) -> torch.autocast:
    """Context in which autocast leaves the precision alone."""
    return torch.autocast(feature.device.type, enabled=False)


def warmup_factor(epoch: Tensor | None, epochs: float) -> Tensor | float:
    """min(1, e / epochs) in the e-th epoch, counted from 1: how mdistiller raises a loss. 1 without an `epoch`."""
    return 1.0 if epoch is None else ((epoch.floor() + 1) / epochs).clamp(max=1.0)


def laid_out_like(tensor: Tensor, feature: Tensor) -> Tensor:
    """A map `[B, C, H, W]` or `[B, C, N]` in the memory order of the student's `feature` (itself where it already is).

    What comes from a cache is contiguous, what comes from a network may be channels last, and the order of the sums of a
    matrix product, and with it the last bit, depends on that.
    """
    if feature.stride(1) != 1 or feature.stride(-1) == 1:
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def shared_size(student: Shape, teacher: Shape, convention: str) -> tuple[int, int]:
    """The (H, W) at which maps (C, H, W) are compared: the student's; under "crd" the smaller one's.

    Raises:
        ValueError: a shape is not (C, H, W), or under "crd" the aspect ratios differ.
    """
    (_, h_s, w_s), (_, h_t, w_t) = map_shapes(student, teacher)
    if convention != "crd":
        return h_s, w_s
    if h_s * w_t != h_t * w_s:
        raise ValueError(
            f"maps of {h_s}×{w_s} (student) and {h_t}×{w_t} (teacher) differ in aspect ratio: convention 'paper' can compare them"
        )
    return min(h_s, h_t), min(w_s, w_t)


def resize_teacher(feature: Tensor, student_shape: Shape | None, convention: str) -> Tensor:
    """The teacher's map at the size of the comparison: bilinear ("crd": adaptive average pooling)."""
    check_map(feature, "teacher")
    teacher_shape = tuple(feature.shape[1:])
    size = shared_size(student_shape or teacher_shape, teacher_shape, convention)
    if size == teacher_shape[1:]:
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
            f"the target has {positions} positions, the student's map {height}×{width}: pass student_shape=(C, H, W) to target"
        )
    with no_autocast(feature):
        return F.adaptive_avg_pool2d(feature.to(working_dtype(feature)), size)


def pool(feature: Tensor, owner: str) -> Tensor:
    """`[B, C, H, W]` → its mean over positions `[B, C]` in the working precision; `[B, C]` stays. Raises ValueError for others."""
    check_map(feature, owner, (4, 2))
    dtype = working_dtype(feature)
    return feature.to(dtype) if feature.ndim == 2 else feature.mean(dim=(2, 3), dtype=dtype)


def unit_rows(x: Tensor, eps: float = 0.0) -> Tensor:
    """x / (‖x‖₂ + eps) of each row of `[B, C]`; a row of zeros stays, and gets no gradient. Large rows do not overflow."""
    peak = x.detach().abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak == 0, 1.0, peak)
    x = x / scale
    length = torch.where(peak == 0, 1.0, x.square().sum(dim=1, keepdim=True)).sqrt()
    return x / (length + eps / scale)


CACHE_BYTES = 3 << 20  # one block's channel maps on a CPU


def blocks_of(batch: int, bytes_per_image: int, limit: int) -> list[slice]:
    """Slices of as many images as fit into `limit` bytes, at least one."""
    step = max(1, limit // bytes_per_image)
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def image_blocks(x: Tensor, channels: int | None = None) -> list[slice]:
    """Slices of the batch for maps of the shape `[B, channels, N]`, by default x's own channels."""
    batch, own, n = x.shape
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, batch)]
    return blocks_of(batch, (channels or own) * n * max(4, x.element_size()), CACHE_BYTES)


def join(pieces: list[Tensor]) -> Tensor:
    """The blocks' results as one batch."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def map_blocks(
    x: Tensor, dtype: torch.dtype, blocks: list[slice], compute: Callable[[slice, Tensor | None], Tensor]
) -> Tensor:
    """`compute(block, out)` for each block as one tensor of x's shape, laid out in memory like x.

    `out`, unless it is None, is where the result may be written at once, as with torch's own `out=`.
    """
    if len(blocks) == 1:
        return compute(blocks[0], None).to(dtype)
    result = torch.empty_like(x, dtype=dtype)
    direct = dtype == working_dtype(x)
    for block in blocks:
        values = compute(block, result[block] if direct else None)
        if not direct:
            result[block] = values
    return result


FACTOR = -7046029254386353131  # 2⁶⁴ over the golden ratio, odd


def random_keys(seed: Tensor, rows: Tensor, count: int) -> Tensor:
    """Whole numbers from 0 to 2⁶³ − 1 that depend on seed, row and column alone: `[b, 1]` rows → `[b, count]` int64.

    Rows and columns are mixed well, each on its own, and combined by one product: int64 wraps round.
    """
    seed = mix(seed.to(torch.int64))
    columns = mix(seed + torch.arange(count, device=rows.device))
    return (mix(seed ^ mix(rows)) ^ columns).mul_(FACTOR).bitwise_and_(0x7FFFFFFFFFFFFFFF)


def mix(x: Tensor) -> Tensor:
    """A bijection of int64 after which nothing of the order is left: SplitMix64's (Steele, Lea & Flood, 2014)."""
    x = x * FACTOR + 1442695040888963407
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x


class Refuse(torch.autograd.Function):
    """The identity of its first argument, depending on the others too; its own backward pass raises."""

    @staticmethod
    def forward(ctx, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        raise NotImplementedError(
            "a second derivative of this loss (a gradient penalty, create_graph=True): it has first derivatives only"
        )


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the `backward` of an autograd function: whoever differentiates its result gets a NotImplementedError.

    torch's `once_differentiable` raises only where the incoming gradient itself needs a gradient. In a gradient penalty
    it is a constant, and the second derivatives are then silently missing. The function must save its differentiable inputs
    (`ctx.save_for_backward`): the result is made to depend on them.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *gradients: Tensor) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *gradients)  # a compiled graph refuses second derivatives itself
        inputs = [t for t in (*ctx.saved_tensors, *gradients) if isinstance(t, Tensor) and t.requires_grad]
        with torch.no_grad():
            result = backward(ctx, *gradients)
        results = result if isinstance(result, tuple) else (result,)
        return tuple(Refuse.apply(r, *inputs) if isinstance(r, Tensor) else r for r in results)

    return wrapped
