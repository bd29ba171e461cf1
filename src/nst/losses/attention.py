"""Attention transfer (Zagoruyko & Komodakis, 2017), method AT of the paper's tables."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nst.losses.base import (
    Plan,
    Shape,
    TransferLoss,
    check_convention,
    check_map,
    check_number,
    no_autocast,
    resize_key,
    resize_student,
    resize_teacher,
    shared_size,
    summary_tensor,
    working_dtype,
)
from nst.losses.first_order import first_order
from nst.losses.mmd.blocks import image_blocks, join


class PowerSum(torch.autograd.Function):
    """[B, C, N] → Σ_c |x_c|^p as [B, N], in the working precision; temporaries are of a block's size."""

    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.p = p
        return join([power_sum(x[block].to(working_dtype(x)), p) for block in image_blocks(x)])

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        per_position = (ctx.p * grad).unsqueeze(1)
        if ctx.p == 2:
            return (x * per_position).to(x.dtype), None
        magnitude = x.abs().to(grad.dtype).pow(ctx.p - 1)
        return (x.sign() * magnitude * per_position).to(x.dtype), None


def power_sum(x: Tensor, p: float) -> Tensor:
    """Σ_c |x_c|^p, `[B, C, N]` → `[B, N]`."""
    return (x * x if p == 2 else x.abs().pow(p)).sum(dim=1)


def attention_map(feature: Tensor, p: float = 2.0) -> Tensor:
    """Σ_c |F_c|^p over channels, scaled to unit length over positions: `[B, C, H, W]` → `[B, H·W]`.

    A map that is zero everywhere gives zeros, and no gradient.
    """
    with no_autocast(feature):
        power: Tensor = PowerSum.apply(feature.flatten(2), p)  # type: ignore[assignment]
        # The result does not change with the map's scale: dividing by its peak keeps squares within float32.
        peak = power.detach().amax(dim=1, keepdim=True)
        power = power / torch.where(peak > 0, peak, 1.0)
        length = torch.linalg.vector_norm(power, dim=1, keepdim=True)
        return power / torch.where(peak > 0, length, 1.0)


class AT(TransferLoss):
    """½ · mean over positions of (a_T − a_S)², a = Σ_c |F_c|^p / ‖Σ_c |F_c|^p‖₂; mean over the batch.

    The compared paper states weight λ = 10³ [recalled, unverified]; Zagoruyko & Komodakis write β/2 · ‖a_T − a_S‖ and
    say that β is 10³ divided by the number of positions and the batch size, which is the mean taken here.

    Args:
        p: the power, at least 1.
        convention: "paper" and "official" (the official code has no AT): as above. "crd": without the ½.

    Raises:
        ValueError: p < 1 or an unknown convention.
    """

    normalises_maps = True

    def __init__(self, p: float = 2.0, convention: Literal["paper", "official", "crd"] = "paper") -> None:
        super().__init__()
        check_number("p", p, least=1)
        check_convention(convention)
        self.p = float(p)
        self.convention = convention
        self.scale = 1.0 if convention == "crd" else 0.5

    @property
    def summary_key(self) -> str:
        """The map, by its power and how the feature is resized."""
        return f"attention-p{self.p!r}-{resize_key(self.convention)}"

    @torch.no_grad()
    def summarize(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"attention": [B, H·W]}`, from the teacher's map brought to the student's size.

        Raises:
            ValueError: a feature that is not [B, C, H, W]; under "crd", different aspect ratios.
        """
        return {"attention": attention_map(resize_teacher(teacher_feature, student_shape, self.convention), self.p)}

    def forward(self, student_feature: Tensor, summary: Mapping[str, Tensor]) -> Tensor:
        """`[B, C, H, W]` → scalar. Raises ValueError when the summary is for another map size or batch."""
        check_map(student_feature, "student")
        teacher = summary_tensor(summary, "attention", student_feature.shape[0])
        with no_autocast(student_feature):
            student_feature = resize_student(student_feature, teacher.shape[1], self.convention)
            student = attention_map(student_feature, self.p)
            return self.scale * (student - teacher.to(student.dtype)).square().mean()

    def plan(self, student_shape: Shape, teacher_shape: Shape) -> Plan:
        """Summary: one value a position. Memory: the student's gradient."""
        height, width = shared_size(student_shape, teacher_shape, self.convention)
        positions = height * width
        return Plan("attention map", {"attention": (positions,)}, 4 * positions * (student_shape[0] + 8))
