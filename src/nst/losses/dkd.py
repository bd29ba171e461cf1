"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu & Liang, CVPR 2022)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import (
    Input,
    LogitLoss,
    check_convention,
    check_number,
    kl_divergence,
    no_autocast,
    target_tensor,
    warmup_factor,
)


class DKD(LogitLoss):
    """min(1, epoch / warmup) · (α · TCKD + β · NCKD); mean over the batch.

    With p = softmax(z / T) and the image's label y: TCKD = KL(b_T ‖ b_S) of the two numbers b = (p_y, 1 − p_y), NCKD =
    KL(p̂_T ‖ p̂_S) of the other classes alone, p̂ = softmax over i ≠ y. The equation is recalled from the paper; its
    authors' code has the same. KD is TCKD + (1 − p_y of the teacher) · NCKD.

    The authors' setting on CIFAR-100 (their code, mdistiller): α 1, T 4, warm-up over 20 epochs, β 2 (ResNet-56 → 20 and
    110 → 32), 6 (vgg13; wide ResNet to wide ResNet) or 8 (others), T² before the value, and a cross-entropy of weight 1.

    Args:
        temperature: T > 0.
        alpha, beta: at least 0.
        warmup: epochs over which the value rises; counted from 1, so that the first epoch has 1 / warmup. 0: none.
        convention: "paper": as above. "official": times T².
        standardize: logits of zero mean and unit deviation first (Sun et al., 2024).

    Raises:
        ValueError: an argument out of range.
    """

    rows: ClassVar[int] = 16
    inputs: ClassVar[tuple[Input, ...]] = ("labels", "epoch")

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warmup: float = 20,
        convention: Literal["paper", "official"] = "paper",
        standardize: bool = False,
    ) -> None:
        super().__init__(standardize)
        check_number("temperature", temperature, above=0)
        for name, value in (("alpha", alpha), ("beta", beta), ("warmup", warmup)):
            check_number(name, value, least=0)
        check_convention(convention, ("paper", "official"))
        self.temperature, self.alpha, self.beta, self.warmup = float(temperature), alpha, beta, warmup
        self.scale = self.temperature**2 if convention == "official" else 1.0

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]` → scalar; 0 with one class.

        Args:
            target: "logits" `[B, classes]`, "labels" `[B]` int64, "epoch", the epochs done so far.

        Raises:
            ValueError: the class counts differ, or labels or epoch are missing.
        """
        labels = target_tensor(target, "labels", student_feature.shape[0])
        ramp = warmup_factor(target, self.warmup)
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
            if student.shape[1] == 1:
                return student.sum() * 0
            target_s, other_s = decouple(student / self.temperature, labels)
            target_t, other_t = decouple(teacher / self.temperature, labels)
            value = self.alpha * kl_divergence(target_s, target_t)
            value = value + self.beta * (other_t.exp() * (finite(other_t) - finite(other_s))).sum(dim=1).mean()
            return self.scale * ramp * value


def decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, classes]` → logarithms of (p_y, 1 − p_y) `[B, 2]` and of the others' distribution `[B, classes]`, −∞ at y."""
    mask = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(mask, -torch.inf)
    total, remainder = logits.logsumexp(dim=1, keepdim=True), others.logsumexp(dim=1, keepdim=True)
    target = logits.gather(1, labels[:, None])
    others = (others - remainder).masked_fill(others == -torch.inf, -torch.inf)  # also where there is no other class
    return torch.cat((target - total, remainder - total), dim=1), others


def finite(logarithms: Tensor) -> Tensor:
    """−∞ becomes 0, without gradient."""
    return logarithms.masked_fill(logarithms == -torch.inf, 0.0)
