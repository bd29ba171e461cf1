"""Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from nst.losses.base import PooledLoss, check_convention, no_autocast, unit_rows

CRD_EPS = 1e-7


class PKT(PooledLoss):
    """1/B² · Σ_i Σ_{j≠i} t_ij log(t_ij / s_ij), t and s the probabilities that image i picks image j as its neighbour.

    p_ij = K_ij / Σ_{k≠i} K_ik with K_ij = (cos(x_i, x_j) + 1) / 2 and x the pooled feature. It relates images, so it sees the
    global batch. The setting of CRD's benchmark and of mdistiller: weight 30000, the feature before the classifier.

    Args:
        convention: "paper": as above; the paper sums over the pairs, the factor 1/B² is the code's. That an image is not its
            own neighbour is recalled from the paper, unverified. "crd": the authors' code and all that took it over (CRD's
            benchmark, mdistiller, torchdistill): the image itself is one of the j and k, and 1e-7 is added to lengths and
            to both probabilities in the logarithm.

    Raises:
        ValueError: an unknown convention.
    """

    def __init__(self, convention: Literal["paper", "crd"] = "paper") -> None:
        super().__init__()
        check_convention(convention, ("paper", "crd"))
        self.eps = CRD_EPS if convention == "crd" else 0.0
        self.own = convention == "crd"

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, C, H, W]` or `[B, C]` of the global batch → scalar; 0 for one image. Raises ValueError for another batch."""
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
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
