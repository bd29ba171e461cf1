"""Polynomial kernel of degree 2 over positions: ‖G_S − G_T‖²_F, G = X̂ᵀX̂ / C of size N×N, N = H·W."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nst.losses.base import no_autocast
from nst.losses.mmd.unit import matmul_like, unit_gradient, unit_maps


def gram(unit: Tensor) -> Tensor:
    """Unit maps `[B, C, N]` → `[B, N, N]`, the mean over channels of x̂ x̂ᵀ."""
    return torch.bmm(unit.transpose(1, 2), unit).div_(unit.shape[1])


def pack(matrix: Tensor) -> Tensor:
    """Symmetric `[B, N, N]` → its upper triangle row by row, `[B, N(N+1)/2]`."""
    n = matrix.shape[1]
    row, column = torch.triu_indices(n, n, device=matrix.device)
    return matrix.flatten(1).index_select(1, row * n + column)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    n = positions(packed.shape[1])
    k = torch.arange(n, device=packed.device)
    low, high = torch.minimum(k[:, None], k), torch.maximum(k[:, None], k)
    index = low * (2 * n - low - 1) // 2 + high
    return packed.index_select(1, index.flatten()).view(-1, n, n)


def positions(packed_length: int) -> int:
    """N of a packed N×N matrix. Raises ValueError when there is none."""
    n = int((2 * packed_length) ** 0.5)
    if n * (n + 1) // 2 != packed_length:
        raise ValueError(f"a packed symmetric matrix has N(N+1)/2 values; the summary 'gram' has {packed_length}")
    return n


class GramTerms(torch.autograd.Function):
    """Student `[B, C, N]`, teacher's Gram `[B, N, N]` and mean map `[B, N]` → ‖ΔG‖² and ‖Δμ‖², each `[B]`."""

    @staticmethod
    def forward(ctx, x: Tensor, teacher_gram: Tensor, teacher_mean: Tensor | None, eps: float):
        with no_autocast(x):
            unit, inverse = unit_maps(x, eps)
            delta = gram(unit).sub_(teacher_gram)
            squared = delta.flatten(1).square().sum(dim=1)
            if teacher_mean is None:
                mean, mean_squared = None, torch.zeros_like(squared)
            else:
                mean = unit.mean(dim=1) - teacher_mean
                mean_squared = mean.square().sum(dim=1)
        ctx.save_for_backward(unit, inverse, delta, mean)
        ctx.dtype = x.dtype
        return squared, mean_squared

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_gram: Tensor, grad_mean: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, inverse, delta, mean = ctx.saved_tensors
        channels = unit.shape[1]
        with no_autocast(unit):
            grad = matmul_like(unit, unit, delta * (4 / channels * grad_gram).view(-1, 1, 1))
            if mean is not None:
                grad += (2 / channels * grad_mean[:, None] * mean).unsqueeze(1)
            return unit_gradient(grad, unit, inverse).to(ctx.dtype), None, None, None


def gram_terms(x: Tensor, teacher_gram: Tensor, teacher_mean: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """‖G_S − G_T‖² and ‖μ_S − μ_T‖² (0 without `teacher_mean`), each `[B]`, from student maps `[B, C, N]`."""
    return GramTerms.apply(x, teacher_gram, teacher_mean, eps)  # type: ignore[return-value]
