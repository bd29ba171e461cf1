"""Correlation congruence (Peng, Jin, Liu, Li, Wu, Liu, Zhou & Zhang, ICCV 2019)."""

from collections.abc import Mapping
from math import exp, factorial
from typing import Literal

import torch
from torch import Tensor, nn

from nst.losses.base import PooledLoss, Shape, check_convention, check_number, no_autocast, unit_rows


class CC(PooledLoss):
    """mean over pairs of images of (K_T − K_S)², K_ij = Σ_{p=0}^{P} e^{−2γ} (2γ)^p / p! · (e_iᵀ e_j)^p.

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

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        dim: int | None = 128,
        gamma: float = 0.4,
        order: int = 2,
        convention: Literal["paper", "crd"] = "paper",
    ) -> None:
        super().__init__()
        if dim is not None:
            check_number("dim", dim, least=1, whole=True)
        check_number("gamma", gamma, above=0)
        check_number("order", order, least=1, whole=True)
        check_convention(convention, ("paper", "crd"))
        self.dim, self.convention = dim, convention
        self.coefficients = [exp(-2 * gamma) * (2 * gamma) ** p / factorial(p) for p in range(order + 1)]
        self.embed_student: nn.Module = nn.Identity()
        self.embed_teacher: nn.Module = nn.Identity()

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the embeddings."""
        if self.dim is not None:
            self.embed_student = nn.Linear(student_shape[0], self.dim)
            self.embed_teacher = nn.Linear(teacher_shape[0], self.dim)

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C, H, W]` or `[B, C]` of the global batch → scalar; "crd" gives 0 for one image.

        Raises:
            ValueError: the target is of another loss or batch; "crd" without embeddings and with unequal channels.
        """
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
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
