"""The student, its projections and the weighted terms of the loss: one module, one DDP wrapper."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nst.losses import Shape, TransferLoss
from nst.taps import LOGITS, Taps

Summaries = dict[str, dict[str, Tensor]]  # request key → what the loss needs of the teacher


@dataclass(frozen=True)
class Pair:
    """Which teacher feature a student feature learns from."""

    teacher: str
    student: str
    weight: float = 1.0


@dataclass(frozen=True)
class Term:
    """One weighted term of the run's loss: `weight · Σ_pairs pair.weight · loss(student feature, teacher summary)`."""

    name: str
    loss: TransferLoss
    weight: float
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Request:
    """What a term asks of the teacher: `loss.summarize(feature at tap, student_shape)`, kept under `key`."""

    key: str
    tap: str
    loss: TransferLoss
    student_shape: Shape


class Distiller(nn.Module):
    """Runs the student on a batch and evaluates every term against the teacher's summaries."""

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term],
        student_shapes: dict[str, Shape],
        teacher_shapes: dict[str, Shape],
    ) -> None:
        """Tap the student and make the projections.

        Args:
            student: maps images `[B, C, H, W]` to logits.
            terms: at least one.
            student_shapes, teacher_shapes: tap → shape of one image's feature, `(C, H, W)` (see `taps.feature_shapes`).
        """
        super().__init__()
        self.student = student
        self.terms = tuple(terms)
        self.taps = Taps(student, [p.student for t in terms for p in t.pairs])
        self.projections = nn.ModuleDict()
        self.requests: list[Request] = []
        for term in self.terms:
            for i, pair in enumerate(term.pairs):
                if term.loss.source != "teacher":
                    continue
                key, shape = f"{term.name}:{i}", student_shapes[pair.student]
                if term.loss.projects:
                    channels = teacher_shapes[pair.teacher][0]
                    self.projections[key] = nn.Conv2d(shape[0], channels, 1)
                    shape = (channels, *shape[1:])
                self.requests.append(Request(key, pair.teacher, term.loss, shape))

    def forward(self, images: Tensor, labels: Tensor, summaries: Summaries) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, classes]` and the unweighted value of each term, a float32 scalar averaged over the batch."""
        logits = self.student(images)
        features = self.taps.read() | {LOGITS: logits}
        values: dict[str, Tensor] = {}
        for term in self.terms:
            value = torch.zeros((), device=images.device)
            for i, pair in enumerate(term.pairs):
                key, feature = f"{term.name}:{i}", features[pair.student]
                if key in self.projections:
                    feature = self.projections[key](feature)
                summary = {"labels": labels} if term.loss.source == "labels" else summaries[key]
                value = value + pair.weight * term.loss(feature, summary)
            values[term.name] = value
        return logits, values

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The run's loss: the weighted sum of the terms."""
        return torch.stack([term.weight * values[term.name] for term in self.terms]).sum()
