"""A loss of one's own, with parameters: they are trained, saved and resumed like the student's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nst.losses import LossSpec, Shape, TransferLoss


class MappedMeans(TransferLoss):
    """Mean squared difference of the channels' means, the student's through a linear map that is learned."""

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the map: shapes are (C, H, W)."""
        self.map = nn.Linear(student_shape[0], teacher_shape[0])

    @property
    def target_key(self) -> str:
        """What the target depends on: lets it be cached."""
        return "means"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The teacher's side: `[B, C, H, W]` to `means` `[B, C]`."""
        return {"means": teacher_feature.float().mean((2, 3))}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """The student's side: `[B, C, H, W]` to a scalar."""
        return (self.map(student_feature.float().mean((2, 3))) - target["means"].float()).square().mean()

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Name, shapes of the target of one image, bytes of memory."""
        return LossSpec("means", {"means": (teacher_shape[0],)}, 8 * student_shape[0])
