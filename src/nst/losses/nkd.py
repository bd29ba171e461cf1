"""Normalised knowledge distillation, NKD (Yang, Zeng, Li, Zhang, Yuan & Li, From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023)."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import Input, LogitLoss, check_number, expectation, log_softmax_without, no_autocast, target_tensor


class NKD(LogitLoss):
    """−p_T[y] · log p_S[y] − γ · T² · Σ_{c≠y} p̂_T[c] · log p̂_S[c]; mean over the batch.

    y is the image's label, p = softmax(z) without a temperature, p̂ = softmax(z / T) over the classes but y. Cross-entropies, not
    divergences, as in the paper, so the value at S = T is not 0.

    The authors' setting (their code), beside a cross-entropy of weight 1: on ImageNet T 1, γ 1.5, weight 1; on CIFAR-100
    (ResNet-34 → 18 alone) T 3, γ 3.5.

    Args:
        temperature: T > 0.
        gamma: at least 0.

    Raises:
        ValueError: an argument out of range.
    """

    rows: ClassVar[int] = 14
    inputs: ClassVar[tuple[Input, ...]] = ("labels",)

    def __init__(self, temperature: float = 1.0, gamma: float = 1.5) -> None:
        super().__init__(standardize=False)
        check_number("temperature", temperature, above=0)
        check_number("gamma", gamma, least=0)
        self.temperature, self.gamma = float(temperature), gamma

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]` → scalar.

        Args:
            target: "logits" `[B, classes]`, "labels" `[B]` int64.

        Raises:
            ValueError: the class counts differ, or labels are missing.
        """
        labels = target_tensor(target, "labels", student_feature.shape[0])
        with no_autocast(student_feature):
            student, teacher = self.read(student_feature, target)
            return nkd_rows(student, teacher, labels, self.temperature, self.gamma).mean()


def nkd_rows(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, gamma: float) -> Tensor:
    """NKD of each row of logits `[B, classes]`, `[B]`."""
    index, own = labels[:, None], F.one_hot(labels, student.shape[1]).bool()
    log_s = F.log_softmax(student, dim=1).gather(1, index)
    on_target = expectation(F.softmax(teacher, dim=1).gather(1, index), log_s)
    others_t, others_s = (log_softmax_without(z / temperature, own) for z in (teacher, student))
    return -on_target - gamma * temperature**2 * expectation(others_t.exp(), others_s)
