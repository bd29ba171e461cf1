"""Polynomial kernel of degree 2 over pairs of channels, for maps with many positions and few channels.

‖Σ_i a_i a_iᵀ − Σ_j b_j b_jᵀ‖²_F / C_S² with a = x̂_S and b = √(C_S/C_T) x̂_T. The three double sums of the MMD would
cancel when student and teacher are close. Instead the first m = min(C_S, C_T) channels of both are paired, δ = a − b:
a aᵀ − b bᵀ = a δᵀ + δ aᵀ − δ δᵀ, and the rest enters with its sign. With Z = [δ; a; the rest of b], C_S + C_T rows, the
difference is Zᵀ J Z, J acting on rows, so that the value needs the small matrix K = Z Zᵀ only. This is exact whatever
the pairing, as cheap as the three sums, and 0 at S = T without rounding.

In the gradient W Z, W of C_S rows, the projection by the normalisation is a diagonal of W and the inverse norms its
scale: nothing of a map's size is touched but by the products.
"""

from math import sqrt

import torch
from torch import Tensor

from nst.losses.base import no_autocast
from nst.losses.first_order import first_order
from nst.losses.mmd.blocks import image_blocks, join, map_blocks
from nst.losses.mmd.unit import inverse_norms, matmul_like, scale_maps


def parts_of_z(unit: Tensor, teacher_unit: Tensor) -> list[Tensor]:
    """Z in its parts: δ `[B, m, N]`, a `[B, C_S, N]` and, where the teacher has more channels, the rest of b."""
    c_s, c_t = unit.shape[1], teacher_unit.shape[1]
    m, ratio, teacher = min(c_s, c_t), sqrt(c_s / c_t), teacher_unit.to(unit.dtype)
    parts = [torch.sub(unit[:, :m], teacher[:, :m], alpha=ratio), unit]
    return [*parts, teacher[:, m:] * ratio] if c_t > m else parts


def gram_of_rows(parts: list[Tensor]) -> Tensor:
    """K = Z Zᵀ from the parts of Z."""
    rows: list[list[Tensor]] = []
    for i, rows_of_z in enumerate(parts):
        mirrored = [rows[j][i].transpose(1, 2) for j in range(i)]
        rows.append(mirrored + [torch.bmm(rows_of_z, other.transpose(1, 2)) for other in parts[i:]])
    return torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)


def apply_j(rows: Tensor, m: int, sign: float) -> Tensor:
    """J on rows ordered as in Z: a − δ, δ, and ± the rest."""
    delta, a = rows[:, :m], rows[:, m : 2 * m]
    return torch.cat((a - delta, delta, rows[:, 2 * m :] * sign), dim=1)


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
                inverses.append(inverse)
                ks.append(gram_of_rows(parts_of_z(unit, teacher_unit[block])))
                if with_mean:
                    means.append(unit.mean(dim=1) - teacher_unit[block].to(unit.dtype).mean(dim=1))
            k = join(ks)
            jk = apply_j(k, ctx.m, ctx.sign)
            squared = (jk * jk.transpose(1, 2)).sum(dim=(1, 2), dtype=torch.float64).to(k.dtype) / c_s**2
            mean = join(means) if means else None
            mean_squared = torch.zeros_like(squared) if mean is None else mean.square().sum(dim=1)
        ctx.save_for_backward(x, teacher_unit, join(inverses), k, mean)
        return squared, mean_squared

    @staticmethod
    @first_order
    def backward(ctx, grad_gram: Tensor, grad_mean: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, teacher_unit, inverse, k, mean = ctx.saved_tensors
        weights = gradient_weights(k, 4 / x.shape[1] ** 2 * grad_gram, ctx.m, x.shape[1], ctx.sign) * inverse
        if mean is not None:
            mean = (2 / x.shape[1] * grad_mean[:, None] * mean).unsqueeze(1)

        def gradient(block: slice, out: Tensor | None) -> Tensor:
            unit = scale_maps(x[block], inverse[block])
            first, *others = parts_of_z(unit, teacher_unit[block])
            grad, start = matmul_like(unit, weights[block, :, : ctx.m], first, out), ctx.m
            for rows_of_z in others:
                grad = add_product(unit, grad, weights[block, :, start : start + rows_of_z.shape[1]], rows_of_z)
                start += rows_of_z.shape[1]
            if mean is None:
                return grad
            projection = torch.bmm(unit, mean[block].transpose(1, 2))
            return grad.addcmul_(inverse[block], mean[block] - projection * unit)

        with no_autocast(x):
            return map_blocks(x, x.dtype, image_blocks(x, k.shape[1]), gradient), None, None, None


def add_product(layout: Tensor, total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, in place and in the layout of `matmul_like`."""
    if layout.stride(1) == 1 and layout.stride(2) != 1:
        return total.transpose(1, 2).baddbmm_(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
    return total.baddbmm_(a, b)


def gradient_weights(k: Tensor, grad: Tensor, m: int, channels: int, sign: float) -> Tensor:
    """W `[B, C_S, C_S + C_T]`: W Z is the gradient with respect to a, less its component along a.

    d‖aᵀa − bᵀb‖²/da = 4 a Zᵀ J Z, and the products of a with W Z are those of a's rows of K with W.
    """
    a_z = k[:, m : m + channels]
    weights = apply_j(a_z.transpose(1, 2), m, sign).transpose(1, 2) * grad.view(-1, 1, 1)
    projection = (weights * a_z).sum(dim=2)
    weights[:, :, m : m + channels] -= torch.diag_embed(projection)
    return weights


def pair_terms(x: Tensor, teacher_unit: Tensor, with_mean: bool, eps: float) -> tuple[Tensor, Tensor]:
    """‖G_S − G_T‖² and ‖μ_S − μ_T‖² (0 unless `with_mean`), each `[B]`, with gradient.

    Args:
        x: student maps `[B, C_S, N]`.
        teacher_unit: the teacher's unit maps `[B, C_T, N]`.
        with_mean: also return ‖Δμ‖².
        eps: see `inverse_norms`.
    """
    return PairTerms.apply(x, teacher_unit, with_mean, eps)  # type: ignore[return-value]
