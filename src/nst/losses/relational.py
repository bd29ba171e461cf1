"""Losses that relate the images of a batch: the base of those on pooled features; PKT, CC and SP."""

from collections.abc import Callable, Mapping
from math import exp, factorial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nst.losses.base import (
    Shape,
    TransferLoss,
    check_choice,
    check_map,
    check_numbers,
    laid_out_like,
    map_shape,
    no_autocast,
    pool,
    target_tensor,
    unit_rows,
    working_dtype,
)
from nst.losses.maps import MapLoss

CRD_EPS = 1e-7


class PooledLoss(TransferLoss):
    """A loss between the pooled features of the images of the global batch, as before a network's classifier.

    `value(student, teacher, **what inputs names)` compares `[B, C_S]` and `[B, C_T]` in the working precision.
    """

    value: Callable[..., Tensor]
    relational: ClassVar[bool] = True

    @property
    def target_key(self) -> str:
        """The pooled feature, whatever the settings."""
        return "pooled"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"pooled": [B, C_T]}`. Raises ValueError for a feature that is neither [B, C, H, W] nor [B, C]."""
        with no_autocast(teacher_feature):
            return {"pooled": pool(teacher_feature, "teacher")}

    def reduce_student(self, student_feature: Tensor) -> Tensor:
        """The pooled feature `[B, C_S]`: H·W times smaller than the map."""
        with no_autocast(student_feature):
            return pool(student_feature, "student")

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C, H, W]` or `[B, C]` of the global batch → scalar.

        Raises:
            ValueError: the target is of another loss or batch, or lacks what `inputs` names.
        """
        with no_autocast(student_feature):
            student = pool(student_feature, "student")
            teacher = target_tensor(target, "pooled", len(student)).to(student.dtype)
            return self.value(student, teacher, **self.given(target, len(student)))

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The pooled feature."""
        map_shape(student_shape, "student")
        return {"pooled": map_shape(teacher_shape, "teacher")[:1]}


class PKT(PooledLoss):
    """1/B² · Σ_i Σ_{j≠i} t_ij log(t_ij / s_ij), t and s the probabilities that image i picks image j as its neighbour.

    Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018).
    p_ij = K_ij / Σ_{k≠i} K_ik with K_ij = (cos(x_i, x_j) + 1) / 2 and x the pooled feature. It relates images, so it sees the
    global batch. The setting of CRD's benchmark and of mdistiller: weight 30000, the feature before the classifier.

    Args:
        convention: "paper": as above; the paper sums over the pairs, the factor 1/B² is the code's. That an image is not its
            own neighbour is recalled from the paper, unverified. "crd": the authors' code and all that took it over (CRD's
            benchmark, mdistiller, torchdistill): the image itself is one of the j and k, and 1e-7 is added to lengths and
            to both probabilities in the logarithm.
    """

    def __init__(self, convention: Literal["paper", "crd"] = "paper") -> None:
        super().__init__()
        check_choice("convention", convention, ("paper", "crd"))
        self.eps = CRD_EPS if convention == "crd" else 0.0
        self.own = convention == "crd"

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
    The equation is recalled from the paper, unverified; Knowledge-Distillation-Zoo has the same. K is the Taylor series of order P of
    the Gaussian kernel exp(−γ ‖e_i − e_j‖²) on unit vectors. e is the pooled feature through a linear layer to `dim` values, one
    for the student and one for the teacher, made by `setup` and both trained. It relates images, so it sees the global batch.
    γ = 0.4 and P = 2 are Knowledge-Distillation-Zoo's and torchdistill's defaults; the weight of CRD's benchmark is 0.02, for its
    own convention.

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
        """Of pooled features `[B, C_S]` and `[B, C_T]`; "crd" gives 0 for one image.

        Raises:
            ValueError: "crd" without embeddings and with unequal channels.
        """
        student, teacher = self.embed_student(student), self.embed_teacher(teacher)
        if self.convention == "paper":
            return (self.correlations(student) - self.correlations(teacher)).square().mean()
        if student.shape != teacher.shape:
            raise ValueError(
                f"the student has {student.shape[1]} channels, the teacher {teacher.shape[1]}; convention 'crd' compares "
                "embeddings of one size: give dim, and call setup(student_shape, teacher_shape) first"
            )
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


class SP(MapLoss):
    """‖Ĝ_T − Ĝ_S‖²_F / B² with G = F Fᵀ over the B images of the batch, F `[B, C·H·W]`, and Ĝ its rows at unit length.

    Similarity-preserving knowledge distillation (Tung & Mori, ICCV 2019).
    It relates images, so it sees the global batch, and its target is the map as it is. Channels and map sizes may differ. The setting of CRD's benchmark and
    mdistiller, and as recalled (unverified) of the paper: weight 3000, the last stage. Knowledge-Distillation-Zoo takes the mean over three stages;
    torchdistill's code scales rows to a sum of 1 instead.
    """

    relational: ClassVar[bool] = True

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C_S, H_S, W_S]` of the global batch → scalar; 0 for one image. Raises ValueError for another batch size."""
        check_map(student_feature, "student")
        teacher = target_tensor(target, "feature", student_feature.shape[0])
        check_map(teacher, "teacher")
        with no_autocast(student_feature):
            dtype = working_dtype(student_feature)
            with torch.no_grad():
                expected = similarities(laid_out_like(teacher, student_feature).to(dtype))
            return (similarities(student_feature.to(dtype)) - expected).square().mean()


def similarities(feature: Tensor) -> Tensor:
    """`[B, C, H, W]` → products of the images, rows at unit length, `[B, B]`; an image of zeros has a row of zeros.

    A channels-last map is read in its own order of values, which the products do not depend on: nothing is copied.
    """
    last = feature.stride(1) == 1 and feature.stride(-1) != 1
    rows = (feature.movedim(1, -1) if last else feature).flatten(1)
    products = rows @ rows.T
    # The result does not change with the scale of all: dividing by the peak keeps squares within float32.
    peak = products.detach().abs().amax()
    products = products / torch.where(peak > 0, peak, 1.0)
    squared = products.square().sum(dim=1, keepdim=True)
    return products / torch.where(squared > 0, squared, 1.0).sqrt()
