"""Polynomial kernel of degree 2 over positions: ‖G_S − G_T‖²_F, G = X̂ᵀX̂ / C of size N×N, N = H·W.

A teacher's Gram matrix travels packed, its upper triangle row by row: N(N+1)/2 values.
"""

import torch
from torch import Tensor

from nst.losses.base import no_autocast
from nst.losses.first_order import first_order
from nst.losses.mmd.blocks import image_blocks, join, map_blocks
from nst.losses.mmd.unit import inverse_norms, matmul_like, scale_maps, unit_gradient, unit_maps


def gram_target(x: Tensor, with_mean: bool, eps: float) -> tuple[Tensor, Tensor | None]:
    """Maps `[B, C, N]` → packed Gram matrix `[B, N(N+1)/2]` and, on spec, mean unit map `[B, N]`."""
    grams, means = [], []
    for block in image_blocks(x):
        unit = unit_maps(x[block], eps)
        grams.append(pack(torch.bmm(unit.transpose(1, 2), unit)))
        if with_mean:
            means.append(unit.mean(dim=1))
    return join(grams).div_(x.shape[1]), join(means) if with_mean else None


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


def gram_terms(x: Tensor, teacher_gram: Tensor, teacher_mean: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """‖G_S − G_T‖² and ‖μ_S − μ_T‖² (0 without `teacher_mean`), each `[B]`, with gradient.

    Args:
        x: student maps `[B, C, N]`.
        teacher_gram: packed, `[B, N(N+1)/2]`.
        teacher_mean: `[B, N]` or None.
        eps: see `inverse_norms`.
    """
    return GramTerms.apply(x, teacher_gram, teacher_mean, eps)  # type: ignore[return-value]
