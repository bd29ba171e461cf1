"""Hints (Romero et al., FitNets, 2015), method FitNet of the paper's tables."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import (
    Plan,
    Shape,
    TransferLoss,
    check_convention,
    check_map,
    no_autocast,
    resize_key,
    resize_student,
    resize_teacher,
    shared_size,
    summary_tensor,
    working_dtype,
)


class FitNet(TransferLoss):
    """½ · mean of (F_T − r(F_S))² over channels, positions and the batch; r is a 1×1 convolution to C_T channels.

    r is made by `setup`, is trained with the student and is no part of it. Without `setup` the features are compared as they
    are. That the paper uses one hint on the same layer with λ = 10² is recalled, unverified.

    Args:
        convention: "paper" and "official" (the official code has no FitNet): as above. "crd": without the ½. CRD's
            regressor also has a batch norm and a ReLU, and strides where sizes differ; here it is the convolution.

    Raises:
        ValueError: an unknown convention.
    """

    def __init__(self, convention: Literal["paper", "official", "crd"] = "paper") -> None:
        super().__init__()
        check_convention(convention)
        self.convention = convention
        self.scale = 1.0 if convention == "crd" else 0.5
        self.regressor: nn.Module = nn.Identity()

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make r."""
        self.regressor = nn.Conv2d(student_shape[0], teacher_shape[0], 1)

    @property
    def summary_key(self) -> str:
        """The feature, by how it is resized."""
        return f"feature-{resize_key(self.convention)}"

    @torch.no_grad()
    def summarize(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"feature": [B, C_T, H, W]}`, the teacher's map brought to the student's size.

        Raises:
            ValueError: a feature that is not [B, C, H, W]; under "crd", different aspect ratios.
        """
        return {"feature": resize_teacher(teacher_feature, student_shape, self.convention)}

    def forward(self, student_feature: Tensor, summary: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar. Raises ValueError when channels (after r), sizes or batches differ."""
        check_map(student_feature, "student")
        teacher = summary_tensor(summary, "feature", student_feature.shape[0])
        student_feature = self.regressor(student_feature)
        with no_autocast(student_feature):
            student = resize_student(student_feature, teacher.shape[2] * teacher.shape[3], self.convention)
            if student.shape != teacher.shape:
                raise ValueError(
                    f"the student's feature has shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
                    "FitNet compares equal shapes: call setup(student_shape, teacher_shape) first, which makes its regressor"
                )
            dtype = working_dtype(student_feature)
            return self.scale * F.mse_loss(student.to(dtype), teacher.to(dtype))

    def plan(self, student_shape: Shape, teacher_shape: Shape) -> Plan:
        """Summary: the feature itself, at the student's size."""
        height, width = shared_size(student_shape, teacher_shape, self.convention)
        channels = teacher_shape[0]
        return Plan("feature", {"feature": (channels, height, width)}, 8 * channels * height * width)
