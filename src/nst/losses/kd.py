"""Losses on logits: their base, what they share, and those of whole distributions: KD, TTM and WTTM, NKD, ABKD, DIST."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import Convention, ReducedLoss, Shape, check_choice, check_numbers


class LogitLoss(ReducedLoss):
    """A loss between logits `[B, classes]` of one number of classes.

    Args:
        temperature: T > 0.
        standardize: scale the logits of either side to zero mean and unit deviation first (Sun et al., Logit Standardization, 2024).
    """

    on_logits: ClassVar[bool] = True
    key = "logits"

    def __init__(self, temperature: float = 1.0, standardize: bool = False) -> None:
        super().__init__()
        check_numbers(above=0, temperature=temperature)
        check_choice("standardize", standardize, (True, False))
        self.temperature, self.standardize = float(temperature), standardize

    def reduce(self, feature: Tensor, owner: str) -> Tensor:
        """The logits themselves. Raises ValueError for another number of dimensions."""
        if feature.ndim != 2:
            raise ValueError(f"the {owner}'s logits have shape {tuple(feature.shape)}; [B, classes] is needed")
        return feature

    def prepare(self, reduced: Tensor) -> Tensor:
        """The logits, standardised where the loss says so."""
        return standardise(reduced) if self.standardize else reduced

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The logits. Raises ValueError when the class counts differ."""
        student, teacher = tuple(student_shape), tuple(teacher_shape)
        if student != teacher or len(teacher) != 1:
            raise ValueError(
                f"both sides need (classes,) of one number: the student has {student}, the teacher {teacher}"
            )
        return {"logits": teacher}


def standardise(logits: Tensor) -> Tensor:
    """Zero mean and unit deviation over the classes of an image: (z − z̄) / (1e-7 + std z), `[B, classes]`.

    As in the code of Sun et al. (2024), with the deviation over classes − 1. Logits that are equal but for rounding, and
    those of one class, become zeros, and get no gradient. A class of −∞, which a teacher does not know, counts as none.
    """
    unknown = logits == -torch.inf
    known, classes = (~unknown).sum(dim=1, keepdim=True), logits.shape[1]
    logits = logits.masked_fill(unknown, 0.0)
    centred = (logits - logits.mean(dim=1, keepdim=True) * (classes / known.clamp(min=1))).masked_fill(unknown, 0.0)
    squared = centred.square().sum(dim=1, keepdim=True) / max(1, classes - 1)
    squared = squared * (max(1, classes - 1) / (known - 1).clamp(min=1))  # 1 where all classes are known
    flat = squared <= (4 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1, keepdim=True)) ** 2
    standard = torch.where(flat, 0.0, centred) / (torch.where(flat, 1.0, squared).sqrt() + 1e-7)
    return standard.masked_fill(unknown, -torch.inf)


def kl_divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(p_T ‖ p_S) of log-probabilities `[B, n]`, mean over the batch; a class that the teacher does not know adds nothing."""
    unknown = log_t == -torch.inf
    log_s, log_t = log_s.masked_fill(unknown, 0.0), log_t.masked_fill(unknown, -1e4)  # e to this power is 0
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def expectation(p: Tensor, values: Tensor) -> Tensor:
    """Σ_c p_c · v_c of each row of `[R, classes]`, `[R]`; 0 · ∞ is 0, and an infinite value there gets no gradient."""
    return (p * values.masked_fill(p == 0, 0.0)).sum(dim=1)


def kl_rows(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(p_T ‖ p_S) of each row of log-probabilities `[R, classes]`, `[R]`."""
    return expectation(log_t.exp(), log_t - log_s)


def log_softmax_without(logits: Tensor, left_out: Tensor) -> Tensor:
    """Logarithm of the softmax over the classes that are not left out, `[R, classes]`; −∞ at those that are.

    In a row of which nothing is left all are −∞, without gradient.
    """
    kept = logits.masked_fill(left_out, -torch.inf)
    empty = (kept == -torch.inf).all(dim=1, keepdim=True)
    return F.log_softmax(kept.masked_fill(empty, 0.0), dim=1).masked_fill(left_out | empty, -torch.inf)


