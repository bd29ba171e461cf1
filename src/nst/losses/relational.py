"""Losses that relate the images of a batch by their pooled features: PKT, CC, RKD."""

from collections.abc import Callable
from math import exp, factorial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.losses.base import (
    ReducedLoss,
    Shape,
    blocks_of,
    check_choice,
    check_equal,
    check_numbers,
    first_order,
    map_shapes,
    no_autocast,
    pool,
    unit_rows,
)

SAME = 1e-13  # of ‖x‖² + ‖y‖²; a ‖x − y‖² up to this is rounding of float32 features: the two images are one point
BLOCK_BYTES = 64 << 20  # cosines of RKD held at a time, B² of 8 bytes for each vertex


class PooledLoss(ReducedLoss):
    """A loss between the pooled features of the images of the global batch, `[B, C_S]` and `[B, C_T]`, as before a classifier."""

    relational: ClassVar[bool] = True
    key = "pooled"
    same_shape = False

    def reduce(self, feature: Tensor, owner: str) -> Tensor:
        """`[B, C, H, W]` or `[B, C]` → `[B, C]`."""
        return pool(feature, owner)

    def reduce_student(self, student_feature: Tensor) -> Tensor:
        """The pooled feature `[B, C_S]`: H·W times smaller than the map."""
        with no_autocast(student_feature):
            return pool(student_feature, "student")

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The pooled feature."""
        return {"pooled": map_shapes(student_shape, teacher_shape, vectors=True)[1][:1]}


class PKT(PooledLoss):
    """1/B² · Σ_i Σ_{j≠i} t_ij log(t_ij / s_ij), t and s the probabilities that image i picks image j as its neighbour.

    Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018).
    p_ij = K_ij / Σ_{k≠i} K_ik with K_ij = (cos(x_i, x_j) + 1) / 2 and x the pooled feature.

    Args:
        convention: "paper": as above; the paper sums over the pairs, the factor 1/B² is the code's. "crd", the published codes:
            the image itself is one of the j and k, and 1e-7 is added to lengths and to both probabilities in the logarithm.
    """

    def __init__(self, convention: Literal["paper", "crd"] = "paper") -> None:
        super().__init__()
        check_choice("convention", convention, ("paper", "crd"))
        self.own = convention == "crd"
        self.eps = 1e-7 if self.own else 0.0

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of pooled features `[B, C_S]` and `[B, C_T]`; 0 for one image."""
        s, t = self.probabilities(student), self.probabilities(teacher)
        tiny = torch.finfo(s.dtype).tiny  # where both are 0, as on the diagonal, the term is 0
        return (t * ((t + self.eps).clamp_min(tiny).log() - (s + self.eps).clamp_min(tiny).log())).mean()

    def probabilities(self, x: Tensor) -> Tensor:
        """`[B, C]` → `[B, B]`, rows that add up to 1 (of zeros, for one image and "paper")."""
        unit = unit_rows(x, self.eps)
        kernel = (unit @ unit.T + 1) / 2
        if not self.own:
            kernel = kernel.clamp_min(0) * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
        total = kernel.sum(dim=1, keepdim=True)
        return kernel / torch.where(total > 0, total, 1.0)


