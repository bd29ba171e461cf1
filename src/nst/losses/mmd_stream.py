"""MMD of kernels without a finite target (Gaussian, polynomial of degree ≥ 3): all pairs, streamed by blocks of images.

Only one block's C×C matrices exist at a time, and the student's gradient is gathered in the forward pass, so memory
grows with the inputs, not with the pairs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nst.losses.base import blocks_of, first_order, image_blocks, join, map_blocks, no_autocast, working_dtype
from nst.losses.mmd import inverse_norms, matmul_like, scale_maps, unit_gradient

SIGMA2_FLOOR = 1e-4
"""σ² is not taken below this: rounding alone gives unit maps distances of about 1e-7."""
PAIR_BYTES, PAIR_BYTES_FUSED = 5 << 20, 128 << 20
"""Pair matrices held at a time: on a CPU; on a GPU and in a compiled graph, where few large operations are better."""


@dataclass(frozen=True)
class Polynomial:
    """k(x, y) = (x·y + c)^degree."""

    degree: int
    c: float


@dataclass(frozen=True)
class Gaussian:
    """k(x, y) = exp(−‖x − y‖² / 2σ²)."""

    sigma2: Literal["pairs", "joint"] | float


def gaussian_sigma2(sigma2: Literal["pairs", "joint"] | float, s: Tensor, t: Tensor) -> Tensor:
    """σ² of each image `[B]`, in closed form.

    Args:
        sigma2: a number; "pairs": mean ‖x̂_T − x̂_S‖² over teacher–student pairs; "joint": over all ordered pairs of
            the joint sample, each with itself included.
        s, t: unit maps `[B, C, N]` of student and teacher.
    """
    mean_s, mean_t = s.mean(dim=1), t.mean(dim=1)
    live_s, live_t = live_channels(s).mean(dim=1), live_channels(t).mean(dim=1)  # the mean of ‖x̂‖²
    if sigma2 == "pairs":
        value = live_s + live_t - 2 * (mean_s * mean_t).sum(dim=1)
    elif sigma2 == "joint":
        share = s.shape[1] / (s.shape[1] + t.shape[1])  # of the student in the joint sample
        mean = share * mean_s + (1 - share) * mean_t
        value = 2 * (share * live_s + (1 - share) * live_t - mean.square().sum(dim=1))
    else:
        value = torch.full_like(live_s, sigma2)
    return value.clamp_min(SIGMA2_FLOOR)


def live_channels(unit: Tensor) -> Tensor:
    """Unit maps `[B, C, N]` → 1 for a live channel, 0 for a dead one, `[B, C]`."""
    return (unit.abs().amax(dim=2) > 0).to(unit.dtype)


def teacher_units(x: Tensor, eps: float) -> Tensor:
    """The target of this implementation and of pairs: unit maps `[B, C_T, N]`."""

    def units(block: slice, out: Tensor | None) -> Tensor:
        return scale_maps(x[block], inverse_norms(x[block], eps), out)

    return map_blocks(x, working_dtype(x), image_blocks(x), units)


def total(matrix: Tensor) -> Tensor:
    """Sum over the last two dimensions, the rows' sums in float64: the three terms nearly cancel near S = T."""
    return matrix.sum(dim=2).sum(dim=1, dtype=torch.float64)


def gaussian_pairs(a: Tensor, b: Tensor, live_a: Tensor, live_b: Tensor, rate: Tensor) -> Tensor:
    """exp(−‖x − y‖²/2σ²) for all pairs `[b, A, B]`; rate is 1/σ² `[b, 1, 1]`, ‖x‖² is 1 or, of a dead channel, 0."""
    exponent = -0.5 * rate * live_a.unsqueeze(2) - 0.5 * rate * live_b.unsqueeze(1)
    return exponent.baddbmm_(a * rate, b.transpose(1, 2)).exp_()


class StreamedMMD(torch.autograd.Function):
    """MMD² of each image `[B]` from student maps `[B, C_S, N]` and the teacher's unit maps `[B, C_T, N]`.

    `teacher`: whether the value includes the teacher–teacher term; `eps`: see `inverse_norms`. Kept for the backward pass: the gradient.
    """

    @staticmethod
    def forward(ctx, x: Tensor, teacher_unit: Tensor, kernel: Polynomial | Gaussian, teacher: bool, eps: float):
        dtype = working_dtype(x)
        c_s, c_t = x.shape[1], teacher_unit.shape[1]
        fused = x.device.type != "cpu" or torch.compiler.is_compiling()
        bytes_per_image = c_s * (c_s + c_t) * max(4, x.element_size())
        blocks, values = blocks_of(len(x), bytes_per_image, PAIR_BYTES_FUSED if fused else PAIR_BYTES), []

        def one_block(block: slice, out: Tensor | None) -> Tensor:
            inverse = inverse_norms(x[block], eps)
            s, t = scale_maps(x[block], inverse), teacher_unit[block].to(dtype)
            z, own = torch.cat((s, t), dim=1), None
            # k and its derivative with respect to x·y (slope · factor) at the pairs, [b, C_S, C_S + C_T]; k of the teacher's own pairs
            if isinstance(kernel, Gaussian):
                live_s, live_t = live_channels(s), live_channels(t)
                factor = 1 / gaussian_sigma2(kernel.sigma2, s, t).view(-1, 1, 1)
                slope = value = gaussian_pairs(s, z, live_s, torch.cat((live_s, live_t), dim=1), factor)
                if teacher:
                    own = gaussian_pairs(t, t, live_t, live_t, factor)
            else:
                base, factor = torch.bmm(s, z.transpose(1, 2)) + kernel.c, kernel.degree
                slope = base.pow(factor - 1)
                value = base.mul_(slope)
                if teacher:
                    own = (torch.bmm(t, t.transpose(1, 2)) + kernel.c).pow(factor)
            mmd = total(value[:, :, :c_s]) / c_s**2 - total(value[:, :, c_s:]) * (2 / (c_s * c_t))
            values.append(mmd if own is None else mmd + total(own) / c_t**2)
            z[:, :c_s] *= 2 / c_s**2
            z[:, c_s:] *= -2 / (c_s * c_t)
            return unit_gradient(matmul_like(s, slope.mul_(factor), z), s, inverse, out)

        with no_autocast(x):
            gradient = map_blocks(x, dtype, blocks, one_block)
        ctx.save_for_backward(gradient, x)
        ctx.dtype = x.dtype
        return join(values).to(dtype)

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, _ = ctx.saved_tensors
        return (gradient * grad.view(-1, 1, 1)).to(ctx.dtype), None, None, None, None
