"""Linear kernel in closed implementation: ‖μ_S − μ_T‖², μ the mean unit channel map."""

import torch
from torch import Tensor

from nst.losses.base import no_autocast
from nst.losses.first_order import first_order
from nst.losses.mmd.blocks import image_blocks, join, map_blocks
from nst.losses.mmd.unit import inverse_norms


def mean_of_blocks(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Maps `[B, C, N]` → mean unit map `[B, N]`, without forming the unit maps, and inverse norms `[B, C, 1]`."""
    inverses, means = [], []
    for block in image_blocks(x):
        inverse = inverse_norms(x[block], eps)
        inverses.append(inverse)
        means.append(torch.bmm(inverse.transpose(1, 2), x[block].to(inverse.dtype)).squeeze(1))
    return join(means).div_(x.shape[1]), join(inverses)


class MeanMap(torch.autograd.Function):
    """`[B, C, N]` → mean unit map `[B, N]`."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        with no_autocast(x):
            mean, inverse = mean_of_blocks(x, eps)
        ctx.save_for_backward(x, inverse)
        return mean

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, inverse = ctx.saved_tensors
        grad = (grad / x.shape[1]).unsqueeze(1)

        def gradient(block: slice, out: Tensor | None) -> Tensor:
            # r (g − x̂ (x̂ · g)) with x̂ = r x, g the same for every channel
            work, r, g = x[block].to(inverse.dtype), inverse[block], grad[block]
            projection = torch.bmm(work, g.transpose(1, 2)) * r.pow(3)
            return torch.mul(work, -projection, out=out).addcmul_(r, g)

        with no_autocast(x):
            return map_blocks(x, x.dtype, image_blocks(x), gradient), None


def mean_and_live(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean unit map `[B, N]` and share of live channels `[B]`, without gradient."""
    mean, inverse = mean_of_blocks(x.detach(), eps)
    return mean, (inverse > 0).to(inverse.dtype).mean(dim=(1, 2))


def mean_map(x: Tensor, eps: float = 0.0) -> Tensor:
    """Mean over channels of the unit maps: `[B, C, N]` → `[B, N]`, with gradient."""
    return MeanMap.apply(x, eps)  # type: ignore[return-value]


def mean_mmd(x: Tensor, teacher_mean: Tensor, c: float, teacher_term: bool, eps: float) -> Tensor:
    """MMD² `[B]` of the kernel xᵀy + c: ‖μ_S − μ_T‖²; c cancels but for the teacher's own term."""
    value = (mean_map(x, eps) - teacher_mean).square().sum(dim=1)
    return value if teacher_term else value - teacher_mean.square().sum(dim=1) - c
