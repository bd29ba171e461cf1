"""CAT-KD, class attention transfer (Guo, Yan, Li & Lin, Class Attention Transfer Based Knowledge Distillation, CVPR 2023)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import (
    LossSpec,
    Shape,
    TransferLoss,
    check_map,
    check_number,
    check_shape,
    no_autocast,
    target_tensor,
    unit_rows,
    working_dtype,
)


class CATKD(TransferLoss):
    """Mean of (n(pool M_S) − n(pool M_T))² over images, classes and positions; M the class activation maps `[B, classes, H, W]`.

    Layer `cam` of a network is its classifier at each position of its last map, without the bias. Both maps are average-pooled to
    r × r, and with `normalize` n scales each class's map to unit length; a map of zeros stays, without gradient.

    The authors' setting on CIFAR-100 (their code), weight beside a cross-entropy of weight 1, r 2: without `normalize` within a family,
    0.7 (ResNet-56 → 20), 15 (32x4 → 8x4), 12 (WRN-40-2 → 16-2), 4.5 (vgg13 → 8); with it across families, 600 and r 4 (32x4 →
    ShuffleNets), 80 and r 4 (WRN-40-2 → ShuffleNetV1), 15 (vgg13 → MobileNetV2), 40 (ResNet-50 → MobileNetV2). On ImageNet 0.5, r 4
    without (ResNet-34 → 18), 10, r 2 without (ResNet-50 → MobileNetV1).

    Args:
        resolution: r, at least 1.
        normalize: scale each class's map to unit length.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, resolution: int = 2, normalize: bool = True) -> None:
        super().__init__()
        check_number("resolution", resolution, least=1, whole=True)
        if not isinstance(normalize, bool):
            raise ValueError(f"normalize is {normalize!r}; it must be true or false")
        self.resolution, self.normalize = resolution, normalize

    @property
    def target_key(self) -> str:
        """The pooled maps, whether normalised or not."""
        return f"map-{self.resolution}x{self.resolution}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"maps": [B, classes, r, r]}`. Raises ValueError for a feature that is no map, or of another number of classes."""
        check_map(teacher_feature, "teacher")
        if student_shape is not None:
            self.spec(student_shape, tuple(teacher_feature.shape[1:]))
        with no_autocast(teacher_feature):
            return {"maps": self.pool(teacher_feature)}

    def pool(self, feature: Tensor) -> Tensor:
        """`[B, classes, H, W]` → `[B, classes, r, r]` in the working precision."""
        return F.adaptive_avg_pool2d(feature.to(working_dtype(feature)), self.resolution)

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, classes, H, W]` → scalar. Raises ValueError when classes, resolution or batch differ."""
        check_map(student_feature, "student")
        teacher = target_tensor(target, "maps", len(student_feature))
        with no_autocast(student_feature):
            student = self.pool(student_feature)
            if student.shape != teacher.shape:
                raise ValueError(
                    f"the student's maps have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)} after pooling"
                )
            a, b = (maps.to(student.dtype).flatten(2).flatten(0, 1) for maps in (student, teacher))
            return F.mse_loss(unit_rows(a), unit_rows(b)) if self.normalize else F.mse_loss(a, b)

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the pooled maps. Raises ValueError when the numbers of classes differ."""
        check_classes(student_shape, teacher_shape, "CAT-KD", "cam")
        classes, pooled = teacher_shape[0], (6 if self.normalize else 2) * self.resolution**2
        workspace = 4 * classes * (student_shape[1] * student_shape[2] + pooled)
        return LossSpec("pooled maps", {"maps": (classes, self.resolution, self.resolution)}, workspace)


def check_classes(student: Shape, teacher: Shape, name: str, layer: str) -> None:
    """Raises ValueError unless both shapes are maps (classes, H, W) of one number of classes."""
    check_shape(student, "student")
    check_shape(teacher, "teacher")
    if student[0] != teacher[0]:
        raise ValueError(
            f"the student's map has {student[0]} channels, the teacher's {teacher[0]}; {name} compares maps with one channel for each "
            f"class: take the layer {layer} of both networks"
        )
