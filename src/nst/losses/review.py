"""Knowledge review, ReviewKD (Chen, Liu, Zhao & Jia, CVPR 2021)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import (
    Shape,
    check_choice,
    check_map,
    check_numbers,
    laid_out_like,
    map_shapes,
    no_autocast,
    target_tensor,
    warmup_factor,
    working_dtype,
)
from nst.losses.maps import MapLoss


class ReviewKD(MapLoss):
    """min(1, epoch / warmup) · Σ over stages of the distance of the fused student's map to the teacher's.

    The student's maps are gone through from the deepest up (residual form). A stage's map goes through a 1×1 convolution to m
    channels; what came from the stage below is enlarged to its size (nearest) and both are added, weighted at each
    position by two attention maps, the sigmoid of a 1×1 convolution of both. The sum, at the size of the teacher's map, goes up to the
    next stage, and through a 3×3 convolution to the teacher's channels. The distance (hierarchical context loss) is the mean
    squared difference of the maps and of their averages over 4×4, 2×2 and 1×1 cells where the map is larger, weighted
    1, ½, ¼, ⅛ and divided by the sum of these weights. Convolutions are without bias and followed by a batch norm.

    All layers are one loss; name them from the first layer to the last. A vector counts as a map of 1×1.

    Args:
        warmup: epochs over which the value rises; counted from 1, so that the first epoch has 1 / warmup, as in mdistiller (in the
            authors' code from 0). 0: none.
        pooled: add the average over positions of the last pair's maps as the deepest stage: for networks whose pooled vector has
            no name.
        channels: m is the student's channels of the deepest stage, at most this.
    """

    all_layers: ClassVar[bool] = True

    def __init__(self, warmup: float = 20, pooled: bool = True, channels: int = 512) -> None:
        super().__init__()
        check_numbers(least=0, warmup=warmup)
        check_numbers(least=1, whole=True, channels=channels)
        check_choice("pooled", pooled, (True, False))
        self.warmup, self.pooled, self.channels = warmup, pooled, channels
        self.inputs = ("epoch",) if warmup else ()
        self.stages = nn.ModuleList()

    def setup(self, student_shape: Sequence[Shape], teacher_shape: Sequence[Shape]) -> None:
        """Make the fusing modules, one a stage. Takes lists of shapes (C, H, W) or (C,), from the first layer to the last."""
        pairs = [map_shapes(*pair, vectors=True) for pair in zip(student_shape, teacher_shape, strict=True)]
        if self.pooled:
            pairs.append(pairs[-1])
        inner, last = min(self.channels, pairs[-1][0][0]), len(pairs) - 1
        self.stages = nn.ModuleList(
            Fusion(student[0], inner, teacher[0], fuse=k < last) for k, (student, teacher) in enumerate(pairs)
        )

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"feature": [B, C_T, H_T, W_T]}` or `[B, C_T]` of one layer. Raises ValueError for other dimensions."""
        check_map(as_map(teacher_feature), "teacher")
        return {"feature": teacher_feature}

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, student_feature: Sequence[Tensor], target: Sequence[Mapping[str, Tensor]]
    ) -> Tensor:
        """Lists of `[B, C, H, W]` or `[B, C]` and of targets, from the first layer to the last → scalar."""
        students = [as_map(feature) for feature in student_feature]
        if len(students) + self.pooled != len(self.stages) or len(target) != len(students):
            found = f"{len(students)} layers and {len(target)} targets for {len(self.stages)} stages"
            raise ValueError(f"{found}: call setup([student shapes], [teacher shapes]) of all layers first")
        teachers = [
            laid_out_like(as_map(target_tensor(teacher_target, "feature", len(student))), student)
            for teacher_target, student in zip(target, students, strict=True)
        ]
        if self.pooled:
            students.append(students[-1].mean(dim=(2, 3), keepdim=True))
            teachers.append(teachers[-1].to(working_dtype(teachers[-1])).mean(dim=(2, 3), keepdim=True))
        total, below = torch.zeros((), device=students[0].device), None
        for stage, student, teacher in zip(reversed(self.stages), reversed(students), reversed(teachers), strict=True):
            fused, below = stage(student, below, tuple(teacher.shape[2:]))
            total = total + pyramid_distance(fused, teacher)
        given = self.given(target[0], len(students[0]))
        return warmup_factor(given.get("epoch"), self.warmup) * total

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The teacher's map, of one layer."""
        map_shapes(student_shape, teacher_shape, vectors=True)
        return {"feature": tuple(teacher_shape)}


def as_map(feature: Tensor) -> Tensor:
    """`[B, C]` → `[B, C, 1, 1]`; others stay."""
    return feature[:, :, None, None] if feature.ndim == 2 else feature


class Fusion(nn.Module):
    """Attention-based fusion of a stage's map with what came from the stage below it."""

    def __init__(self, channels: int, inner: int, out: int, fuse: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.leave = nn.Sequential(nn.Conv2d(inner, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))
        self.attention = nn.Sequential(nn.Conv2d(2 * inner, 2, 1), nn.Sigmoid()) if fuse else None
        for block in (self.enter, self.leave):
            nn.init.kaiming_uniform_(block[0].weight, a=1)  # type: ignore[arg-type]

    def forward(self, x: Tensor, below: Tensor | None, size: Shape) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` → `[B, out, *size]` and what goes to the stage above, `[B, inner, *size]`."""
        x = self.enter(x)
        if self.attention is not None and below is not None:
            below = F.interpolate(below, size=x.shape[2:])
            weights = self.attention(torch.cat((x, below), dim=1))
            x = x * weights[:, :1] + below * weights[:, 1:]
        if tuple(x.shape[2:]) != size:
            x = F.interpolate(x, size=size)
        return self.leave(x), x


def pyramid_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two maps `[B, C, H, W]` and of their pooled maps, see `ReviewKD`.

    Which pooled maps there are is decided by H alone, as in the published codes.
    """
    with no_autocast(student):
        dtype = working_dtype(student)
        difference = student.to(dtype) - laid_out_like(teacher, student).to(dtype)
        value, weight, total = difference.square().mean(), 1.0, 1.0
        for side in (4, 2, 1):  # each at half the weight of the one before
            if side < difference.shape[2]:
                weight /= 2
                total += weight
                value = value + weight * F.adaptive_avg_pool2d(difference, side).square().mean()
        return value / total
