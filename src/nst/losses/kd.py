"""Soft targets (Hinton, Vinyals & Dean, 2015), method KD of the paper's tables."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import LogitLoss, check_convention, check_number, kl_divergence, no_autocast


class KD(LogitLoss):
    """KL(p_T ‖ p_S) of the distributions softened by a temperature, p = softmax(z / T); mean over the batch.

    Weight λ = 16 and T = 4 are those of the paper's authors (their code's configuration).

    Args:
        temperature: T > 0.
        convention: "paper" and "official": KL alone, so that λ = 16 = T² stands outside. Their code minimises the
            cross-entropy of the soft targets, which differs by the teacher's entropy: the same gradient, but not zero
            at S = T, which is why the KL is used here. "crd": T² · KL, as in CRD's benchmark (weight 0.9 there) and in
            Knowledge-Distillation-Zoo.
        standardize: logits of zero mean and unit deviation (Sun et al., Logit Standardization, 2024; their code has T = 2
            and weight 9 · T² besides a cross-entropy of weight 0.1).

    Raises:
        ValueError: a temperature that is not a positive number, an unknown convention.
    """

    def __init__(
        self,
        temperature: float = 4.0,
        convention: Literal["paper", "official", "crd"] = "paper",
        standardize: bool = False,
    ) -> None:
        super().__init__(standardize)
        check_number("temperature", temperature, above=0)
        check_convention(convention)
        self.temperature = float(temperature)
        self.scale = self.temperature**2 if convention == "crd" else 1.0

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]` → scalar. Raises ValueError when the class counts differ."""
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
            log_s = F.log_softmax(student / self.temperature, dim=1)
            log_t = F.log_softmax(teacher / self.temperature, dim=1)
            return self.scale * kl_divergence(log_s, log_t)
