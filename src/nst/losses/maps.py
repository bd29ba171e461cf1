"""The base of losses whose target is a feature map."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nst.losses.base import (
    Shape,
    TransferLoss,
    check_map,
    check_shapes,
    laid_out_like,
    no_autocast,
    resize_key,
    resize_teacher,
    shared_size,
    target_tensor,
    working_dtype,
)

FEATURE_KEY = "feature-as-it-is"
"""`target_key` of the losses whose target is the teacher's map at its own size: they share it in a cache."""


class MapLoss(TransferLoss):
    """A loss whose target is the teacher's map: as it is (`own_size`), or at the size of the comparison by `convention`.

    `project(student_feature, teacher, **what inputs names)` brings the student's map to the teacher's shape, in the precision of autocast;
    `value(student, teacher)` compares the two in the working precision.
    """

    project: Callable[..., Tensor]
    value: Callable[..., Tensor]
    own_size: bool = True
    convention: str = "paper"

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

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The teacher's map, at the size of the comparison."""
        check_shapes(student_shape, teacher_shape)
        size = teacher_shape[1:] if self.own_size else shared_size(student_shape, teacher_shape, self.convention)
        return {"feature": (teacher_shape[0], *size)}
