"""Losses on logits: their base class, what they share, and cross-entropy."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import Shape, TransferLoss, no_autocast, target_tensor, working_dtype

STANDARD_EPS = 1e-7
"""What the code of logit standardisation adds to the deviation."""


class LogitLoss(TransferLoss):
    """A loss between logits `[B, classes]` of one number of classes.

    `value(student, teacher, **what inputs names)` compares logits in the working precision, `[B, classes]` each.
    """

    on_logits: ClassVar[bool] = True
    value: Callable[..., Tensor]
    standardize: bool = False
    """Scale the logits of either side to zero mean and unit deviation first."""

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
            self.target_shapes(student_shape, tuple(teacher_feature.shape[1:]))
        return {"logits": teacher_feature}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Student logits `[B, classes]`, for a relational loss of the global batch → scalar.

        Raises:
            ValueError: the class counts differ, or the target is of another batch or lacks what `inputs` names.
        """
        given = self.given(target, len(student_feature))
        teacher = target_tensor(target, "logits", len(student_feature))
        if teacher.shape != student_feature.shape:
            raise ValueError(
                f"the student's logits have shape {tuple(student_feature.shape)}, the teacher's {tuple(teacher.shape)}"
            )
        dtype = working_dtype(student_feature)
        with no_autocast(student_feature):
            student, teacher = student_feature.to(dtype), teacher.to(dtype)
            if self.standardize:
                student, teacher = standardise(student), standardise(teacher)
            return self.value(student, teacher, **given)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The logits. Raises ValueError when the class counts differ."""
        if tuple(student_shape) != tuple(teacher_shape) or len(teacher_shape) != 1:
            raise ValueError(
                f"the student's logits are {tuple(student_shape)}, the teacher's {tuple(teacher_shape)} per image; "
                f"{type(self).__name__} needs both to be (classes,) with one number of classes"
            )
        return {"logits": tuple(teacher_shape)}


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
    standard = torch.where(flat, 0.0, centred) / (torch.where(flat, 1.0, squared).sqrt() + STANDARD_EPS)
    return standard.masked_fill(unknown, -torch.inf)


def kl_divergence(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(p_T ‖ p_S) of log-probabilities `[B, n]`, mean over the batch. 0 · log 0 = 0: a class that the teacher does not know adds nothing."""
    unknown = log_t == -torch.inf
    log_s, log_t = log_s.masked_fill(unknown, 0.0), log_t.masked_fill(unknown, -1e4)  # e to this power is 0
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def expectation(p: Tensor, values: Tensor) -> Tensor:
    """Σ_c p_c · v_c of each row of `[R, classes]`, `[R]`; 0 · ∞ is 0, and an infinite value there gets no gradient."""
    return (p * values.masked_fill(p == 0, 0.0)).sum(dim=1)


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
