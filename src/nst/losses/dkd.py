"""Decoupled losses on logits, of the label and of the other classes: DKD and RLD."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import check_choice, check_numbers, warmup_factor
from nst.losses.kd import LogitLoss, kl_divergence, kl_rows, log_binary, log_softmax_without


class DKD(LogitLoss):
    """min(1, epoch / warmup) · (α · TCKD + β · NCKD); mean over the batch.

    Decoupled knowledge distillation (Zhao, Cui, Song, Qiu & Liang, CVPR 2022).
    With p = softmax(z / T) and the image's label y: TCKD = KL(b_T ‖ b_S) of the two numbers b = (p_y, 1 − p_y), NCKD =
    KL(p̂_T ‖ p̂_S) of the other classes alone, p̂ = softmax over i ≠ y. KD is TCKD + (1 − p_y of the teacher) · NCKD.

    Args:
        temperature: T > 0.
        alpha, beta: at least 0.
        warmup: epochs over which the value rises; counted from 1, so that the first epoch has 1 / warmup. 0: none.
        convention: "paper": as above. "official": times T².
        standardize: logits of zero mean and unit deviation first (Sun et al., 2024).
    """

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warmup: float = 20,
        convention: Literal["paper", "official"] = "paper",
        standardize: bool = False,
    ) -> None:
        super().__init__(temperature, standardize)
        check_numbers(least=0, alpha=alpha, beta=beta, warmup=warmup)
        check_choice("convention", convention, ("paper", "official"))
        self.alpha, self.beta, self.warmup = alpha, beta, warmup
        self.scale = self.temperature**2 if convention == "official" else 1.0
        self.inputs = ("labels", "epoch") if warmup else ("labels",)

    def value(self, student: Tensor, teacher: Tensor, labels: Tensor, epoch: Tensor | None = None) -> Tensor:
        """Of logits `[B, classes]` and labels `[B]` int64, `epoch` epochs done so far; 0 with one class."""
        (target_s, other_s), (target_t, other_t) = (decouple(z / self.temperature, labels) for z in (student, teacher))
        value = self.alpha * kl_divergence(target_s, target_t)
        finite_t, finite_s = (x.masked_fill(x == -torch.inf, 0.0) for x in (other_t, other_s))  # without gradient
        value = value + self.beta * (other_t.exp() * (finite_t - finite_s)).sum(dim=1).mean()
        return self.scale * warmup_factor(epoch, self.warmup) * value


def decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, classes]` → logarithms of (p_y, 1 − p_y) `[B, 2]` and of the others' distribution `[B, classes]`, −∞ at y.

    Where no other class has a probability, the logarithms of both are −∞, without gradient.
    """
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    none = (others == -torch.inf).all(dim=1, keepdim=True)
    remainder = others.masked_fill(none, 0.0).logsumexp(dim=1, keepdim=True).masked_fill(none, -torch.inf)
    total = logits.logsumexp(dim=1, keepdim=True)
    target = logits.gather(1, labels[:, None])
    others = (others - remainder).masked_fill(others == -torch.inf, -torch.inf)  # also where there is no other class
    return torch.cat((target - total, remainder - total), dim=1), others


class RLD(LogitLoss):
    """min(1, epoch / warmup) · (α · T_α² · KL(b_T ‖ b_S) + β · T² · KL(q_T ‖ q_S)); mean over the batch.

    Refined logit distillation (Sun, Chen, Lyu, Chen, Chen & Wang, Knowledge Distillation with Refined Logits, ICCV 2025).
    A teacher that is wrong is used without its error. Sample confidence, at the temperature T_α: b_T = (max p_T, 1 − max p_T), whichever
    class that is, and b_S = (p_S[y], 1 − p_S[y]) of the label y. Masked correlation, at T: q = softmax over the classes whose
    teacher's logit is below that of y; 0 for an image without any.

    Args:
        temperature: T > 0.
        alpha, beta: at least 0.
        alpha_temperature: T_α > 0.
        warmup: epochs over which the value rises, as in `DKD`.
        standardize: logits of zero mean and unit deviation first (Sun et al., 2024).
    """

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        alpha_temperature: float = 1.0,
        warmup: float = 20,
        standardize: bool = False,
    ) -> None:
        super().__init__(temperature, standardize)
        check_numbers(above=0, alpha_temperature=alpha_temperature)
        check_numbers(least=0, alpha=alpha, beta=beta, warmup=warmup)
        self.alpha, self.beta, self.alpha_temperature, self.warmup = alpha, beta, float(alpha_temperature), warmup
        self.inputs = ("labels", "epoch") if warmup else ("labels",)

    def value(self, student: Tensor, teacher: Tensor, labels: Tensor, epoch: Tensor | None = None) -> Tensor:
        """Of logits `[B, classes]` and labels `[B]` int64, `epoch` epochs done so far."""
        b_t = log_binary(teacher / self.alpha_temperature, teacher.argmax(dim=1))
        b_s = log_binary(student / self.alpha_temperature, labels)
        confidence = self.alpha_temperature**2 * kl_rows(b_s, b_t).mean()
        left_out = teacher >= teacher.gather(1, labels[:, None])
        q_t, q_s = (log_softmax_without(z / self.temperature, left_out) for z in (teacher, student))
        correlation = self.temperature**2 * kl_rows(q_s, q_t).mean()
        return warmup_factor(epoch, self.warmup) * (self.alpha * confidence + self.beta * correlation)
