"""Variational information distillation (Ahn, Hu, Damianou, Lawrence & Dai, CVPR 2019)."""

from collections.abc import Mapping
from math import expm1, log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import (
    LossSpec,
    MapLoss,
    Shape,
    check_convention,
    check_map,
    check_number,
    laid_out_like,
    no_autocast,
    resize_student,
    shared_size,
    target_tensor,
    working_dtype,
)


class VID(MapLoss):
    """mean over channels, positions and the batch of ½ · ((F_T − μ(F_S))² / σ² + log σ²): −log N(F_T; μ(F_S), σ²) less a constant.

    μ is three 1×1 convolutions without bias to C_T channels, a ReLU between each two; σ² = log(1 + e^α) + ε, one a channel. Both are
    made by `setup` and trained with the student. The paper sums over channels and positions (recalled, unverified); the mean is the code's. Not bounded
    below by 0, and at its minimum log σ² is the log of the error left.

    The setting of CRD's benchmark and of mdistiller: weight 1, every stage (`layers` with one entry for each). In
    mdistiller α stays at its first value: it isn't among the parameters that are optimised.

    Args:
        initial_variance: σ² at the start.
        eps: ε, above 0 and below initial_variance.
        convention: maps of different size: "paper" interpolates the teacher's to the student's size, "crd" average-pools the
            larger one.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self, initial_variance: float = 5.0, eps: float = 1e-5, convention: Literal["paper", "crd"] = "paper"
    ) -> None:
        super().__init__()
        check_number("initial_variance", initial_variance, above=0)
        check_number("eps", eps, above=0, below=initial_variance)
        check_convention(convention, ("paper", "crd"))
        self.convention, self.own_size, self.eps = convention, False, eps
        excess = initial_variance - eps
        self.initial_alpha = log(expm1(excess)) if excess < 30 else excess
        self.mean: nn.Module = nn.Identity()
        self.alpha: Tensor | None = None

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make μ and α."""
        student_channels, teacher_channels = student_shape[0], teacher_shape[0]
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        self.alpha = nn.Parameter(torch.full((teacher_channels,), self.initial_alpha))

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar. Raises ValueError before `setup`, and when channels, sizes or batches differ."""
        check_map(student_feature, "student")
        teacher = target_tensor(target, "feature", student_feature.shape[0])
        if self.alpha is None:
            raise ValueError("VID learns μ and σ²: call setup(student_shape, teacher_shape) first")
        with no_autocast(student_feature):
            student_feature = resize_student(student_feature, teacher.shape[2] * teacher.shape[3], self.convention)
        mean = self.mean(student_feature)
        if mean.shape != teacher.shape:
            raise ValueError(
                f"the student's feature becomes {tuple(mean.shape)}, the teacher's is {tuple(teacher.shape)}; "
                "call setup with the shapes of these features"
            )
        with no_autocast(student_feature):
            dtype = working_dtype(student_feature)
            variance = (F.softplus(self.alpha.to(dtype)) + self.eps).view(1, -1, 1, 1)
            error = (mean.to(dtype) - laid_out_like(teacher.to(dtype), mean)).square()
            return 0.5 * ((error / variance).mean() + variance.log().mean())

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the feature itself, at the size of the comparison. Memory: μ's inner maps and their gradients."""
        height, width = shared_size(student_shape, teacher_shape, self.convention)
        teacher_channels = teacher_shape[0]
        return LossSpec(
            "feature", {"feature": (teacher_channels, height, width)}, 4 * 10 * teacher_channels * height * width
        )
