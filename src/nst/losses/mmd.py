"""The squared Maximum Mean Discrepancy between unit channel maps, kernels with a small target: linear and (xᵀy + c)².

A unit channel map is x̂ = x / ‖x‖₂ over the N positions; costs of the implementations: docs/losses.md. "mean" is ‖μ_S − μ_T‖²,
μ the mean unit map. "gram" is ‖G_S − G_T‖²_F over positions, G = X̂ᵀX̂ / C of size N×N; a teacher's travels packed, its upper
triangle row by row: N(N+1)/2 values.

"pairs" is the same value over pairs of channels, for maps with many positions and few channels:
‖Σ_i a_i a_iᵀ − Σ_j b_j b_jᵀ‖²_F / C_S² with a = x̂_S and b = √(C_S/C_T) x̂_T. The three double sums of the MMD would
cancel when student and teacher are close. Instead the first m = min(C_S, C_T) channels of both are paired, δ = a − b:
a aᵀ − b bᵀ = a δᵀ + δ aᵀ − δ δᵀ, and the rest enters with its sign. With Z = [δ; a; the rest of b], C_S + C_T rows, the
difference is Zᵀ J Z, J acting on rows, so that the value needs the small matrix K = Z Zᵀ only. This is exact whatever
the pairing, as cheap as the three sums, and 0 at S = T without rounding.

In the gradient W Z, W of C_S rows, the projection by the normalisation is a diagonal of W and the inverse norms its
scale: nothing of a map's size is touched but by the products.
"""

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from nst.losses.base import first_order, image_blocks, join, map_blocks, no_autocast, working_dtype

DEAD = 1e-12
"""A channel whose norm is not above this, or not above the smallest normal number of its dtype (6.1e-5 in float16),
is dead: its unit map is zero and it passes no gradient."""
OFFICIAL_EPS = 1e-10  # the official code's x / √(‖x‖² + ε)


def inverse_norms(x: Tensor, eps: float) -> Tensor:
    """`[B, C, N]` → 1/√(‖x‖² + eps) in the working precision, zero for a dead channel, `[B, C, 1]`.

    NaN where ‖x‖² overflows (in float32 from ‖x‖ = 1.8e19 on): such a network has diverged, and is not to pass for one
    with dead channels. `eps` is `OFFICIAL_EPS` for the official convention, else 0.
    """
    work = x.to(working_dtype(x))
    squared = (work * work).sum(dim=2, keepdim=True)
    threshold = max(DEAD, torch.finfo(x.dtype).tiny)
    inverse = torch.where(squared > threshold**2, (squared + eps).rsqrt(), 0.0)
    return torch.where(squared.isfinite(), inverse, torch.nan)


def scale_maps(x: Tensor, inverse: Tensor, out: Tensor | None = None) -> Tensor:
    """Unit maps `[B, C, N]` from maps and inverse norms, laid out in memory like x."""
    return torch.mul(x.to(inverse.dtype), inverse, out=out)


def unit_gradient(grad: Tensor, unit: Tensor, inverse: Tensor, out: Tensor | None = None) -> Tensor:
    """Gradient through the unit maps: r · (g − x̂ (x̂ · g)). Overwrites `grad`; zero for dead channels."""
    along = (grad * unit).sum(dim=2, keepdim=True)
    return torch.mul(grad.addcmul_(unit, along, value=-1), inverse, out=out)


def channels_last(x: Tensor) -> bool:
    """Whether the channels of `[B, C, N]` lie side by side in memory."""
    return x.stride(1) == 1 and x.stride(2) != 1


