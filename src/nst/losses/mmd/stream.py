"""Kernels without a finite target (Gaussian, polynomial of degree ≥ 3): all pairs, streamed by blocks of images.

Only one block's C×C matrices exist at a time, and the student's gradient is gathered in the forward pass, so memory
grows with the inputs, not with the pairs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nst.losses.base import no_autocast, working_dtype
from nst.losses.first_order import first_order
from nst.losses.mmd.blocks import blocks_of, image_blocks, join, map_blocks
from nst.losses.mmd.unit import (
    inverse_norms,
    live_channels,
    matmul_like,
    scale_maps,
    unit_gradient,
)

SIGMA2_FLOOR = 1e-4
"""σ² is not taken below this: rounding alone gives unit maps distances of about 1e-7."""
PAIR_BYTES = 5 << 20
"""Pair matrices held at a time on a CPU."""
PAIR_BYTES_FUSED = 128 << 20
"""The same on a GPU and in a compiled graph, where few large operations are better."""

Sigma2 = Literal["pairs", "joint"] | float


@dataclass(frozen=True)
class Polynomial:
    """k(x, y) = (x·y + c)^degree."""

    degree: int
    c: float


@dataclass(frozen=True)
class Gaussian:
    """k(x, y) = exp(−‖x − y‖² / 2σ²)."""

    sigma2: Sigma2


def gaussian_sigma2(
    sigma2: Sigma2, share: Tensor | float, mean_s: Tensor, live_s: Tensor, mean_t: Tensor, live_t: Tensor
) -> Tensor:
    """σ² of each image `[B]`, in closed implementation.

    Args:
        sigma2: a number; "pairs": mean ‖x̂_T − x̂_S‖² over teacher–student pairs; "joint": over all ordered pairs of
            the joint sample, each with itself included.
        share: the student's share of the joint sample, C_S / (C_S + C_T).
        mean_s, mean_t: mean unit maps `[B, N]`.
        live_s, live_t: the share of channels that are not dead `[B]`, which is the mean of ‖x̂‖².
    """
    if sigma2 == "pairs":
        value = live_s + live_t - 2 * (mean_s * mean_t).sum(dim=1)
    elif sigma2 == "joint":
        mean = (share * mean_s.T + (1 - share) * mean_t.T).T
        value = 2 * (share * live_s + (1 - share) * live_t - mean.square().sum(dim=1))
    else:
        value = torch.full_like(live_s, sigma2)
    return value.clamp_min(SIGMA2_FLOOR)


def pair_blocks(x: Tensor, channels: int) -> list[slice]:
    """Slices of the batch whose pair matrices, C_S × channels, fit the limit."""
    fused = x.device.type != "cpu" or torch.compiler.is_compiling()
    bytes_per_image = x.shape[1] * channels * max(4, x.element_size())
    return blocks_of(x.shape[0], bytes_per_image, PAIR_BYTES_FUSED if fused else PAIR_BYTES)


def teacher_units(x: Tensor, eps: float) -> Tensor:
    """The target of this implementation and of pairs: unit maps `[B, C_T, N]`."""

    def units(block: slice, out: Tensor | None) -> Tensor:
        return scale_maps(x[block], inverse_norms(x[block], eps), out)

    return map_blocks(x, working_dtype(x), image_blocks(x), units)


def total(matrix: Tensor) -> Tensor:
    """Sum over the last two dimensions, the rows' sums in float64: the three terms nearly cancel near S = T."""
    return matrix.sum(dim=2).sum(dim=1, dtype=torch.float64)


def polynomial_block(kernel: Polynomial, s: Tensor, t: Tensor, z: Tensor, teacher: bool) -> tuple[Tensor, Tensor]:
    """MMD² `[b]` of a block (without its teacher term) and the derivative k' at the pairs `[b, C_S, C_S + C_T]`."""
    c_s, c_t = s.shape[1], t.shape[1]
    base = torch.bmm(s, z.transpose(1, 2)) + kernel.c
    slope = base.pow(kernel.degree - 1)
    value = base.mul_(slope)
    mmd = total(value[:, :, :c_s]) / c_s**2 - total(value[:, :, c_s:]) * (2 / (c_s * c_t))
    if teacher:
        mmd = mmd + teacher_polynomial(kernel, t)
    return mmd, slope.mul_(kernel.degree)


