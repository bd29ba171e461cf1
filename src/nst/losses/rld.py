"""Refined logit distillation, RLD (Sun, Chen, Lyu, Chen, Chen & Wang, Knowledge Distillation with Refined Logits, ICCV 2025)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nst.losses.base import (
    Input,
    LogitLoss,
    check_number,
    expectation,
    log_binary,
    log_softmax_without,
    no_autocast,
    target_tensor,
    warmup_factor,
)


class RLD(LogitLoss):
    """min(1, epoch / warmup) · (α · T_α² · KL(b_T ‖ b_S) + β · T² · KL(q_T ‖ q_S)); mean over the batch.

    A teacher that is wrong is used without its error. Sample confidence, at the temperature T_α: b_T = (max p_T, 1 − max p_T), whichever
    class that is, and b_S = (p_S[y], 1 − p_S[y]) of the label y. Masked correlation, at T: q = softmax over the classes whose
    teacher's logit is below that of y; 0 for an image without any.

    The authors' setting (their code), beside a cross-entropy of weight 1: on CIFAR-100 α 1, β 8, T 4, T_α 1, warm-up over 20
    epochs; on ImageNet β 0.5 (ResNet-34 → 18) or 2, T = T_α = 1, warm-up 1.

    Args:
        temperature: T > 0.
        alpha, beta: at least 0.
        alpha_temperature: T_α > 0.
        warmup: epochs over which the value rises; counted from 1, so that the first epoch has 1 / warmup. 0: none.
        standardize: logits of zero mean and unit deviation first (Sun et al., 2024).

    Raises:
        ValueError: an argument out of range.
    """

    rows: ClassVar[int] = 20
    inputs: ClassVar[tuple[Input, ...]] = ("labels", "epoch")

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        alpha_temperature: float = 1.0,
        warmup: float = 20,
        standardize: bool = False,
    ) -> None:
        super().__init__(standardize)
        for name, value in (("temperature", temperature), ("alpha_temperature", alpha_temperature)):
            check_number(name, value, above=0)
        for name, value in (("alpha", alpha), ("beta", beta), ("warmup", warmup)):
            check_number(name, value, least=0)
        self.temperature, self.alpha_temperature = float(temperature), float(alpha_temperature)
        self.alpha, self.beta, self.warmup = alpha, beta, warmup

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]` → scalar.

        Args:
            target: "logits" `[B, classes]`, "labels" `[B]` int64, "epoch", the epochs done so far.

        Raises:
            ValueError: the class counts differ, or labels or epoch are missing.
        """
        labels = target_tensor(target, "labels", student_feature.shape[0])
        ramp = warmup_factor(target, self.warmup)
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
            b_t = log_binary(teacher / self.alpha_temperature, teacher.argmax(dim=1))
            b_s = log_binary(student / self.alpha_temperature, labels)
            confidence = self.alpha_temperature**2 * expectation(b_t.exp(), b_t - b_s).mean()
            left_out = teacher >= teacher.gather(1, labels[:, None])
            q_t, q_s = (log_softmax_without(z / self.temperature, left_out) for z in (teacher, student))
            correlation = self.temperature**2 * expectation(torch.exp(q_t), q_t - q_s).mean()
            return ramp * (self.alpha * confidence + self.beta * correlation)
