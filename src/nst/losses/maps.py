"""Feature maps: checks, the size at which two of them are compared, pooling, and the base of losses whose target is a map."""

from collections.abc import Callable, Mapping
from math import prod, sqrt
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import LossSpec, Shape, TransferLoss, no_autocast, target_tensor, working_dtype

FEATURE_KEY = "feature-as-it-is"
"""`target_key` of the losses whose target is the teacher's map at its own size: they share it in a cache."""


def check_map(feature: Tensor, owner: str, or_vector: bool = False) -> None:
    """Raises ValueError unless `feature` is a floating [B, C, H, W] tensor, or with `or_vector` [B, C], that holds something."""
    dimensions = (4, 2) if or_vector else (4,)
    if feature.ndim not in dimensions or not feature.is_floating_point() or feature.numel() == 0:
        raise ValueError(
            f"the {owner}'s feature is {feature.dtype} of shape {tuple(feature.shape)}; "
            f"[B, C, H, W]{' or [B, C]' * or_vector} is needed, floating point and not empty"
        )


def check_shape(shape: Shape, owner: str) -> None:
    """Raises ValueError unless `shape` is (C, H, W) with positive sizes."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"the {owner}'s shape is {tuple(shape)}; a map loss needs (C, H, W), each at least 1")


def check_shapes(student: Shape, teacher: Shape) -> None:
    """Raises ValueError as `check_shape` does, for either side."""
    check_shape(student, "student")
    check_shape(teacher, "teacher")


def map_shape(shape: Shape, owner: str) -> Shape:
    """(C, H, W), of a vector (C, 1, 1). Raises ValueError for other shapes."""
    shape = (*shape, 1, 1) if len(shape) == 1 else shape
    check_shape(shape, owner)
    return shape


def laid_out_like(tensor: Tensor, feature: Tensor) -> Tensor:
    """A map `[B, C, H, W]` or `[B, C, N]` in the memory order of the student's `feature` (itself where it already is).

    What comes from a cache is contiguous, what comes from a network may be channels last, and the order of the sums of a
    matrix product, and with it the last bit, depends on that.
    """
    if feature.stride(1) != 1 or feature.stride(-1) == 1:
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def pool(feature: Tensor, owner: str) -> Tensor:
    """`[B, C, H, W]` → its mean over positions `[B, C]` in the working precision; `[B, C]` stays.

    Raises:
        ValueError: another number of dimensions, not floating point, or empty.
    """
    check_map(feature, owner, or_vector=True)
    dtype = working_dtype(feature)
    return feature.to(dtype) if feature.ndim == 2 else feature.mean(dim=(2, 3), dtype=dtype)


def unit_rows(x: Tensor, eps: float = 0.0) -> Tensor:
    """x / (‖x‖₂ + eps) of each row of `[B, C]`; a row of zeros stays, and gets no gradient. Large rows do not overflow."""
    peak = x.detach().abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak == 0, 1.0, peak)
    x = x / scale
    length = torch.where(peak == 0, 1.0, x.square().sum(dim=1, keepdim=True)).sqrt()
    return x / (length + eps / scale)


def shared_size(student: Shape, teacher: Shape, convention: str) -> tuple[int, int]:
    """The (H, W) at which two maps are compared: the student's; under "crd" the smaller one's.

    Args:
        student: (C, H, W) of the student's feature.
        teacher: (C, H, W) of the teacher's.
        convention: "paper", "official" or "crd".

    Raises:
        ValueError: a shape is not (C, H, W), or under "crd" the aspect ratios differ.
    """
    check_shapes(student, teacher)
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
    """A loss whose target is the teacher's map: as it is (`own_size`), or at the size of the comparison by `convention`.

    `project(student_feature, teacher, **what inputs names)` brings the student's map to the teacher's shape, in the precision of autocast;
    `value(student, teacher)` compares the two in the working precision.
    """

    project: Callable[..., Tensor]
    value: Callable[..., Tensor]
    own_size: bool = True
    convention: str = "paper"
    maps: ClassVar[int] = 2
    """About how many maps of the target's size its forward and backward pass hold at once."""

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

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar.

        Raises:
            ValueError: before `setup`; channels, sizes or batches differ; the target is of another loss.
        """
        check_map(student_feature, "student")
        batch = len(student_feature)
        teacher = target_tensor(target, "feature", batch)
        projected = self.project(student_feature, teacher, **self.given(target, batch))
        if projected.shape != teacher.shape:
            raise ValueError(
                f"the student's feature has shape {tuple(projected.shape)}, the teacher's {tuple(teacher.shape)}; {type(self).__name__} "
                "compares equal shapes: call setup(student_shape, teacher_shape) with those of these features"
            )
        with no_autocast(student_feature):
            dtype = working_dtype(student_feature)
            return self.value(projected.to(dtype), laid_out_like(teacher, projected).to(dtype))

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the teacher's map, at the size of the comparison. Memory: maps of that size."""
        check_shapes(student_shape, teacher_shape)
        size = teacher_shape[1:] if self.own_size else shared_size(student_shape, teacher_shape, self.convention)
        shape = (teacher_shape[0], *size)
        return LossSpec("feature", {"feature": shape}, 4 * self.maps * prod(shape))
