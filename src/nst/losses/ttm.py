"""Transformed teacher matching, TTM and WTTM (Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import LogitLoss, check_number, expectation, no_autocast


class TTM(LogitLoss):
    """KL(p̃_T ‖ p_S), p̃_T = p_T^γ / U, U = Σ_c p_T[c]^γ, p = softmax(z); mean over the batch.

    The teacher's distribution is raised to a power, which is a temperature of 1 / γ; the student's is not tempered, and no T² is
    needed. With `weighted` (WTTM) each image's divergence is multiplied by its U, from 1 where the teacher is certain to
    classes^(1 − γ) where it is uniform.

    The authors' setting (their code), beside a cross-entropy of weight 1: on CIFAR-100 γ 0.1 to 0.4 by the pair, WTTM with
    a weight of 1.4 to 16, TTM with one of 7 to 101 (docs/conventions.md); on ImageNet WTTM with γ 0.8 and weight 1.6
    (ResNet-34 → 18) or γ 0.7 and 3.5 (ResNet-50 → MobileNetV1).

    Args:
        gamma: the exponent γ > 0.
        weighted: WTTM.

    Raises:
        ValueError: an argument out of range.
    """

    rows: ClassVar[int] = 9

    def __init__(self, gamma: float = 0.1, weighted: bool = False) -> None:
        super().__init__(standardize=False)
        check_number("gamma", gamma, above=0)
        if not isinstance(weighted, bool):
            raise ValueError(f"weighted is {weighted!r}; it must be true or false")
        self.gamma, self.weighted = float(gamma), weighted

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]` → scalar. Raises ValueError when the class counts differ."""
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
            powers = self.gamma * F.log_softmax(teacher, dim=1)
            log_t, log_s = F.log_softmax(powers, dim=1), F.log_softmax(student, dim=1)
            rows = expectation(log_t.exp(), log_t - log_s)
            return (rows * powers.logsumexp(dim=1).exp() if self.weighted else rows).mean()