def log_binary(logits: Tensor, index: Tensor) -> Tensor:
    """Logarithms of (p_i, 1 − p_i), `[R, 2]`, of the softmax p of logits `[R, classes]` and one class of each row, `[R]`."""
    own = F.one_hot(index, logits.shape[1]).bool()
    logarithms = F.log_softmax(logits, dim=1)
    others = logarithms.masked_fill(own, -torch.inf)
    none = (others == -torch.inf).all(dim=1)
    rest = others.masked_fill(none[:, None], 0.0).logsumexp(dim=1).masked_fill(none, -torch.inf)
    return torch.stack((logarithms.gather(1, index[:, None])[:, 0], rest), dim=1)


def label_expectation(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """p_T[y] · log p_S[y] of each row of logits `[R, classes]` and its label y, `[R]`."""
    index = labels[:, None]
    log_s = F.log_softmax(student, dim=1).gather(1, index)
    return expectation(F.softmax(teacher, dim=1).gather(1, index), log_s)


class KD(LogitLoss):
    """KL(p_T ‖ p_S) of the distributions softened by a temperature, p = softmax(z / T); mean over the batch.

    Soft targets (Hinton, Vinyals & Dean, 2015), method KD of the paper's tables.

    Args:
        temperature: T > 0.
        convention: "paper" and "official": KL alone, so that λ = 16 = T² stands outside. The authors' code minimises the
            cross-entropy of the soft targets, which differs by the teacher's entropy: the same gradient, but not zero
            at S = T, which is why the KL is used here. "crd": T² · KL, as in CRD's benchmark and Knowledge-Distillation-Zoo.
        standardize: logits of zero mean and unit deviation (Sun et al., Logit Standardization, 2024).
    """

    def __init__(self, temperature: float = 4.0, convention: Convention = "paper", standardize: bool = False) -> None:
        super().__init__(temperature, standardize)
        check_choice("convention", convention, get_args(Convention))
        self.scale = self.temperature**2 if convention == "crd" else 1.0

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits `[B, classes]`."""
        log_s, log_t = (F.log_softmax(z / self.temperature, dim=1) for z in (student, teacher))
        return self.scale * kl_divergence(log_s, log_t)


class TTM(LogitLoss):
    """KL(p̃_T ‖ p_S), p̃_T = p_T^γ / U, U = Σ_c p_T[c]^γ, p = softmax(z); mean over the batch.

    Transformed teacher matching (Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024).
    The power is a temperature of 1 / γ for the teacher alone, and no T² is needed. With `weighted` (WTTM) each image's divergence is
    multiplied by its U, from 1 where the teacher is certain to classes^(1 − γ) where it is uniform.

    Args:
        gamma: the exponent γ > 0.
        weighted: WTTM.
    """

    def __init__(self, gamma: float = 0.1, weighted: bool = False) -> None:
        super().__init__()
        check_numbers(above=0, gamma=gamma)
        check_choice("weighted", weighted, (True, False))
        self.gamma, self.weighted = float(gamma), weighted

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits `[B, classes]`."""
        powers = self.gamma * F.log_softmax(teacher, dim=1)
        rows = kl_rows(F.log_softmax(student, dim=1), F.log_softmax(powers, dim=1))
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
        super().__init__(temperature)
        check_numbers(least=0, gamma=gamma)
        self.gamma = gamma

    def value(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Of logits `[B, classes]` and labels `[B]` int64."""
        return nkd_rows(student, teacher, labels, self.temperature, self.gamma).mean()


def nkd_rows(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, gamma: float) -> Tensor:
    """NKD of each row of logits `[R, classes]`, `[R]`."""
    own = F.one_hot(labels, student.shape[1]).bool()
    others_t, others_s = (log_softmax_without(z / temperature, own) for z in (teacher, student))
    others = expectation(others_t.exp(), others_s)
    return -label_expectation(student, teacher, labels) - gamma * temperature**2 * others


class ABKD(LogitLoss):
    """D(p_T ‖ p_S) = −1/(αβ) · Σ_c (p_T^α p_S^β − α/(α+β) · p_T^(α+β) − β/(α+β) · p_S^(α+β)), p = softmax(z / T); mean over the batch.

    Distillation by the α-β-divergence (Wang, Yang, Wang, Wang, Xu & Huang, ICML 2025). α = 1, β = 0 is the KL divergence, α = 0, β = 1
    the reverse one: a larger α puts weight on the classes of large errors, a larger β on those of which the student is sure. The limits
    have equations of their own (Cichocki et al., 2011), with p of the teacher and q of the student:

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
        super().__init__(temperature)
        check_numbers(alpha=alpha, beta=beta)
        check_choice("convention", convention, ("paper", "official"))
        self.alpha, self.beta, self.official = float(alpha), float(beta), convention == "official"

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
        limit = (a or b) if self.official else (a or b) ** 2
        if b == 0:
            p = torch.exp(a * log_p)
            return (p * a * difference(log_p, log_q, p == 0) - p + torch.exp(a * log_q)) / limit
        if a == 0:
            q = torch.exp(b * log_q)
            return (q * b * difference(log_q, log_p, q == 0) - q + torch.exp(b * log_p)) / limit
        if a + b == 0:
            log_ratio = a * difference(log_q, log_p, log_p == log_q)
            return (log_ratio + torch.exp(-log_ratio) - 1) / limit
        joint = a * torch.exp((a + b) * log_p) + b * torch.exp((a + b) * log_q)
        return (joint / (a + b) - torch.exp(a * log_p + b * log_q)) / (a * b)


def difference(x: Tensor, y: Tensor, zero: Tensor) -> Tensor:
    """x − y, 0 without gradient where `zero`: there both may be infinite."""
    return x.masked_fill(zero, 0.0) - y.masked_fill(zero, 0.0)


class DIST(LogitLoss):
    """β · (1 − mean over images of ρ(p_S, p_T)) + γ · (1 − mean over classes of ρ(p_S, p_T)), p = softmax(z / T).

    Knowledge distillation from a stronger teacher (Huang, You, Wang, Qian & Xu, NeurIPS 2022). ρ is Pearson's correlation: of an image's
    probabilities over the classes in the first term, of a class's over the images of the global batch in the second. The equation is
    that of the authors' code, without its 1e-8.

    Args:
        temperature: T > 0.
        beta, gamma: at least 0.
        convention: "paper": as above; where a side is constant, ρ is not defined and counts as 0, without gradient. "official":
            times T², and 1e-8 added to the product of the deviations.
        standardize: logits of zero mean and unit deviation first (Sun et al., 2024).
    """

    relational = True

    def __init__(
        self,
        temperature: float = 4.0,
        beta: float = 2.0,
        gamma: float = 2.0,
        convention: Literal["paper", "official"] = "paper",
        standardize: bool = False,
    ) -> None:
        super().__init__(temperature, standardize)
        check_numbers(least=0, beta=beta, gamma=gamma)
        check_choice("convention", convention, ("paper", "official"))
        self.beta, self.gamma = beta, gamma
        self.scale, self.eps = (self.temperature**2, 1e-8) if convention == "official" else (1.0, 0.0)

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of logits `[B, classes]` of the global batch."""
        p_s, p_t = ((z / self.temperature).softmax(dim=1) for z in (student, teacher))
        inter = 1 - pearson(p_s, p_t, self.eps).mean()
        intra = 1 - pearson(p_s.T, p_t.T, self.eps).mean()
        return self.scale * (self.beta * inter + self.gamma * intra)


def pearson(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Correlation of the rows of `[R, N]`, `[R]`; 0 without gradient where a row is constant but for rounding."""
    rows, lengths = [], []
    for x in (a, b):
        centred = x - x.mean(dim=1, keepdim=True)
        squared = centred.square().sum(dim=1)
        noise = squared <= (4 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().sum(dim=1)
        rows.append(torch.where(noise[:, None], 0.0, centred))
        lengths.append(torch.where(noise, 0.0, torch.where(noise, 1.0, squared).sqrt()))
    product = lengths[0] * lengths[1]
    constant = product == 0
    return torch.where(constant, 0.0, (rows[0] * rows[1]).sum(dim=1)) / (torch.where(constant, 1.0, product) + eps)
