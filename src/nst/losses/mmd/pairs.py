"""Polynomial kernel of degree 2 over pairs of channels, for maps with many positions and few channels.

‖Σ_i a_i a_iᵀ − Σ_j b_j b_jᵀ‖²_F with a = x̂_S / √C_S and b = x̂_T / √C_T. The three double sums of the MMD would
cancel when student and teacher are close; instead the first m = min(C_S, C_T) channels of both are paired,
a aᵀ − b bᵀ = ½(δ mᵀ + m δᵀ) with δ = a − b, m = a + b, and the rest r enters with its sign. With Z = [δ; m; r] of
C_S + C_T rows the difference is Zᵀ J Z, J swapping δ and m, so the value needs the small matrix K = Z Zᵀ only.
It is exact whatever the pairing, as cheap as the three sums, and 0 at S = T without rounding.
"""

from math import sqrt

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nst.losses.base import no_autocast
from nst.losses.mmd.unit import matmul_like, unit_gradient, unit_maps


def stacked_differences(a: Tensor, b: Tensor) -> Tensor:
    """Z = [a − b; a + b; rest] of shape [B, C_S + C_T, N]."""
    m = min(a.shape[1], b.shape[1])
    first_a, first_b = a[:, :m], b[:, :m]
    rest = a[:, m:] if a.shape[1] > m else b[:, m:]
    return torch.cat((first_a - first_b, first_a + first_b, rest), dim=1)


def swap(rows: Tensor, m: int, sign: float) -> Tensor:
    """J applied to rows ordered as in Z: ½ of m, ½ of δ, ± the rest."""
    return torch.cat((rows[:, m : 2 * m] * 0.5, rows[:, :m] * 0.5, rows[:, 2 * m :] * sign), dim=1)


class PairTerms(torch.autograd.Function):
    """Student `[B, C_S, N]`, teacher's unit maps `[B, C_T, N]` → ‖ΔG‖² and ‖Δμ‖², each `[B]`."""

    @staticmethod
    def forward(ctx, x: Tensor, teacher_unit: Tensor, with_mean: bool, eps: float):
        c_s, c_t = x.shape[1], teacher_unit.shape[1]
        ctx.m, ctx.sign = min(c_s, c_t), 1.0 if c_s > c_t else -1.0
        with no_autocast(x):
            unit, inverse = unit_maps(x, eps)
            z = stacked_differences(unit / sqrt(c_s), teacher_unit.to(unit.dtype) / sqrt(c_t))
            k = torch.bmm(z, z.transpose(1, 2))
            jk = swap(k, ctx.m, ctx.sign)
            squared = (jk * jk.transpose(1, 2)).sum(dim=(1, 2), dtype=torch.float64).to(unit.dtype)
            if with_mean:
                mean = unit.mean(dim=1) - teacher_unit.to(unit.dtype).mean(dim=1)
                mean_squared = mean.square().sum(dim=1)
            else:
                mean, mean_squared = None, torch.zeros_like(squared)
        ctx.save_for_backward(unit, inverse, z, k, mean)
        ctx.dtype = x.dtype
        return squared, mean_squared

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_gram: Tensor, grad_mean: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, inverse, z, k, mean = ctx.saved_tensors
        m, channels = ctx.m, unit.shape[1]
        with no_autocast(unit):
            # d‖ΔG‖²/da = 4 a (Zᵀ J Z), and a's rows are ½(δ + m), then the rest where the student has it.
            a_z = (k[:, :m] + k[:, m : 2 * m]) * 0.5
            if channels > m:
                a_z = torch.cat((a_z, k[:, 2 * m :]), dim=1)
            a_zj = swap(a_z.transpose(1, 2), m, ctx.sign).transpose(1, 2)
            grad = matmul_like(unit, a_zj * (4 / sqrt(channels) * grad_gram).view(-1, 1, 1), z)
            if mean is not None:
                grad += (2 / channels * grad_mean[:, None] * mean).unsqueeze(1)
            return unit_gradient(grad, unit, inverse).to(ctx.dtype), None, None, None


def pair_terms(x: Tensor, teacher_unit: Tensor, with_mean: bool, eps: float) -> tuple[Tensor, Tensor]:
    """‖G_S − G_T‖² and ‖μ_S − μ_T‖² (0 unless `with_mean`), each `[B]`, from student maps `[B, C_S, N]`."""
    return PairTerms.apply(x, teacher_unit, with_mean, eps)  # type: ignore[return-value]
