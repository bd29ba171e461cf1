"""Everything of second order in x·y: the polynomial kernel of degree 2 and the Gaussian's Taylor series.

Both are a ΔG + b Δμ with ΔG = ‖G_S − G_T‖², Δμ = ‖μ_S − μ_T‖², by Gram matrices or by pairs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nst.losses.mmd.gram import gram_terms, unpack
from nst.losses.mmd.mean import mean_and_live
from nst.losses.mmd.pairs import pair_terms
from nst.losses.mmd.stream import Sigma2, gaussian_sigma2


def distances(
    x: Tensor, teacher: Mapping[str, Tensor], with_mean: bool, teacher_term: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """‖G_S − G_T‖² and ‖μ_S − μ_T‖² (0 unless `with_mean`) of each image, `[B]`, with gradient.

    Args:
        x: student maps `[B, C_S, N]`.
        teacher: either "gram" (packed) and perhaps "mean", or "units" `[B, C_T, N]`.
        with_mean: whether Δμ is needed.
        teacher_term: False subtracts ‖G_T‖² and ‖μ_T‖².
        eps: see `inverse_norms`.
    """
    if "gram" in teacher:
        mean = teacher["mean"] if with_mean else None
        gram_squared, mean_squared = gram_terms(x, teacher["gram"], mean, eps)
    else:
        gram_squared, mean_squared = pair_terms(x, teacher["units"], with_mean, eps)
    if teacher_term:
        return gram_squared, mean_squared
    if "gram" in teacher:
        own_gram = unpack(teacher["gram"]).square().sum(dim=(1, 2))
    else:
        own_gram = torch.bmm(teacher["units"], teacher["units"].transpose(1, 2)).square().mean(dim=(1, 2))
    if with_mean:
        mean_squared = mean_squared - teacher_mean(teacher).square().sum(dim=1)
    return gram_squared - own_gram, mean_squared


def teacher_mean(teacher: Mapping[str, Tensor]) -> Tensor:
    """The teacher's mean unit map `[B, N]`."""
    return teacher["mean"] if "mean" in teacher else teacher["units"].mean(dim=1)


def channel_counts(x: Tensor, eps: float) -> Tensor:
    """Maps `[B, C, N]` → how many channels are live, and how many there are, `[B, 2]`."""
    _, live = mean_and_live(x, eps)
    channels = torch.full_like(live, x.shape[1])
    return torch.stack((live * channels, channels), dim=1)


def quadratic_mmd(x: Tensor, teacher: Mapping[str, Tensor], c: float, teacher_term: bool, eps: float) -> Tensor:
    """MMD² `[B]` of the kernel (xᵀy + c)²: ΔG + 2c Δμ; c² cancels but for the teacher's own term."""
    gram_squared, mean_squared = distances(x, teacher, c != 0, teacher_term, eps)
    value = gram_squared + 2 * c * mean_squared
    return value if teacher_term else value - c**2


def taylor_mmd(x: Tensor, teacher: Mapping[str, Tensor], sigma2: Sigma2, teacher_term: bool, eps: float) -> Tensor:
    """Approximate MMD² `[B]` of the Gaussian kernel, its exp(x·y/σ²) cut after the second order.

    exp(−‖x − y‖²/2σ²) = a_x a_y exp(x·y/σ²) with a = exp(−1/2σ²), or 1 for a dead channel, so that
    MMD² ≈ (ā_S − ā_T)² + exp(−1/σ²) · (Δμ/σ² + ΔG/2σ⁴). σ² carries no gradient.
    """
    with torch.no_grad():
        mean_s, live_s = mean_and_live(x, eps)
        counts = teacher["counts"] if "counts" in teacher else channel_counts(teacher["units"], 0.0)
        live_t = counts[:, 0] / counts[:, 1]
        share = x.shape[1] / (x.shape[1] + counts[:, 1])
        s2 = gaussian_sigma2(sigma2, share, mean_s, live_s, teacher_mean(teacher), live_t)
        a = torch.exp(-0.5 / s2)
        a_s, a_t = 1 - live_s * (1 - a), 1 - live_t * (1 - a)
        offset = (a_s - a_t).square() if teacher_term else a_s * (a_s - 2 * a_t)
    gram_squared, mean_squared = distances(x, teacher, True, teacher_term, eps)
    return offset + a.square() * (mean_squared / s2 + gram_squared / (2 * s2.square()))
