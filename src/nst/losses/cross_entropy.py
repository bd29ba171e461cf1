"""Cross-entropy with the labels: the H(y, p_S) of every method."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from nst.losses.base import LossSpec, Shape, TransferLoss, no_autocast, target_tensor, working_dtype


class CrossEntropy(TransferLoss):
    """H(y, p_S) = −Σ_c y_c log softmax(z_S)[c], mean over the batch.

    `forward(logits, {"labels": labels})` with logits `[B, classes]` and int64 labels `[B]`, or `[B, classes]` probabilities of
    images that are mixtures.

    Args:
        label_smoothing: ε, 0 <= ε < 1: each class gets ε / classes of the target (Szegedy et al., 2016).

    Raises:
        ValueError: ε outside its range.
    """

    source: ClassVar[Literal["teacher", "labels"]] = "labels"
    on_logits: ClassVar[bool] = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; 0 (none) or more, and below 1, is needed")
        self.label_smoothing = float(label_smoothing)

    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """Raises TypeError: labels come from the data, not from a teacher."""
        raise TypeError("CrossEntropy has no teacher: pass {'labels': labels} as its target")

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy. Raises ValueError when the labels are missing or of another batch size."""
        labels = target_tensor(target, "labels", student_feature.shape[0])
        with no_autocast(student_feature):
            logits = student_feature.to(working_dtype(student_feature))
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def spec(self, student_shape: Shape, teacher_shape: Shape) -> LossSpec:
        """Labels are no part of a teacher's target."""
        return LossSpec("cross-entropy", {}, 8 * student_shape[0])
