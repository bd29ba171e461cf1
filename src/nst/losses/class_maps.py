"""Losses between maps with a channel for each class: CAT-KD and SDD."""

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import (
    ReducedLoss,
    Shape,
    check_choice,
    check_map,
    check_numbers,
    map_shapes,
    unit_rows,
    warmup_factor,
    working_dtype,
)
from nst.losses.kd import expectation, kl_rows, label_expectation, log_binary, log_softmax_without, nkd_rows

Form = Literal["kd", "dkd", "nkd"]
SCALES = (1, 2, 4)


class ClassMapLoss(ReducedLoss):
    """A loss between pooled maps `[B, classes, H, W]` of one number of classes."""

    layer: ClassVar[str]
    """The layer of a network that has such a map."""

    def check_classes(self, student: Shape, teacher: Shape) -> None:
        """Raises ValueError unless both shapes are maps (classes, H, W) of one number of classes."""
        (own, *_), (others, *_) = map_shapes(student, teacher)
        if own != others:
            need = f"{type(self).__name__} needs a channel for each class, as layer {self.layer} has"
            raise ValueError(f"{need}; the student has {own}, the teacher {others}")


class CATKD(ClassMapLoss):
    """Mean of (n(pool M_S) − n(pool M_T))² over images, classes and positions; M the class activation maps `[B, classes, H, W]`.

    CAT-KD (Guo, Yan, Li & Lin, Class Attention Transfer Based Knowledge Distillation, CVPR 2023).
    Layer `cam` of a network is its classifier at each position of its last map, without the bias. Both maps are average-pooled to
    r × r, and with `normalize` n scales each class's map to unit length; a map of zeros stays, without gradient.

    Args:
        resolution: r, at least 1.
        normalize: scale each class's map to unit length.
    """

    key = "maps"
    layer = "cam"

    def __init__(self, resolution: int = 2, normalize: bool = True) -> None:
        super().__init__()
        check_numbers(least=1, whole=True, resolution=resolution)
        check_choice("normalize", normalize, (True, False))
        self.resolution, self.normalize = resolution, normalize

    @property
    def target_key(self) -> str:
        """The pooled maps, whether normalised or not."""
        return f"map-{self.resolution}x{self.resolution}"

    def reduce(self, feature: Tensor, owner: str) -> Tensor:
        """`[B, classes, H, W]` → `[B, classes, r, r]`."""
        check_map(feature, owner)
        return F.adaptive_avg_pool2d(feature.to(working_dtype(feature)), self.resolution)

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of pooled maps `[B, classes, r, r]`."""
        a, b = (maps.flatten(2).flatten(0, 1) for maps in (student, teacher))
        return F.mse_loss(unit_rows(a), unit_rows(b)) if self.normalize else F.mse_loss(a, b)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The pooled maps. Raises ValueError when the numbers of classes differ."""
        self.check_classes(student_shape, teacher_shape)
        return {"maps": (teacher_shape[0], self.resolution, self.resolution)}


class SDD(ClassMapLoss):
    """1/M · Σ over the M cells of w · L(z_S, z_T), z the logits of a cell; mean over the batch.

    Scale decoupled distillation (Wei, Luo & Luo, CVPR 2024). A network's map of logits (layer `logit_map`) is average-pooled to 4×4, of
    that to 2×2 and 1×1; each cell of the chosen scales gives a row of logits, so M = 5 for the scales (1, 2) and 21 for (1, 2, 4). w is 2
    where the teacher is right about the image and wrong in the cell, or the other way round, else 1. L of a row:

        kd:  T² · KL(p_T ‖ p_S), p = softmax(z / T)
        dkd: min(1, epoch / warmup) · T² · (α · TCKD + β · NCKD), see `DKD`
        nkd: min(1, epoch / warmup) · (−p_T[y] · log p_S[y] − β · T² · Σ p̂_T · log p̂_S), see `NKD`

    Args:
        form: "kd", "dkd" or "nkd".
        scales: which of 1, 2 and 4, with 1.
        temperature: T > 0.
        alpha, beta: of dkd; beta is also nkd's γ. At least 0.
        warmup: epochs over which dkd and nkd rise; counted from 1, so that the first epoch has 1 / warmup. 0: none.
        convention: "paper": as above. "official": nkd's p̂ keeps the class y (the authors' code, whose mask leaves nothing out).
    """

    key = "rows"
    layer = "logit_map"

    def __init__(
        self,
        form: Form = "kd",
        scales: Sequence[int] = (1, 2),
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warmup: float = 20,
        convention: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        check_choice("form", form, get_args(Form))
        if not isinstance(scales, Sequence) or tuple(scales) not in ((1,), (1, 2), (1, 4), SCALES):
            raise ValueError(f"scales is {scales!r}; it must be [1], [1, 2], [1, 4] or [1, 2, 4]")
        check_numbers(above=0, temperature=temperature)
        check_numbers(least=0, alpha=alpha, beta=beta, warmup=warmup)
        check_choice("convention", convention, ("paper", "official"))
        self.form, self.scales, self.official = form, tuple(scales), convention == "official"
        self.temperature, self.alpha, self.beta, self.warmup = float(temperature), alpha, beta, warmup
        self.inputs = ("labels", "epoch") if warmup and form != "kd" else ("labels",)

    @property
    def target_key(self) -> str:
        """The rows of these scales."""
        return f"scales-{'-'.join(map(str, self.scales))}"

    def reduce(self, feature: Tensor, owner: str) -> Tensor:
        """`[B, classes, H, W]` → rows of logits `[B, M, classes]`, that of the whole map first."""
        check_map(feature, owner)
        finest = F.adaptive_avg_pool2d(feature.to(working_dtype(feature)), SCALES[-1])
        cells = [F.avg_pool2d(finest, SCALES[-1] // scale).flatten(2) for scale in self.scales]
        return torch.cat(cells, dim=2).transpose(1, 2).contiguous()

    def value(self, student: Tensor, teacher: Tensor, labels: Tensor, epoch: Tensor | None = None) -> Tensor:
        """Of rows `[B, M, classes]` and labels `[B]` int64, `epoch` epochs done so far."""
        right = teacher.argmax(dim=2) == labels[:, None]
        weights = torch.where(right == right[:, :1], 1.0, 2.0).to(student.dtype).flatten()
        each = labels.repeat_interleave(student.shape[1])
        values = self.row_values(student.flatten(0, 1), teacher.flatten(0, 1), each)
        return warmup_factor(epoch, self.warmup) * (weights * values).mean()

    def row_values(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """L of each row of logits `[R, classes]`, `[R]`."""
        t = self.temperature
        if self.form == "nkd" and not self.official:
            return nkd_rows(student, teacher, labels, t, self.beta)
        log_t, log_s = (F.log_softmax(z / t, dim=1) for z in (teacher, student))
        if self.form == "kd":
            return t**2 * kl_rows(log_s, log_t)
        if self.form == "nkd":
            others = expectation(log_t.exp(), log_s)
            return -label_expectation(student, teacher, labels) - self.beta * t**2 * others
        own = F.one_hot(labels, student.shape[1]).bool()
        target = kl_rows(*(log_binary(z / t, labels) for z in (student, teacher)))
        others = kl_rows(*(log_softmax_without(z / t, own) for z in (student, teacher)))
        return t**2 * (self.alpha * target + self.beta * others)

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The rows. Raises ValueError when the numbers of classes differ."""
        self.check_classes(student_shape, teacher_shape)
        return {"rows": (sum(scale**2 for scale in self.scales), teacher_shape[0])}
