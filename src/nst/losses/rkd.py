"""Relational knowledge distillation (Park, Kim, Lu & Cho, CVPR 2019)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import blocks_of, check_choice, check_numbers, first_order
from nst.losses.relational import PooledLoss

SAME = 1e-13
"""‖x − y‖² up to this share of ‖x‖² + ‖y‖² is rounding of float32 features: the two images are one point."""
BLOCK_BYTES = 64 << 20
"""Cosines held at a time, B² of 8 bytes for each vertex."""


class RKD(PooledLoss):
    """w_d · mean over pairs of h(d_S − d_T) + w_a · mean over triples of h(a_S − a_T), h the Huber loss (δ = 1).

    d_ij = ‖x_i − x_j‖₂ over its mean over the pairs, a_ijk the cosine of the angle at x_j between x_i and x_k, x the pooled
    feature. It relates images, so it sees the global batch. The setting of CRD's benchmark and mdistiller, and as recalled
    (unverified) of the paper: weight 1, w_d = 25, w_a = 50, the feature before the classifier.

    Distances and angles come from the matrix of products in float64, so no tensor is larger than a block of B² cosines.

    Args:
        distance, angle: w_d and w_a, at least 0.
        convention: "paper": pairs and triples of different images; the paper sums over them (recalled, unverified), the mean is the code's. "crd": the
            means are over all B² and B³ index tuples, repeated images included, as in the authors' code, CRD's benchmark,
            mdistiller, torchdistill and Knowledge-Distillation-Zoo.

    Two images with the same feature are at distance 0, and their angle with a third has cosine 0.
    """

    def __init__(
        self, distance: float = 25.0, angle: float = 50.0, convention: Literal["paper", "crd"] = "paper"
    ) -> None:
        super().__init__()
        check_numbers(least=0, distance=distance, angle=angle)
        check_choice("convention", convention, ("paper", "crd"))
        self.distance, self.angle = distance, angle
        self.different = convention == "paper"

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of pooled features `[B, C_S]` and `[B, C_T]`; 0 for one image."""
        b = len(student)
        pairs, triples = (b * (b - 1), b * (b - 1) * (b - 2)) if self.different else (b**2, b**3)
        k_s, k_t = products(student), products(teacher)
        distances = F.smooth_l1_loss(relative_distances(k_s), relative_distances(k_t), reduction="sum")
        value = self.distance * distances / max(1, pairs)
        if self.angle and b > 1:
            angles: Tensor = AngleHuber.apply(k_s, k_t, self.different)  # type: ignore[assignment]
            value = value + self.angle * angles / max(1, triples)
        return value.to(student.dtype)


def products(x: Tensor) -> Tensor:
    """`[B, C]` → products of the centred rows, scaled by their peak, `[B, B]` in float64."""
    x = x.double()
    x = x - x.mean(dim=0)
    peak = x.detach().abs().amax()
    x = x / torch.where(peak == 0, 1.0, peak)
    return x @ x.T


def squared_distances(k: Tensor) -> Tensor:
    """From products to ‖x_i − x_j‖², `[B, B]`, exactly 0 (without gradient) where the two are one point."""
    own = k.diagonal()
    both = own[:, None] + own
    squared = both - 2 * k
    coincident = squared <= SAME * both.detach()
    return torch.where(coincident.fill_diagonal_(True), 0.0, squared)


def relative_distances(k: Tensor) -> Tensor:
    """‖x_i − x_j‖ over its mean over i ≠ j, `[B, B]`; all 0 where all images are one point."""
    squared = squared_distances(k)
    distance = torch.where(squared == 0, 0.0, torch.where(squared == 0, 1.0, squared).sqrt())
    mean = distance.sum() / max(1, len(k) * (len(k) - 1))
    return distance / torch.where(mean == 0, 1.0, mean)


class AngleHuber(torch.autograd.Function):
    """Products of student and teacher → Σ h(a_S − a_T) over the triples, a block of vertices at a time.

    The gradient is gathered in the forward pass: nothing of the size B³ is kept.
    """

    @staticmethod
    def forward(ctx, k_s: Tensor, k_t: Tensor, different: bool) -> Tensor:
        total, gradient, own = k_s.new_zeros(()), torch.zeros_like(k_s), torch.zeros_like(k_s[0])
        inverse_s, inverse_t = inverse_distances(k_s), inverse_distances(k_t)
        for block in blocks_of(len(k_s), 8 * k_s.numel(), BLOCK_BYTES):
            r = inverse_s[block]
            cosine = cosines(k_s, r, block)
            difference = cosine - cosines(k_t, inverse_t[block], block)
            if different:
                difference.diagonal(dim1=1, dim2=2).zero_()
            slope = difference.clamp(-1, 1)
            total += (slope * (difference - slope / 2)).sum()
            weight = slope * r[:, :, None] * r[:, None, :]
            rows = weight.sum(dim=2)
            # of ‖x_i − x_a‖²: K_ii + K_aa − 2 K_ia
            through_length = -r.square() * (slope * cosine).sum(dim=2)
            gradient += weight.sum(dim=0)
            gradient[block] -= 2 * (rows + through_length)
            own[block] += rows.sum(dim=1) + through_length.sum(dim=1)
            own += through_length.sum(dim=0)
        gradient.diagonal().add_(own)
        ctx.save_for_backward(gradient, k_s)
        return total

    @staticmethod
    @first_order
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, _ = ctx.saved_tensors
        return gradient * grad, None, None


def inverse_distances(k: Tensor) -> Tensor:
    """1 / ‖x_i − x_j‖, `[B, B]`; 0 where the two are one point."""
    squared = squared_distances(k)
    return torch.where(squared == 0, 0.0, torch.where(squared == 0, 1.0, squared).rsqrt())


def cosines(k: Tensor, inverse: Tensor, block: slice) -> Tensor:
    """Cosine of the angle at x_a between x_i and x_k, `[a, i, k]`, for the vertices a of a block."""
    vertex = k[block]
    own = k.diagonal()[block]
    scalar = k - vertex[:, :, None] - vertex[:, None, :] + own[:, None, None]
    return scalar * inverse[:, :, None] * inverse[:, None, :]
