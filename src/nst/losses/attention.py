"""Attention transfer (Zagoruyko & Komodakis, 2017), method AT of the paper's tables."""

from collections.abc import Mapping
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from nst.losses.base import (
    Shape,
    TransferLoss,
    check_choice,
    check_map,
    check_numbers,
    first_order,
    image_blocks,
    join,
    no_autocast,
    resize_key,
    resize_student,
    resize_teacher,
    shared_size,
    target_tensor,
    working_dtype,
)

ATConvention = Literal["paper", "official", "crd", "torchdistill", "zoo"]


class PowerSum(torch.autograd.Function):
    """[B, C, N] → Σ_c |x_c|^p as [B, N] (signed: Σ_c x_c^p), in the working precision; temporaries are of a block's size."""

    @staticmethod
    def forward(ctx, x: Tensor, p: float, signed: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.p, ctx.signed = p, signed
        sums = []
        for block in image_blocks(x):
            part = x[block].to(working_dtype(x))
            sums.append((part * part if p == 2 else part.pow(p) if signed else part.abs().pow(p)).sum(dim=1))
        return join(sums)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        per_position = (ctx.p * grad).unsqueeze(1)
        if ctx.p == 2:
            return (x * per_position).to(x.dtype), None, None
        magnitude = x.abs().to(grad.dtype).pow(ctx.p - 1)
        signs = 1.0 if ctx.signed else x.sign()
        return (signs * magnitude * per_position).to(x.dtype), None, None


class AT(TransferLoss):
    """½ · mean over positions of (a_T − a_S)², a = Σ_c |F_c|^p / ‖Σ_c |F_c|^p‖₂; mean over the batch.

    Args:
        p: the power, at least 1.
        convention: "paper" and "official" (the official code has no AT): as above. "crd": without the ½; an odd p keeps
            the sign of F. "torchdistill" (its mode "paper", which is Zagoruyko & Komodakis' equation 2):
            ‖a_T − a_S‖₂, neither squared nor divided by the number of positions. "zoo"
            (Knowledge-Distillation-Zoo): without the ½; a = Σ_c |F_c|^p / (‖Σ_c |F_c|^p‖₂ + 1e-6).
    """

    normalises_maps = True

    def __init__(self, p: float = 2.0, convention: ATConvention = "paper") -> None:
        super().__init__()
        check_numbers(least=1, p=p)
        check_choice("convention", convention, get_args(ATConvention))
        self.p, self.convention = float(p), convention
        self.scale = 0.5 if convention in ("paper", "official") else 1.0
        self.signed = convention == "crd" and self.p % 2 == 1
        self.eps = 1e-6 if convention == "zoo" else 0.0

    @property
    def target_key(self) -> str:
        """The map, by its power and how the feature is resized."""
        kind = "-signed" if self.signed else f"-eps{self.eps!r}" if self.eps else ""
        return f"attention-p{self.p!r}{kind}-{resize_key(self.convention)}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"attention": [B, H·W]}`, from the teacher's map brought to the student's size; raises ValueError as for NST."""
        return {"attention": self.map(resize_teacher(teacher_feature, student_shape, self.convention))}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C, H, W]` → scalar."""
        check_map(student_feature, "student")
        teacher = target_tensor(target, "attention", student_feature.shape[0])
        with no_autocast(student_feature):
            student = self.map(resize_student(student_feature, teacher.shape[1], self.convention))
            difference = student - teacher.to(student.dtype)
            if self.convention == "torchdistill":
                return torch.linalg.vector_norm(difference, dim=1).mean()
            return self.scale * difference.square().mean()

    def map(self, feature: Tensor) -> Tensor:
        """Σ_c |F_c|^p over channels, divided by its length over positions: `[B, C, H, W]` → `[B, H·W]`.

        A map that is zero everywhere gives zeros, and no gradient.
        """
        with no_autocast(feature):
            power: Tensor = PowerSum.apply(feature.flatten(2), self.p, self.signed)  # type: ignore[assignment]
            # The quotient does not change with the map's scale: dividing by its peak keeps squares within float32.
            peak = power.detach().abs().amax(dim=1, keepdim=True)
            scale = torch.where(peak > 0, peak, 1.0)
            power = power / scale
            length = torch.linalg.vector_norm(power, dim=1, keepdim=True)
            if self.eps:
                length = length + self.eps / scale
            return power / torch.where(peak > 0, length, 1.0)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """One value a position."""
        return {"attention": (prod(shared_size(student_shape, teacher_shape, self.convention)),)}
