"""Losses of softened distributions: KD, TTM and WTTM, NKD."""

from typing import get_args

from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import Convention, check_choice, check_flags, check_numbers
from nst.losses.logits import LogitLoss, expectation, kl_divergence, label_expectation, log_softmax_without


class KD(LogitLoss):
    """KL(p_T ‖ p_S) of the distributions softened by a temperature, p = softmax(z / T); mean over the batch.

    Soft targets (Hinton, Vinyals & Dean, 2015), method KD of the paper's tables. Weight λ = 16 and T = 4 are those of the paper's
    authors (their code's configuration).

    Args:
        temperature: T > 0.
        convention: "paper" and "official": KL alone, so that λ = 16 = T² stands outside. Their code minimises the
            cross-entropy of the soft targets, which differs by the teacher's entropy: the same gradient, but not zero
            at S = T, which is why the KL is used here. "crd": T² · KL, as in CRD's benchmark (weight 0.9 there) and in
            Knowledge-Distillation-Zoo.
        standardize: logits of zero mean and unit deviation (Sun et al., Logit Standardization, 2024; their code has T = 2
            and weight 9 · T² besides a cross-entropy of weight 0.1).
    """

    def __init__(self, temperature: float = 4.0, convention: Convention = "paper", standardize: bool = False) -> None:
        super().__init__()
        check_numbers(above=0, temperature=temperature)
        check_choice("convention", convention, get_args(Convention))
        check_flags(standardize=standardize)
        self.temperature, self.standardize = float(temperature), standardize
        self.scale = self.temperature**2 if convention == "crd" else 1.0

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits `[B, classes]`."""
        log_s = F.log_softmax(student / self.temperature, dim=1)
        log_t = F.log_softmax(teacher / self.temperature, dim=1)
        return self.scale * kl_divergence(log_s, log_t)


class TTM(LogitLoss):
    """KL(p̃_T ‖ p_S), p̃_T = p_T^γ / U, U = Σ_c p_T[c]^γ, p = softmax(z); mean over the batch.

    Transformed teacher matching (Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024).
    The teacher's distribution is raised to a power, which is a temperature of 1 / γ; the student's is not tempered, and no T² is
    needed. With `weighted` (WTTM) each image's divergence is multiplied by its U, from 1 where the teacher is certain to
    classes^(1 − γ) where it is uniform.

    Args:
        gamma: the exponent γ > 0.
        weighted: WTTM.
    """

    def __init__(self, gamma: float = 0.1, weighted: bool = False) -> None:
        super().__init__()
        check_numbers(above=0, gamma=gamma)
        check_flags(weighted=weighted)
        self.gamma, self.weighted = float(gamma), weighted

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits `[B, classes]`."""
        powers = self.gamma * F.log_softmax(teacher, dim=1)
        log_t, log_s = F.log_softmax(powers, dim=1), F.log_softmax(student, dim=1)
        rows = expectation(log_t.exp(), log_t - log_s)
        return (rows * powers.logsumexp(dim=1).exp() if self.weighted else rows).mean()


class NKD(LogitLoss):
    """−p_T[y] · log p_S[y] − γ · T² · Σ_{c≠y} p̂_T[c] · log p̂_S[c]; mean over the batch.

    Normalised KD (Yang, Zeng, Li, Zhang, Yuan & Li, From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023).
    y is the image's label, p = softmax(z) without a temperature, p̂ = softmax(z / T) over the classes but y. Cross-entropies, not
    divergences, as in the paper, so the value at S = T is not 0.

    Args:
        temperature: T > 0.
        gamma: at least 0.
    """

    inputs = ("labels",)

    def __init__(self, temperature: float = 1.0, gamma: float = 1.5) -> None:
        super().__init__()
        check_numbers(above=0, temperature=temperature)
        check_numbers(least=0, gamma=gamma)
        self.temperature, self.gamma = float(temperature), gamma

    def value(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Of logits `[B, classes]` and labels `[B]` int64."""
        return nkd_rows(student, teacher, labels, self.temperature, self.gamma).mean()


def nkd_rows(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, gamma: float) -> Tensor:
    """NKD of each row of logits `[R, classes]`, `[R]`."""
    own = F.one_hot(labels, student.shape[1]).bool()
    others_t, others_s = (log_softmax_without(z / temperature, own) for z in (teacher, student))
    others = expectation(others_t.exp(), others_s)
    return -label_expectation(student, teacher, labels) - gamma * temperature**2 * others
