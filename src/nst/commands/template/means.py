"""A loss of one's own, with parameters: they are trained, saved and resumed like the student's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nst.losses import Plan, Shape, TransferLoss


class MappedMeans(TransferLoss):
    """Mean squared difference of the channels' means, the student's through a linear map that is learned."""

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the map: shapes are (C, H, W)."""
        self.map = nn.Linear(student_shape[0], teacher_shape[0])

    @property
    def summary_key(self) -> str:
        """What the summary depends on: lets it be cached."""
        return "means"

    @torch.no_grad()
    def summarize(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The teacher's side: `[B, C, H, W]` to `means` `[B, C]`."""
        return {"means": teacher_feature.float().mean((2, 3))}

    def forward(self, student_feature: Tensor, summary: Mapping[str, Tensor]) -> Tensor:
        """The student's side: `[B, C, H, W]` to a scalar."""
        return (self.map(student_feature.float().mean((2, 3))) - summary["means"].float()).square().mean()

    def plan(self, student_shape: Shape, teacher_shape: Shape) -> Plan:
        """Name, shapes of the summary of one image, bytes of memory."""
        return Plan("means", {"means": (teacher_shape[0],)}, 8 * student_shape[0])
