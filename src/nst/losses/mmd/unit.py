"""Unit channel maps: x̂ = x / ‖x‖₂ over positions, forward and gradient, shared by every implementation of the MMD."""

import torch
from torch import Tensor

from nst.losses.base import working_dtype

DEAD = 1e-12
"""A channel whose norm is not above this, or not above the smallest normal number of its dtype (6.1e-5 in float16),
is dead: its unit map is zero and it passes no gradient."""
OFFICIAL_EPS = 1e-10
"""The official code's x / √(‖x‖² + ε)."""


def inverse_norms(x: Tensor, eps: float) -> Tensor:
    """`[B, C, N]` → 1/√(‖x‖² + eps) in the working precision, zero for a dead channel, `[B, C, 1]`.

    NaN where ‖x‖² overflows (in float32 from ‖x‖ = 1.8e19 on): such a network has diverged, and is not to pass for one
    with dead channels.

    Args:
        x: channel maps, any floating dtype and strides.
        eps: `OFFICIAL_EPS` for the official convention, else 0.
    """
    work = x.to(working_dtype(x))
    squared = (work * work).sum(dim=2, keepdim=True)
    threshold = max(DEAD, torch.finfo(x.dtype).tiny)
    inverse = torch.where(squared > threshold**2, (squared + eps).rsqrt(), 0.0)
    return torch.where(squared.isfinite(), inverse, torch.nan)


def scale_maps(x: Tensor, inverse: Tensor, out: Tensor | None = None) -> Tensor:
    """Unit maps `[B, C, N]` from maps and inverse norms, laid out in memory like x."""
    return torch.mul(x.to(inverse.dtype), inverse, out=out)


def unit_maps(x: Tensor, eps: float = 0.0) -> Tensor:
    """`[B, C, N]` → unit maps in the working precision; see `inverse_norms`."""
    return scale_maps(x, inverse_norms(x, eps))


def live_channels(unit: Tensor) -> Tensor:
    """Unit maps `[B, C, N]` → 1 for a live channel, 0 for a dead one, `[B, C]`."""
    return (unit.abs().amax(dim=2) > 0).to(unit.dtype)


def unit_gradient(grad: Tensor, unit: Tensor, inverse: Tensor, out: Tensor | None = None) -> Tensor:
    """Gradient through `unit_maps`: r · (g − x̂ (x̂ · g)). Overwrites `grad`; zero for dead channels."""
    along = (grad * unit).sum(dim=2, keepdim=True)
    return torch.mul(grad.addcmul_(unit, along, value=-1), inverse, out=out)


def matmul_like(layout: Tensor, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b, `[B, C, M] @ [B, M, N]`, laid out in memory like `layout`: spares a copy of channels_last features."""
    if layout.stride(1) == 1 and layout.stride(2) != 1:
        transposed = None if out is None else out.transpose(1, 2)
        return torch.bmm(b.transpose(1, 2), a.transpose(1, 2), out=transposed).transpose(1, 2)
    return torch.bmm(a, b, out=out)