class CC(PooledLoss):
    """mean over pairs of images of (K_T − K_S)², K_ij = Σ_{p=0}^{P} e^{−2γ} (2γ)^p / p! · (e_iᵀ e_j)^p.

    Correlation congruence (Peng, Jin, Liu, Li, Wu, Liu, Zhou & Zhang, ICCV 2019).
    K is the Taylor series of order P of the Gaussian kernel exp(−γ ‖e_i − e_j‖²) on unit vectors. e is the pooled feature through a linear layer to `dim` values, one
    for the student and one for the teacher, made by `setup` and both trained.

    Args:
        dim: values of the embedding; None: the pooled feature itself, as in Knowledge-Distillation-Zoo.
        gamma: γ > 0.
        order: P, at least 1.
        convention: "paper": as above, over all B² pairs. "crd" (CRD's benchmark, from the authors): the mean over neighbouring
            images of the batch of Σ_d |δ_b| |δ_{b+1}|, δ_b = e_S − e_T of image b and e not scaled; γ and P play no part.
    """

    def __init__(
        self,
        dim: int | None = 128,
        gamma: float = 0.4,
        order: int = 2,
        convention: Literal["paper", "crd"] = "paper",
    ) -> None:
        super().__init__()
        check_numbers(least=1, whole=True, dim=1 if dim is None else dim, order=order)
        check_numbers(above=0, gamma=gamma)
        check_choice("convention", convention, ("paper", "crd"))
        self.dim, self.convention = dim, convention
        self.coefficients = [exp(-2 * gamma) * (2 * gamma) ** p / factorial(p) for p in range(order + 1)]
        self.embed_student: nn.Module = nn.Identity()
        self.embed_teacher: nn.Module = nn.Identity()

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the embeddings."""
        if self.dim is not None:
            self.embed_student = nn.Linear(student_shape[0], self.dim)
            self.embed_teacher = nn.Linear(teacher_shape[0], self.dim)

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of pooled features `[B, C_S]` and `[B, C_T]`; "crd" gives 0 for one image, and needs equal channels without embeddings."""
        student, teacher = self.embed_student(student), self.embed_teacher(teacher)
        if self.convention == "paper":
            return (self.correlations(student) - self.correlations(teacher)).square().mean()
        check_equal(student, teacher)
        delta = (student - teacher).abs()
        return (delta[:-1] * delta[1:]).sum() / max(1, len(delta) - 1)

    def correlations(self, embedded: Tensor) -> Tensor:
        """`[B, dim]` → K, `[B, B]`."""
        unit = unit_rows(embedded)
        similarity = unit @ unit.T
        total = torch.full_like(similarity, self.coefficients[-1])
        for coefficient in reversed(self.coefficients[:-1]):
            total = total * similarity + coefficient
        return total


class RKD(PooledLoss):
    """w_d · mean over pairs of h(d_S − d_T) + w_a · mean over triples of h(a_S − a_T), h the Huber loss (δ = 1).

    Relational knowledge distillation (Park, Kim, Lu & Cho, CVPR 2019).
    d_ij = ‖x_i − x_j‖₂ over its mean over the pairs, a_ijk the cosine of the angle at x_j between x_i and x_k, x the pooled
    feature. Both come from the matrix of products in float64, so no tensor is larger than a block of B² cosines. Two images with the
    same feature are at distance 0, and their angle with a third has cosine 0.

    Args:
        distance, angle: w_d and w_a, at least 0.
        convention: "paper": pairs and triples of different images; the paper sums over them (recalled, unverified), the mean is
            the code's. "crd": the means are over all B² and B³ index tuples, repeated images included, as in the published codes.
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


def powers_of_distances(k: Tensor, power: Callable[[Tensor], Tensor]) -> Tensor:
    """From products to `power` of ‖x_i − x_j‖², `[B, B]`, exactly 0 (without gradient) where the two are one point."""
    own = k.diagonal()
    both = own[:, None] + own
    squared = both - 2 * k
    same = (squared <= SAME * both.detach()).fill_diagonal_(True)
    return torch.where(same, 0.0, power(torch.where(same, 1.0, squared)))


def relative_distances(k: Tensor) -> Tensor:
    """‖x_i − x_j‖ over its mean over i ≠ j, `[B, B]`; all 0 where all images are one point."""
    distance = powers_of_distances(k, torch.sqrt)
    mean = distance.sum() / max(1, len(k) * (len(k) - 1))
    return distance / torch.where(mean == 0, 1.0, mean)


class AngleHuber(torch.autograd.Function):
    """Products of student and teacher → Σ h(a_S − a_T) over the triples, a block of vertices at a time.

    The gradient is gathered in the forward pass: nothing of the size B³ is kept.
    """

    @staticmethod
    def forward(ctx, k_s: Tensor, k_t: Tensor, different: bool) -> Tensor:
        total, gradient, own = k_s.new_zeros(()), torch.zeros_like(k_s), torch.zeros_like(k_s[0])
        inverse_s, inverse_t = (powers_of_distances(k, torch.rsqrt) for k in (k_s, k_t))
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


def cosines(k: Tensor, inverse: Tensor, block: slice) -> Tensor:
    """Cosine of the angle at x_a between x_i and x_k, `[a, i, k]`, for the vertices a of a block."""
    vertex = k[block]
    own = k.diagonal()[block]
    scalar = k - vertex[:, :, None] - vertex[:, None, :] + own[:, None, None]
    return scalar * inverse[:, :, None] * inverse[:, None, :]
