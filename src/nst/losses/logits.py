"""Base class of the losses on logits: one shared target, and logit standardisation."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nst.losses.base import LossSpec, Shape, TransferLoss, target_tensor, working_dtype

STANDARD_EPS = 1e-7


def standardise(logits: Tensor) -> Tensor:
    """Zero mean and unit deviation over the classes of an image: (z − z̄) / (1e-7 + std z), `[B, classes]`.

    As in the code of Sun et al. (2024), with the deviation over classes − 1. Logits that are equal but for rounding, and
    those of one class, become zeros, and get no gradient.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    squared = centred.square().sum(dim=1, keepdim=True) / max(1, logits.shape[1] - 1)
    flat = squared <= (4 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1, keepdim=True)) ** 2
    return torch.where(flat, 0.0, centred) / (torch.where(flat, 1.0, squared).sqrt() + STANDARD_EPS)


class LogitLoss(TransferLoss):
    """A loss between logits `[B, classes]` of one number of classes."""

    on_logits: ClassVar[bool] = True

    def __init__(self, standardize: bool) -> None:
        super().__init__()
        if not isinstance(standardize, bool):
            raise ValueError(f"standardize is {standardize!r}; it must be true or false")
        self.standardize = standardize

    @property
    def target_key(self) -> str:
        """The logits, whatever the settings."""
        return "logits"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The teacher's logits `[B, classes]`. Raises ValueError for another number of dimensions or classes."""
        if teacher_feature.ndim != 2:
            raise ValueError(
                f"the teacher's logits have shape {tuple(teacher_feature.shape)}; {type(self).__name__} needs [B, classes]"
            )
        if student_shape is not None:
            self.spec(student_shape, tuple(teacher_feature.shape[1:]))
        return {"logits": teacher_feature}

    def read(self, student: Tensor, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Student's and teacher's logits in the working precision, standardised with `standardize`.

        Raises:
            ValueError: the class counts differ, or the target holds no logits of this batch.
        """
        teacher = target_tensor(target, "logits", student.shape[0])
        if teacher.shape != student.shape:
            raise ValueError(
                f"the student's logits have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
            )
        dtype = working_dtype(student)
        pair = student.to(dtype), teacher.to(dtype)
        return (standardise(pair[0]), standardise(pair[1])) if self.standardize else pair

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the logits. Raises ValueError when the class counts differ."""
        if tuple(student_shape) != tuple(teacher_shape) or len(teacher_shape) != 1:
            raise ValueError(
                f"the student's logits are {tuple(student_shape)}, the teacher's {tuple(teacher_shape)} per image; "
                f"{type(self).__name__} needs both to be (classes,) with one number of classes"
            )
        return LossSpec("soft targets", {"logits": (teacher_shape[0],)}, 24 * teacher_shape[0])
