"""Similarity-preserving knowledge distillation (Tung & Mori, ICCV 2019)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nst.losses.base import (
    LossSpec,
    MapLoss,
    Shape,
    check_map,
    check_shape,
    laid_out_like,
    no_autocast,
    target_tensor,
    working_dtype,
)


class SP(MapLoss):
    """‖Ĝ_T − Ĝ_S‖²_F / B² with G = F Fᵀ over the B images of the batch, F `[B, C·H·W]`, and Ĝ its rows at unit length.

    It relates images, so it sees the global batch, and its target is the map as it is. Channels and map sizes may differ. The setting of CRD's benchmark and
    mdistiller, and as recalled (unverified) of the paper: weight 3000, the last stage. Knowledge-Distillation-Zoo takes the mean over three stages;
    torchdistill's code scales rows to a sum of 1 instead.
    """

    relational: ClassVar[bool] = True

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H_S, W_S]` of the global batch → scalar; 0 for one image. Raises ValueError for another batch size."""
        check_map(student_feature, "student")
        teacher = target_tensor(target, "feature", student_feature.shape[0])
        check_map(teacher, "teacher")
        with no_autocast(student_feature):
            dtype = working_dtype(student_feature)
            with torch.no_grad():
                expected = similarities(laid_out_like(teacher, student_feature).to(dtype))
            return (similarities(student_feature.to(dtype)) - expected).square().mean()

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the teacher's map. Memory: the student's gradient."""
        check_shape(student_shape, "student")
        check_shape(teacher_shape, "teacher")
        channels, height, width = student_shape
        return LossSpec("feature", {"feature": tuple(teacher_shape)}, 4 * channels * height * width)


def similarities(feature: Tensor) -> Tensor:
    """`[B, C, H, W]` → products of the images, rows at unit length, `[B, B]`; an image of zeros has a row of zeros.

    A channels-last map is read in its own order of values, which the products do not depend on: nothing is copied.
    """
    last = feature.stride(1) == 1 and feature.stride(-1) != 1
    rows = (feature.movedim(1, -1) if last else feature).flatten(1)
    products = rows @ rows.T
    # The result does not change with the scale of all: dividing by the peak keeps squares within float32.
    peak = products.detach().abs().amax()
    products = products / torch.where(peak > 0, peak, 1.0)
    squared = products.square().sum(dim=1, keepdim=True)
    return products / torch.where(squared > 0, squared, 1.0).sqrt()