def matmul_like(layout: Tensor, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b, `[B, C, M] @ [B, M, N]`, laid out in memory like `layout`: spares a copy of channels_last features."""
    if channels_last(layout):
        transposed = None if out is None else out.transpose(1, 2)
        return torch.bmm(b.transpose(1, 2), a.transpose(1, 2), out=transposed).transpose(1, 2)
    return torch.bmm(a, b, out=out)


class MeanMap(torch.autograd.Function):
    """`[B, C, N]` → mean unit map `[B, N]`, without forming the unit maps."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        inverses, means = [], []
        with no_autocast(x):
            for block in image_blocks(x):
                inverse = inverse_norms(x[block], eps)
                inverses.append(inverse)
                means.append(torch.bmm(inverse.transpose(1, 2), x[block].to(inverse.dtype)).squeeze(1))
        ctx.save_for_backward(x, join(inverses))
        return join(means).div_(x.shape[1])

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


def mean_mmd(x: Tensor, teacher_mean: Tensor, c: float, teacher_term: bool, eps: float) -> Tensor:
    """MMD² `[B]` of the kernel xᵀy + c: ‖μ_S − μ_T‖²; c cancels but for the teacher's own term."""
    mean: Tensor = MeanMap.apply(x, eps)  # type: ignore[assignment]
    value = (mean - teacher_mean).square().sum(dim=1)
    return value if teacher_term else value - teacher_mean.square().sum(dim=1) - c


def gram_target(x: Tensor, with_mean: bool, eps: float) -> tuple[Tensor, Tensor | None]:
    """Maps `[B, C, N]` → packed Gram matrix `[B, N(N+1)/2]` and, on request, mean unit map `[B, N]`."""
    grams, means = [], []
    for block in image_blocks(x):
        unit = scale_maps(x[block], inverse_norms(x[block], eps))
        gram = torch.bmm(unit.transpose(1, 2), unit)
        row, column = torch.triu_indices(gram.shape[1], gram.shape[1], device=x.device)
        grams.append(gram.flatten(1).index_select(1, row * gram.shape[1] + column))
        if with_mean:
            means.append(unit.mean(dim=1))
    return join(grams).div_(x.shape[1]), join(means) if with_mean else None


def unpack(packed: Tensor) -> Tensor:
    """The symmetric matrix `[B, N, N]` of its upper triangle, row by row, `[B, N(N+1)/2]`."""
    n = positions(packed.shape[1])
    k = torch.arange(n, device=packed.device)
    low, high = torch.minimum(k[:, None], k), torch.maximum(k[:, None], k)
    index = low * (2 * n - low - 1) // 2 + high
    return packed.index_select(1, index.flatten()).view(-1, n, n)


def positions(packed_length: int) -> int:
    """N of a packed N×N matrix. Raises ValueError when there is none."""
    n = int((2 * packed_length) ** 0.5)
    if n * (n + 1) // 2 != packed_length:
        raise ValueError(f"a packed symmetric matrix has N(N+1)/2 values; the target 'gram' has {packed_length}")
    return n


class GramTerms(torch.autograd.Function):
    """Student `[B, C, N]`, teacher's Gram and mean map → ‖ΔG‖² and ‖Δμ‖², each `[B]`.

    Kept for the backward pass: x itself, its inverse norms and ΔG. The unit maps are made anew, block by block.
    """

    @staticmethod
    def forward(ctx, x: Tensor, teacher_gram: Tensor, teacher_mean: Tensor | None, eps: float):
        inverses, deltas, means = [], [], []
        with no_autocast(x):
            matrix = unpack(teacher_gram)
            for block in image_blocks(x):
                inverse = inverse_norms(x[block], eps)
                unit = scale_maps(x[block], inverse)
                inverses.append(inverse)
                # The difference is taken before anything is squared: student ≈ teacher stays accurate.
                own = torch.bmm(unit.transpose(1, 2), unit).div_(x.shape[1])
                deltas.append(own.sub_(matrix[block]))
                if teacher_mean is not None:
                    means.append(unit.mean(dim=1) - teacher_mean[block])
            delta = join(deltas)
            squared = delta.square().sum(dim=(1, 2))
            mean = join(means) if means else None
            mean_squared = torch.zeros_like(squared) if mean is None else mean.square().sum(dim=1)
        ctx.save_for_backward(x, join(inverses), delta, mean)
        return squared, mean_squared

    @staticmethod
    @first_order
    def backward(ctx, grad_gram: Tensor, grad_mean: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, inverse, delta, mean = ctx.saved_tensors
        weight_gram = (4 / x.shape[1] * grad_gram).view(-1, 1, 1)
        weight_mean = (2 / x.shape[1] * grad_mean).view(-1, 1, 1)

        def gradient(block: slice, out: Tensor | None) -> Tensor:
            unit = scale_maps(x[block], inverse[block])
            grad = matmul_like(unit, unit, delta[block] * weight_gram[block])
            if mean is not None:
                grad += weight_mean[block] * mean[block].unsqueeze(1)
            return unit_gradient(grad, unit, inverse[block], out)

        with no_autocast(x):
            return map_blocks(x, x.dtype, image_blocks(x), gradient), None, None, None


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
        # d‖aᵀa − bᵀb‖²/da = 4 a Zᵀ J Z, and the products of a with W Z are those of a's rows of K with W.
        a_z = k[:, ctx.m : ctx.m + x.shape[1]]
        weights = apply_j(a_z.transpose(1, 2), ctx.m, ctx.sign).transpose(1, 2)
        weights = weights * (4 / x.shape[1] ** 2 * grad_gram).view(-1, 1, 1)
        weights[:, :, ctx.m : ctx.m + x.shape[1]] -= torch.diag_embed((weights * a_z).sum(dim=2))
        weights = weights * inverse
        if mean is not None:
            mean = (2 / x.shape[1] * grad_mean[:, None] * mean).unsqueeze(1)

        def gradient(block: slice, out: Tensor | None) -> Tensor:
            unit = scale_maps(x[block], inverse[block])
            first, *others = parts_of_z(unit, teacher_unit[block])
            grad, start = matmul_like(unit, weights[block, :, : ctx.m], first, out), ctx.m
            for rows_of_z in others:
                part = weights[block, :, start : start + rows_of_z.shape[1]]
                if channels_last(unit):
                    grad = (
                        grad.transpose(1, 2).baddbmm_(rows_of_z.transpose(1, 2), part.transpose(1, 2)).transpose(1, 2)
                    )
                else:
                    grad = grad.baddbmm_(part, rows_of_z)
                start += rows_of_z.shape[1]
            if mean is None:
                return grad
            projection = torch.bmm(unit, mean[block].transpose(1, 2))
            return grad.addcmul_(inverse[block], mean[block] - projection * unit)

        with no_autocast(x):
            return map_blocks(x, x.dtype, image_blocks(x, k.shape[1]), gradient), None, None, None


def quadratic_mmd(x: Tensor, teacher: Mapping[str, Tensor], c: float, teacher_term: bool, eps: float) -> Tensor:
    """MMD² `[B]` of the kernel (xᵀy + c)²: ΔG + 2c Δμ, ΔG = ‖G_S − G_T‖², Δμ = ‖μ_S − μ_T‖², with gradient.

    Args:
        x: student maps `[B, C_S, N]`.
        teacher: either "gram" (packed) and, unless c is 0, "gram_mean", or "pairs", unit maps `[B, C_T, N]`.
        c: of the kernel; c² cancels but for the teacher's own term.
        teacher_term: False subtracts the teacher–teacher term.
        eps: see `inverse_norms`.
    """
    by_gram = "gram" in teacher
    if by_gram:
        mean = teacher["gram_mean"] if c else None
        gram_squared, mean_squared = GramTerms.apply(x, teacher["gram"], mean, eps)  # type: ignore[misc]
    else:
        gram_squared, mean_squared = PairTerms.apply(x, teacher["pairs"], c != 0, eps)  # type: ignore[misc]
    if teacher_term:
        return gram_squared + 2 * c * mean_squared
    if by_gram:
        own_gram = unpack(teacher["gram"]).square().sum(dim=(1, 2))
    else:
        own_gram = torch.bmm(teacher["pairs"], teacher["pairs"].transpose(1, 2)).square().mean(dim=(1, 2))
    if c:
        own_mean = teacher["gram_mean"] if by_gram else teacher["pairs"].mean(dim=1)
        mean_squared = mean_squared - own_mean.square().sum(dim=1)
    return (gram_squared - own_gram) + 2 * c * mean_squared - c**2
