"""Hints (Romero et al., FitNets, 2015), method FitNet of the paper's tables."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import (
    LossSpec,
    MapLoss,
    Shape,
    check_choice,
    check_convention,
    check_map,
    check_shape,
    laid_out_like,
    no_autocast,
    resize_student,
    shared_size,
    target_tensor,
    working_dtype,
)

Regressor = Literal["conv1x1", "conv_bn_relu", "none"]


class FitNet(MapLoss):
    """½ · mean of (F_T − r(F_S))² over channels, positions and the batch; r is a 1×1 convolution to C_T channels.

    r is made by `setup`, is trained with the student and is no part of it. Without `setup` the features are compared as they
    are. That the paper uses one hint on the same layer with λ = 10² is recalled, unverified.

    Args:
        convention: "paper" and "official" (the official code has no FitNet): as above. "crd": without the ½ (CRD's
            benchmark, with regressor="conv_bn_relu"; Knowledge-Distillation-Zoo, with "none").
        regressor: "conv1x1" as above, at the student's map size. "conv_bn_relu", CRD's: a convolution to the teacher's map
            size, batch norm and ReLU; the convolution is 3×3 with stride 2 to half the size, a transposed 4×4 with stride 2 to twice
            the size, else of the size that leaves the teacher's map. "none": features are compared as they are.

    Raises:
        ValueError: an unknown convention or regressor; in `setup`, a teacher's map that is larger than the student's and
            not twice as large ("conv_bn_relu").
    """

    def __init__(
        self, convention: Literal["paper", "official", "crd"] = "paper", regressor: Regressor = "conv1x1"
    ) -> None:
        super().__init__()
        check_convention(convention)
        check_choice("regressor", regressor, get_args(Regressor))
        self.convention, self.own_size = convention, regressor == "conv_bn_relu"
        self.kind = regressor
        self.scale = 1.0 if convention == "crd" else 0.5
        self.regressor: nn.Module = nn.Identity()

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make r."""
        if self.kind == "conv1x1":
            self.regressor = nn.Conv2d(student_shape[0], teacher_shape[0], 1)
        elif self.kind == "conv_bn_relu":
            self.regressor = conv_bn_relu(student_shape, teacher_shape)

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H, W]` → scalar. Raises ValueError when channels (after r), sizes or batches differ."""
        check_map(student_feature, "student")
        teacher = target_tensor(target, "feature", student_feature.shape[0])
        student_feature = self.regressor(student_feature)
        with no_autocast(student_feature):
            student = student_feature
            if not self.own_size:
                student = resize_student(student, teacher.shape[2] * teacher.shape[3], self.convention)
            if student.shape != teacher.shape:
                raise ValueError(
                    f"the student's feature has shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
                    "FitNet compares equal shapes: call setup(student_shape, teacher_shape) first, which makes its regressor"
                )
            dtype = working_dtype(student_feature)
            return self.scale * F.mse_loss(student.to(dtype), laid_out_like(teacher.to(dtype), student))

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the feature itself, at the size of the comparison."""
        if self.own_size:
            convolution(student_shape, teacher_shape)
            height, width = teacher_shape[1:]
        else:
            height, width = shared_size(student_shape, teacher_shape, self.convention)
        channels = teacher_shape[0]
        if self.kind == "none" and student_shape[0] != channels:
            raise ValueError(
                f"regressor 'none' compares equal channels: the student has {student_shape[0]}, the teacher {channels}; "
                "take regressor 'conv1x1'"
            )
        return LossSpec("feature", {"feature": (channels, height, width)}, 8 * channels * height * width)


def convolution(student_shape: Shape, teacher_shape: Shape) -> dict[str, Any]:
    """How a convolution brings the student's map to the teacher's size, as CRD's benchmark has it."""
    check_shape(student_shape, "student")
    check_shape(teacher_shape, "teacher")
    (_, h_s, w_s), (_, h_t, w_t) = student_shape, teacher_shape
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        return {"kernel_size": 3, "stride": 2, "padding": 1}
    if (2 * h_s, 2 * w_s) == (h_t, w_t):
        return {"kernel_size": 4, "stride": 2, "padding": 1, "transposed": True}
    if h_s < h_t or w_s < w_t:
        raise ValueError(
            f"regressor 'conv_bn_relu' goes to a map of twice, the same or less the size: the student's map is {h_s}×{w_s}, "
            f"the teacher's {h_t}×{w_t}; take another pair of layers, or regressor 'conv1x1', which interpolates"
        )
    return {"kernel_size": (1 + h_s - h_t, 1 + w_s - w_t)}


def conv_bn_relu(student_shape: Shape, teacher_shape: Shape) -> nn.Module:
    """`[B, C_S, H_S, W_S]` → `[B, C_T, H_T, W_T]`."""
    options = convolution(student_shape, teacher_shape)
    kind = nn.ConvTranspose2d if options.pop("transposed", False) else nn.Conv2d
    channels = teacher_shape[0]
    return nn.Sequential(kind(student_shape[0], channels, **options), nn.BatchNorm2d(channels), nn.ReLU())
