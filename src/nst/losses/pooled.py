"""Base class of the losses on pooled features: the mean over positions, one vector an image."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nst.losses.base import LossSpec, Shape, TransferLoss, check_shape, no_autocast, target_tensor, working_dtype


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
        check_shape(student_shape, "student")
        check_shape(teacher_shape, "teacher")
        return LossSpec("pooled", {"pooled": (teacher_shape[0],)}, 16 * (student_shape[0] + teacher_shape[0]))
