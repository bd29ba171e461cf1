"""Soft targets (Hinton, Vinyals & Dean, 2015), method KD of the paper's tables."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import (
    Plan,
    Shape,
    TransferLoss,
    check_convention,
    check_number,
    no_autocast,
    summary_tensor,
    working_dtype,
)


class KD(TransferLoss):
    """KL(p_T ‖ p_S) of the distributions softened by a temperature, p = softmax(z / T); mean over the batch.

    Weight λ = 16 and T = 4 are those of the paper's authors (their code's configuration).

    Args:
        temperature: T > 0.
        convention: "paper" and "official": KL alone, so that λ = 16 = T² stands outside. Their code minimises the
            cross-entropy of the soft targets, which differs by the teacher's entropy: the same gradient, but not zero
            at S = T, which is why the KL is used here. "crd": T² · KL, as in CRD's benchmark (weight 0.9 there).

    Raises:
        ValueError: a temperature that is not positive, an unknown convention.
    """

    on_logits: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0, convention: Literal["paper", "official", "crd"] = "paper") -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_convention(convention)
        self.temperature = float(temperature)
        self.scale = self.temperature**2 if convention == "crd" else 1.0

    @property
    def summary_key(self) -> str:
        """The logits, whatever the temperature."""
        return "logits"

    @torch.no_grad()
    def summarize(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The teacher's logits `[B, classes]`. Raises ValueError for another number of dimensions or classes."""
        if teacher_feature.ndim != 2:
            raise ValueError(f"the teacher's logits have shape {tuple(teacher_feature.shape)}; KD needs [B, classes]")
        if student_shape is not None:
            self.plan(student_shape, tuple(teacher_feature.shape[1:]))
        return {"logits": teacher_feature}

    def forward(self, student_feature: Tensor, summary: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]` → scalar. Raises ValueError when the class counts differ."""
        teacher = summary_tensor(summary, "logits", student_feature.shape[0])
        if teacher.shape != student_feature.shape:
            raise ValueError(
                f"the student's logits have shape {tuple(student_feature.shape)}, the teacher's {tuple(teacher.shape)}"
            )
        with no_autocast(student_feature):
            dtype = working_dtype(student_feature)
            log_s = F.log_softmax(student_feature.to(dtype) / self.temperature, dim=1)
            log_t = F.log_softmax(teacher.to(dtype) / self.temperature, dim=1)
            return self.scale * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)

    def plan(self, student_shape: Shape, teacher_shape: Shape) -> Plan:
        """Summary: the logits. Raises ValueError when the class counts differ."""
        if tuple(student_shape) != tuple(teacher_shape) or len(teacher_shape) != 1:
            raise ValueError(
                f"the student's logits are {tuple(student_shape)}, the teacher's {tuple(teacher_shape)} per image; "
                "KD needs both to be (classes,) with one number of classes"
            )
        return Plan("soft targets", {"logits": (teacher_shape[0],)}, 24 * teacher_shape[0])
