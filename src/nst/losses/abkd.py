"""ABKD, distillation by the α-β-divergence (Wang, Yang, Wang, Wang, Xu & Huang, ICML 2025)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import check_choice, check_numbers
from nst.losses.logits import LogitLoss


class ABKD(LogitLoss):
    """D(p_T ‖ p_S) = −1/(αβ) · Σ_c (p_T^α p_S^β − α/(α+β) · p_T^(α+β) − β/(α+β) · p_S^(α+β)), p = softmax(z / T); mean over the batch.

    α = 1, β = 0 is the KL divergence, α = 0, β = 1 the reverse one: a larger α puts weight on the classes of large errors, a larger β on
    those of which the student is sure. The limits have equations of their own (Cichocki et al., 2011), with p of the
    teacher and q of the student:

        β = 0:        1/α² · Σ (p^α log(p^α / q^α) − p^α + q^α)
        α = 0:        1/β² · Σ (q^β log(q^β / p^β) − q^β + p^β)
        α + β = 0:    1/α² · Σ (log(q^α / p^α) + p^α / q^α − 1)
        α = β = 0:    1/2 · Σ (log p − log q)²

    Args:
        alpha, beta: finite.
        temperature: T > 0.
        convention: "paper": as above. "official": the first three limits have 1/α (1/β) where the equation has its square, and a class
            with an infinite logit on either side is left out of the sum.
    """

    def __init__(
        self,
        alpha: float = 0.8,
        beta: float = 0.3,
        temperature: float = 4.0,
        convention: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        check_numbers(alpha=alpha, beta=beta)
        check_numbers(above=0, temperature=temperature)
        check_choice("convention", convention, ("paper", "official"))
        self.alpha, self.beta, self.temperature = float(alpha), float(beta), float(temperature)
        self.official = convention == "official"

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits `[B, classes]`."""
        log_q, log_p = (F.log_softmax(z / self.temperature, dim=1) for z in (student, teacher))
        terms = self.divergence(log_p, log_q)
        if self.official:
            terms = terms.masked_fill(student.isinf() | teacher.isinf(), 0.0)
        return terms.sum(dim=1).mean()

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The terms of the sum over the classes, `[B, classes]`, from logarithms of the teacher's p and the student's q."""
        a, b = self.alpha, self.beta
        if a == 0 and b == 0:
            return 0.5 * difference(log_p, log_q, log_p == log_q).square()
        if b == 0:
            p = torch.exp(a * log_p)
            return (p * a * difference(log_p, log_q, p == 0) - p + torch.exp(a * log_q)) / self.limit(a)
        if a == 0:
            q = torch.exp(b * log_q)
            return (q * b * difference(log_q, log_p, q == 0) - q + torch.exp(b * log_p)) / self.limit(b)
        if a + b == 0:
            log_ratio = a * difference(log_q, log_p, log_p == log_q)
            return (log_ratio + torch.exp(-log_ratio) - 1) / self.limit(a)
        joint = a * torch.exp((a + b) * log_p) + b * torch.exp((a + b) * log_q)
        return (joint / (a + b) - torch.exp(a * log_p + b * log_q)) / (a * b)

    def limit(self, exponent: float) -> float:
        """The divisor of a limit's sum."""
        return exponent if self.official else exponent**2


def difference(x: Tensor, y: Tensor, zero: Tensor) -> Tensor:
    """x − y, 0 without gradient where `zero`: there both may be infinite."""
    return x.masked_fill(zero, 0.0) - y.masked_fill(zero, 0.0)
