"""Linear kernel in closed form: ‖μ_S − μ_T‖², μ the mean unit channel map."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nst.losses.base import no_autocast, working_dtype
from nst.losses.mmd.unit import inverse_root


class MeanMap(torch.autograd.Function):
    """`[B, C, N]` → mean unit map `[B, N]`, without holding the unit maps."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        work = x.to(working_dtype(x))
        with no_autocast(x):
            inverse = inverse_root((work * work).sum(dim=2), eps, x.dtype).unsqueeze(1)
            mean = torch.bmm(inverse, work).squeeze(1) / x.shape[1]
        ctx.save_for_backward(x, inverse)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, inverse = ctx.saved_tensors
        work = x.to(working_dtype(x))
        grad = grad / x.shape[1]
        with no_autocast(x):
            along = torch.bmm(grad.unsqueeze(1), work.transpose(1, 2))
            r, along = inverse.transpose(1, 2), (along * inverse.pow(3)).transpose(1, 2)
            return (work * -along).addcmul_(r, grad.unsqueeze(1)).to(x.dtype), None


def mean_and_live(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean unit map `[B, N]` and share of live channels `[B]`, without gradient."""
    work = x.detach().to(working_dtype(x))
    inverse = inverse_root((work * work).sum(dim=2), eps, x.dtype).unsqueeze(1)
    return torch.bmm(inverse, work).squeeze(1) / x.shape[1], (inverse > 0).to(work.dtype).mean(dim=(1, 2))


def mean_map(x: Tensor, eps: float = 0.0) -> Tensor:
    """Mean over channels of the unit maps: `[B, C, N]` → `[B, N]`, with gradient."""
    return MeanMap.apply(x, eps)  # type: ignore[return-value]


def mean_mmd(x: Tensor, teacher_mean: Tensor, c: float, teacher_term: bool, eps: float) -> Tensor:
    """MMD² `[B]` of the kernel xᵀy + c: ‖μ_S − μ_T‖²; c cancels but for the teacher's own term."""
    value = (mean_map(x, eps) - teacher_mean).square().sum(dim=1)
    return value if teacher_term else value - teacher_mean.square().sum(dim=1) - c
