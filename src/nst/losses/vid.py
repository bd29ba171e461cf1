"""Variational information distillation (Ahn, Hu, Damianou, Lawrence & Dai, CVPR 2019)."""

from math import expm1, log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import Shape, check_choice, check_numbers, made, no_autocast, resize_student
from nst.losses.maps import MapLoss


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
    """

    def __init__(
        self, initial_variance: float = 5.0, eps: float = 1e-5, convention: Literal["paper", "crd"] = "paper"
    ) -> None:
        super().__init__()
        check_numbers(above=0, initial_variance=initial_variance)
        check_numbers(above=0, below=initial_variance, eps=eps)
        check_choice("convention", convention, ("paper", "crd"))
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

    def project(self, student_feature: Tensor, teacher: Tensor) -> Tensor:
        """μ(F_S), `[B, C_T, H, W]`."""
        made(self.alpha, "VID learns μ and σ²")
        with no_autocast(student_feature):
            resized = resize_student(student_feature, teacher.shape[2] * teacher.shape[3], self.convention)
        return self.mean(resized)

    def value(self, mean: Tensor, teacher: Tensor) -> Tensor:
        """Of maps of one shape."""
        alpha = made(self.alpha, "VID learns μ and σ²").to(mean.dtype)
        variance = (F.softplus(alpha) + self.eps).view(1, -1, 1, 1)
        return 0.5 * (((mean - teacher).square() / variance).mean() + variance.log().mean())
