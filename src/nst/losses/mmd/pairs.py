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
from nst.losses.mmd.blocks import image_blocks, join, map_blocks
from nst.losses.mmd.unit import inverse_norms, matmul_like, scale_maps, unit_gradient


def stacked_differences(unit: Tensor, teacher_unit: Tensor) -> Tensor:
    """√C_S · Z, shape `[B, C_S + C_T, N]`, from unit maps."""
    c_s, c_t = unit.shape[1], teacher_unit.shape[1]
    m, b = min(c_s, c_t), teacher_unit.to(unit.dtype)
    if c_s == c_t:
        return torch.cat((unit - b, unit + b), dim=1)
    b = b * sqrt(c_s / c_t)
    rest = unit[:, m:] if c_s > m else b[:, m:]
    return torch.cat((unit[:, :m] - b[:, :m], unit[:, :m] + b[:, :m], rest), dim=1)


def swap(rows: Tensor, m: int, sign: float) -> Tensor:
    """J applied to rows ordered as in Z: ½ of m, ½ of δ, ± the rest."""
    return torch.cat((rows[:, m : 2 * m] * 0.5, rows[:, :m] * 0.5, rows[:, 2 * m :] * sign), dim=1)


class PairTerms(torch.autograd.Function):
    """Student `[B, C_S, N]`, teacher's unit maps `[B, C_T, N]` → ‖ΔG‖² and ‖Δμ‖², each `[B]`.

    Kept for the backward pass: both inputs themselves, inverse norms and K.
    """

    @staticmethod
    def forward(ctx, x: Tensor, teacher_unit: Tensor, with_mean: bool, eps: float):
        c_s, c_t = x.shape[1], teacher_unit.shape[1]
        ctx.m, ctx.sign = min(c_s, c_t), 1.0 if c_s > c_t else -1.0
        inverses, ks, means = [], [], []
        with no_autocast(x):
            for block in image_blocks(x, c_s + c_t):
                inverse = inverse_norms(x[block], eps)
                unit = scale_maps(x[block], inverse)
                z = stacked_differences(unit, teacher_unit[block])
                inverses.append(inverse)
                ks.append(torch.bmm(z, z.transpose(1, 2)))
                if with_mean:
                    means.append(unit.mean(dim=1) - teacher_unit[block].to(unit.dtype).mean(dim=1))
            k = join(ks)
            jk = swap(k, ctx.m, ctx.sign)
            squared = (jk * jk.transpose(1, 2)).sum(dim=(1, 2), dtype=torch.float64).to(k.dtype) / c_s**2
            mean = join(means) if means else None
            mean_squared = torch.zeros_like(squared) if mean is None else mean.square().sum(dim=1)
        ctx.save_for_backward(x, teacher_unit, join(inverses), k, mean)
        return squared, mean_squared

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_gram: Tensor, grad_mean: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, teacher_unit, inverse, k, mean = ctx.saved_tensors
        m, channels = ctx.m, x.shape[1]
        # d‖ΔG‖²/da = 4 a (Zᵀ J Z), and a's rows are ½(δ + m), then the rest where the student has it.
        a_z = (k[:, :m] + k[:, m : 2 * m]) * 0.5
        if channels > m:
            a_z = torch.cat((a_z, k[:, 2 * m :]), dim=1)
        a_zj = swap(a_z.transpose(1, 2), m, ctx.sign).transpose(1, 2) * (4 / channels**2 * grad_gram).view(-1, 1, 1)
        weight_mean = (2 / channels * grad_mean).view(-1, 1, 1)

        def gradient(block: slice) -> Tensor:
            unit = scale_maps(x[block], inverse[block])
            grad = matmul_like(unit, a_zj[block], stacked_differences(unit, teacher_unit[block]))
            if mean is not None:
                grad += weight_mean[block] * mean[block].unsqueeze(1)
            return unit_gradient(grad, unit, inverse[block])

        with no_autocast(x):
            return map_blocks(x, x.dtype, image_blocks(x, k.shape[1]), gradient), None, None, None


def pair_terms(x: Tensor, teacher_unit: Tensor, with_mean: bool, eps: float) -> tuple[Tensor, Tensor]:
    """‖G_S − G_T‖² and ‖μ_S − μ_T‖² (0 unless `with_mean`), each `[B]`, with gradient.

    Args:
        x: student maps `[B, C_S, N]`.
        teacher_unit: the teacher's unit maps `[B, C_T, N]`.
        with_mean: whether ‖Δμ‖² is wanted.
        eps: see `inverse_norms`.
    """
    return PairTerms.apply(x, teacher_unit, with_mean, eps)  # type: ignore[return-value]
