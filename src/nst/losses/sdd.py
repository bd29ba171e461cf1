"""Scale decoupled distillation, SDD (Wei, Luo & Luo, Scaled Decoupled Distillation, CVPR 2024)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import (
    Input,
    LossSpec,
    Shape,
    TransferLoss,
    check_choice,
    check_convention,
    check_map,
    check_number,
    expectation,
    log_binary,
    log_softmax_without,
    no_autocast,
    target_tensor,
    warmup_factor,
    working_dtype,
)
from nst.losses.cat_kd import check_classes
from nst.losses.nkd import nkd_rows

Form = Literal["kd", "dkd", "nkd"]
SCALES = (1, 2, 4)


class SDD(TransferLoss):
    """1/M · Σ over the M cells of w · L(z_S, z_T), z the logits of a cell; mean over the batch.

    A network's map of logits (layer `logit_map`) is average-pooled to 4×4, of that to 2×2 and 1×1; each cell of the chosen scales gives
    a row of logits, so M = 5 for the scales (1, 2) and 21 for (1, 2, 4). w is 2 where the teacher is right about the image and wrong in the cell,
    or the other way round, else 1. L of a row:

        kd:  T² · KL(p_T ‖ p_S), p = softmax(z / T)
        dkd: min(1, epoch / warmup) · T² · (α · TCKD + β · NCKD), see `DKD`
        nkd: min(1, epoch / warmup) · (−p_T[y] · log p_S[y] − β · T² · Σ p̂_T · log p̂_S), see `NKD`

    The authors' setting on CIFAR-100 (their code): kd with T 4, weight 0.9 beside a cross-entropy of weight 0.1; scales (1, 2) within
    a family of networks, (1, 2, 4) across. On ImageNet dkd with T 1 and β 0.5 (ResNet-34 → 18) or 2.

    Args:
        form: "kd", "dkd" or "nkd".
        scales: which of 1, 2 and 4, with 1.
        temperature: T > 0.
        alpha, beta: of dkd; beta is also nkd's γ. At least 0.
        warmup: epochs over which dkd and nkd rise; counted from 1, so that the first epoch has 1 / warmup. 0: none.
        convention: "paper": as above. "official": nkd's p̂ keeps the class y (the authors' code, whose mask leaves nothing out).

    Raises:
        ValueError: an argument out of range.
    """

    inputs: ClassVar[tuple[Input, ...]] = ("labels", "epoch")

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
        check_number("temperature", temperature, above=0)
        for name, value in (("alpha", alpha), ("beta", beta), ("warmup", warmup)):
            check_number(name, value, least=0)
        check_convention(convention, ("paper", "official"))
        self.form, self.scales, self.temperature = form, tuple(scales), float(temperature)
        self.alpha, self.beta, self.warmup = alpha, beta, warmup
        self.official = convention == "official"

    @property
    def target_key(self) -> str:
        """The rows of these scales."""
        return f"scales-{'-'.join(map(str, self.scales))}"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """`{"rows": [B, M, classes]}`, that of the whole map first. Raises ValueError for a feature that is no map of these classes."""
        check_map(teacher_feature, "teacher")
        if student_shape is not None:
            self.spec(student_shape, tuple(teacher_feature.shape[1:]))
        with no_autocast(teacher_feature):
            return {"rows": self.rows(teacher_feature)}

    def rows(self, feature: Tensor) -> Tensor:
        """`[B, classes, H, W]` → `[B, M, classes]` in the working precision."""
        finest = F.adaptive_avg_pool2d(feature.to(working_dtype(feature)), SCALES[-1])
        cells = [F.avg_pool2d(finest, SCALES[-1] // scale).flatten(2) for scale in self.scales]
        return torch.cat(cells, dim=2).transpose(1, 2).contiguous()

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """`[B, classes, H, W]` → scalar.

        Args:
            target: "rows" `[B, M, classes]`, "labels" `[B]` int64, "epoch", the epochs done so far.

        Raises:
            ValueError: classes, scales or batch differ, or labels or epoch are missing.
        """
        check_map(student_feature, "student")
        batch = len(student_feature)
        teacher, labels = target_tensor(target, "rows", batch), target_tensor(target, "labels", batch)
        ramp = 1.0 if self.form == "kd" else warmup_factor(target, self.warmup)
        with no_autocast(student_feature):
            student = self.rows(student_feature)
            if student.shape != teacher.shape:
                raise ValueError(
                    f"the student's rows have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}"
                )
            right = teacher.argmax(dim=2) == labels[:, None]
            weights = torch.where(right == right[:, :1], 1.0, 2.0).to(student.dtype).flatten()
            each = labels.repeat_interleave(student.shape[1])
            values = self.row_values(student.flatten(0, 1), teacher.to(student.dtype).flatten(0, 1), each)
            return ramp * (weights * values).mean()

    def row_values(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """L of each row of logits `[R, classes]`, `[R]`."""
        t = self.temperature
        if self.form == "nkd" and not self.official:
            return nkd_rows(student, teacher, labels, t, self.beta)
        log_t, log_s = (F.log_softmax(z / t, dim=1) for z in (teacher, student))
        if self.form == "kd":
            return t**2 * expectation(log_t.exp(), log_t - log_s)
        own = F.one_hot(labels, student.shape[1]).bool()
        if self.form == "nkd":
            p_t = F.softmax(teacher, dim=1)[own]
            on_target = expectation(p_t[:, None], F.log_softmax(student, dim=1)[own][:, None])
            return -on_target - self.beta * t**2 * expectation(log_t.exp(), log_s)
        b_t, b_s = (log_binary(z / t, labels) for z in (teacher, student))
        q_t, q_s = (log_softmax_without(z / t, own) for z in (teacher, student))
        target, others = expectation(b_t.exp(), b_t - b_s), expectation(q_t.exp(), q_t - q_s)
        return t**2 * (self.alpha * target + self.beta * others)

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Target: the rows. Raises ValueError when the numbers of classes differ."""
        check_classes(student_shape, teacher_shape, "SDD", "logit_map")
        classes, cells = teacher_shape[0], sum(scale**2 for scale in self.scales)
        workspace = 4 * classes * (student_shape[1] * student_shape[2] + SCALES[-1] ** 2 + 22 * cells)
        return LossSpec("rows", {"rows": (cells, classes)}, workspace)
