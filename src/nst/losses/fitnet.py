"""Hints (Romero et al., FitNets, 2015), method FitNet of the paper's tables."""

from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import Convention, Shape, check_choice, check_shapes, no_autocast, resize_student
from nst.losses.maps import MapLoss

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

    def __init__(self, convention: Convention = "paper", regressor: Regressor = "conv1x1") -> None:
        super().__init__()
        check_choice("convention", convention, get_args(Convention))
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

    def project(self, student_feature: Tensor, teacher: Tensor) -> Tensor:
        """r(F_S), `[B, C_T, H, W]`."""
        regressed = self.regressor(student_feature)
        if self.own_size:
            return regressed
        with no_autocast(student_feature):
            return resize_student(regressed, teacher.shape[2] * teacher.shape[3], self.convention)

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of maps of one shape."""
        return self.scale * F.mse_loss(student, teacher)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The teacher's map, at the size of the comparison. Raises ValueError where r does not fit."""
        if self.own_size:
            convolution(student_shape, teacher_shape)
        elif self.kind == "none" and student_shape[0] != teacher_shape[0]:
            raise ValueError(
                f"regressor 'none' compares equal channels: the student has {student_shape[0]}, the teacher {teacher_shape[0]}; "
                "take regressor 'conv1x1'"
            )
        return super().target_shapes(student_shape, teacher_shape)


def convolution(student_shape: Shape, teacher_shape: Shape) -> dict[str, Any]:
    """How a convolution brings the student's map to the teacher's size, as CRD's benchmark has it."""
    check_shapes(student_shape, teacher_shape)
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