def teacher_polynomial(kernel: Polynomial, t: Tensor) -> Tensor:
    """Mean of k over the teacher's pairs, `[b]` in float64."""
    return total((torch.bmm(t, t.transpose(1, 2)) + kernel.c).pow(kernel.degree)) / t.shape[1] ** 2


def gaussian_block(kernel: Gaussian, s: Tensor, t: Tensor, z: Tensor, teacher: bool) -> tuple[Tensor, Tensor]:
    """As `polynomial_block`; k' is taken with respect to x·y, so k' = k / σ²."""
    c_s, c_t = s.shape[1], t.shape[1]
    live_s, live_t = live_channels(s), live_channels(t)
    sigma2 = gaussian_sigma2(
        kernel.sigma2, c_s / (c_s + c_t), s.mean(dim=1), live_s.mean(dim=1), t.mean(dim=1), live_t.mean(dim=1)
    )
    rate = 1 / sigma2.view(-1, 1, 1)
    value = gaussian_pairs(s, z, live_s, torch.cat((live_s, live_t), dim=1), rate)
    mmd = total(value[:, :, :c_s]) / c_s**2 - total(value[:, :, c_s:]) * (2 / (c_s * c_t))
    if teacher:
        mmd = mmd + total(gaussian_pairs(t, t, live_t, live_t, rate)) / c_t**2
    return mmd, value.mul_(rate)


def gaussian_pairs(a: Tensor, b: Tensor, live_a: Tensor, live_b: Tensor, rate: Tensor) -> Tensor:
    """exp(−‖x − y‖²/2σ²) for all pairs `[b, A, B]`; rate is 1/σ² `[b, 1, 1]`, ‖x‖² is 1 or, of a dead channel, 0."""
    exponent = -0.5 * rate * live_a.unsqueeze(2) - 0.5 * rate * live_b.unsqueeze(1)
    return exponent.baddbmm_(a * rate, b.transpose(1, 2)).exp_()


def stream(
    x: Tensor, teacher_unit: Tensor, kernel: Polynomial | Gaussian, teacher: bool, eps: float, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """MMD² of each image `[B]` and, on spec, its gradient with respect to x (shape and strides of x)."""
    dtype = working_dtype(x)
    c_s, c_t = x.shape[1], teacher_unit.shape[1]
    blocks, values = pair_blocks(x, c_s + c_t), []

    def one_block(block: slice, out: Tensor | None = None) -> Tensor:
        inverse = inverse_norms(x[block], eps)
        s, t = scale_maps(x[block], inverse), teacher_unit[block].to(dtype)
        z = torch.cat((s, t), dim=1)
        if isinstance(kernel, Gaussian):
            value, slope = gaussian_block(kernel, s, t, z, teacher)
        else:
            value, slope = polynomial_block(kernel, s, t, z, teacher)
        values.append(value)
        if not with_gradient:
            return value
        z[:, :c_s] *= 2 / c_s**2
        z[:, c_s:] *= -2 / (c_s * c_t)
        return unit_gradient(matmul_like(s, slope, z), s, inverse, out)

    if with_gradient:
        gradient = map_blocks(x, dtype, blocks, one_block)
        return join(values).to(dtype), gradient
    return join([one_block(block) for block in blocks]).to(dtype), None


class StreamedMMD(torch.autograd.Function):
    """The value of `stream`, its gradient kept from the forward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, teacher_unit: Tensor, kernel: Polynomial | Gaussian, teacher: bool, eps: float):
        with no_autocast(x):
            value, gradient = stream(x, teacher_unit, kernel, teacher, eps, with_gradient=True)
        ctx.save_for_backward(gradient, x)
        ctx.dtype = x.dtype
        return value

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, _ = ctx.saved_tensors
        return (gradient * grad.view(-1, 1, 1)).to(ctx.dtype), None, None, None, None


def streamed_mmd(x: Tensor, teacher_unit: Tensor, kernel: Polynomial | Gaussian, teacher: bool, eps: float) -> Tensor:
    """MMD² of each image `[B]` from student maps `[B, C_S, N]` and the teacher's unit maps `[B, C_T, N]`.

    Args:
        x: student maps.
        teacher_unit: unit maps of the teacher, any floating dtype.
        kernel: which kernel.
        teacher: whether the value includes the teacher–teacher term (no gradient comes from it).
        eps: see `inverse_norms`.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return StreamedMMD.apply(x, teacher_unit, kernel, teacher, eps)  # type: ignore[return-value]
    with no_autocast(x):
        return stream(x, teacher_unit, kernel, teacher, eps, with_gradient=False)[0]
