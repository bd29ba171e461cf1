"""Unit channel maps: x̂ = x / ‖x‖₂ over positions, forward and gradient, shared by every form of the MMD."""

import torch
from torch import Tensor

from nst.losses.base import working_dtype

DEAD = 1e-12
"""A channel whose norm is not above this, or not above the smallest normal number of its dtype (6.1e-5 in float16),
is dead: its unit map is zero and it passes no gradient."""
OFFICIAL_EPS = 1e-10
"""The official code's x / √(‖x‖² + ε)."""


def unit_maps(x: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """`[B, C, N]` → unit maps `[B, C, N]` (laid out in memory as x) and inverse norms `[B, C, 1]`.

    Args:
        x: channel maps, any floating dtype and strides.
        eps: added to ‖x‖² under the root (`OFFICIAL_EPS` for the official convention).
    """
    work = x.to(working_dtype(x))
    inverse = inverse_root((work * work).sum(dim=2, keepdim=True), eps, x.dtype)
    return work * inverse, inverse


def inverse_root(squared: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """‖x‖² → 1/√(‖x‖² + eps), zero for a dead channel of features of this dtype."""
    threshold = max(DEAD, torch.finfo(dtype).tiny)
    return torch.where(squared > threshold**2, (squared + eps).rsqrt(), 0.0)


def live_channels(unit: Tensor) -> Tensor:
    """Unit maps `[B, C, N]` → 1 for a live channel, 0 for a dead one, `[B, C]`."""
    return (unit.abs().amax(dim=2) > 0).to(unit.dtype)


def unit_gradient(grad: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """Gradient through `unit_maps`: r · (g − x̂ (x̂ · g)). Overwrites `grad`; zero for dead channels."""
    along = (grad * unit).sum(dim=2, keepdim=True)
    return grad.addcmul_(unit, along, value=-1).mul_(inverse)


def channels_inner(x: Tensor) -> bool:
    """Whether `[B, C, N]` lies in memory with the channels innermost, as channels_last features do."""
    return x.stride(1) == 1 and x.stride(2) != 1


def matmul_like(layout: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a @ b, `[B, C, M] @ [B, M, N]`, laid out in memory like `layout`: spares a copy of channels_last features."""
    if channels_inner(layout):
        return torch.bmm(b.transpose(1, 2), a.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(a, b)
