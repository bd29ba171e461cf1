"""Accuracy of a network on a split, and the gradients of the terms of a loss."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.data.batch import Batch, Loader
from nst.dist import Dist, autocast
from nst.distiller import Distiller, Targets
from nst.storage import measure_of


@dataclass(frozen=True)
class Metrics:
    """Of one evaluation, each image counted once; accuracies in percent."""

    loss: float  # cross-entropy; of a student that learns features alone the weighted sum of the terms
    top1: float | None  # None of such a student
    top5: float | None
    images: int
    class_images: list[int] = field(default_factory=list)  # of each class
    class_top1: list[float | None] = field(default_factory=list)  # accuracy of each class; None where it has no image
    others: dict[str, float] = field(
        default_factory=dict
    )  # values of further metrics by name, of such a student its weighted terms
    knn: float | None = None  # accuracy of the nearest neighbours, of such a student

    @property
    def measure(self) -> str:
        """What the best epoch is chosen by: "top1", else "knn", else "loss"."""
        return measure_of(vars(self))

    @property
    def value(self) -> float:
        """The value of `measure`."""
        return getattr(self, self.measure)

    def better(self, other: float) -> bool:
        """Whether the value is better than another one: higher, of the loss lower."""
        return self.value < other if self.measure == "loss" else self.value > other

    def as_dict(self) -> dict[str, Any]:
        """All values by name."""
        return {name: value for name, value in asdict(self).items() if name != "others"} | self.others


Metric = Callable[[Tensor, Tensor], Tensor | float]
"""A function of an evaluation's logits `[N, classes]`, float32, and labels `[N]`, all images at once; the value is a number."""

TAKEN = ("kind", "step", "epoch", *(f.name for f in fields(Metrics)))
"""Names of an evaluation's own values."""


def macro_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean of the accuracies of the classes that occur, in percent."""
    hits = (logits.argmax(1) == labels).double()
    count = torch.bincount(labels, minlength=logits.shape[1])
    right = torch.bincount(labels, weights=hits, minlength=logits.shape[1])
    return float(100 * (right / count)[count > 0].mean())


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The expected calibration error in percent: Σ_b n_b / N · |accuracy_b − confidence_b| over bins of equal width (Guo et al., 2017)."""
    confidence, answers = logits.double().softmax(1).max(1)
    gap = (answers == labels).double() - confidence
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return float(100 * torch.bincount(place, weights=gap, minlength=bins).abs().sum() / len(labels))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    ranks: Dist,
    precision: str = "fp32",
    confusion: Tensor | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Metrics:
    """Evaluate this rank's batches in `eval()` mode and average over all ranks; the model's mode is restored.

    Args:
        confusion: `[classes, classes]` int64, to which this rank's images are added: label (row), answer (column).
        metrics: more to measure, by name; all ranks' images come to each in the order of the split.

    Raises:
        ValueError: if there is no image; a metric that gives no number.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(3, device=ranks.device, dtype=torch.float64)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # what metrics need
    by_class = torch.zeros(2, 0, device=ranks.device, dtype=torch.float64)  # images of each class, and the right ones
    try:
        for batch in batches:
            with autocast(ranks.device, precision):
                logits = model(batch.images)
            logits = logits.float()
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
            answers = logits.topk(1, dim=1).indices[:, 0]
            right = answers == batch.labels
            sums += torch.stack([value.double() for value in (loss, right.sum(), best.any(dim=1).sum())])
            if not by_class.shape[1]:
                by_class = by_class.new_zeros(2, logits.shape[1])
            by_class.index_add_(1, batch.labels, torch.stack([torch.ones_like(right), right]).double())
            if metrics:
                kept.append((batch.indices, logits, batch.labels))
            if confusion is not None:
                confusion.index_put_((batch.labels, answers), torch.ones_like(answers), accumulate=True)
    finally:
        model.train(training)
    (classes,) = ranks.max(by_class.shape[1])
    by_class = by_class if by_class.shape[1] else by_class.new_zeros(2, classes or 1)  # of a rank without images
    loss_sum, top1, top5 = ranks.sum(sums).tolist()
    counts, hits = ranks.sum(by_class).tolist()
    images = sum(counts)
    if images == 0:
        raise ValueError("no images to evaluate on")
    accuracies = [100 * right / count if count else None for count, right in zip(counts, hits, strict=True)]
    others: dict[str, float] = {}
    if metrics:
        indices, logits, labels = (ranks.join(torch.cat(parts)) for parts in zip(*kept, strict=True))
        order = indices.argsort()
        for name, metric in metrics.items():
            try:
                others[name] = float(metric(logits[order], labels[order]))
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                raise ValueError(
                    f"metric.{name}: {error}; a function of logits [N, classes] and labels [N] that gives a number is needed"
                ) from error
    percent = 100 * top1 / images, 100 * top5 / images
    return Metrics(loss_sum / images, *percent, int(images), [int(count) for count in counts], accuracies, others)


class ClassifierEvaluation:
    """Of a student that classifies: its accuracy."""

    def __init__(
        self,
        student: nn.Module,
        loaders: Mapping[str, Loader],
        dist: Dist,
        precision: str = "fp32",
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        """Nothing runs yet; `loaders`: of the splits, this rank's."""
        self.student, self.loaders, self.dist, self.precision, self.metrics = student, loaders, dist, precision, metrics

    def __call__(self, split: str, after: Callable[[], object] = bool) -> Metrics:
        """As `evaluate`; `after` is called after each batch."""

        def batches() -> Iterator[Batch]:
            for batch in self.loaders[split].epoch(0):
                yield batch
                after()

        return evaluate(self.student, batches(), self.dist, self.precision, metrics=self.metrics)


@dataclass(frozen=True)
class TermGradient:
    """A term's gradient in the student's parameters, mean over some batches."""

    term: str
    weight: float
    value: float  # of the term, unweighted
    relative_norm: float  # of the weighted gradient, over that of the terms on the labels
    cosines: dict[str, float]  # to the gradient of every term


def compare_gradients(distiller: Distiller, batches: Iterable[tuple[Batch, Targets]]) -> list[TermGradient]:
    """Measure every term on the student in training mode; its parameters do not change, its running statistics do.

    Args:
        batches: at least one, of one process, each with the teacher's targets.

    Raises:
        ValueError: no term of labels to compare with.
    """
    labels = [term for term in distiller.terms if term.loss.source == "labels"]
    if not labels:
        raise ValueError("loss: no term on the labels, so there is nothing to compare the others with")
    distiller.train()
    batches = list(batches)
    gradients = {term.name: torch.zeros(()) for term in distiller.terms}
    values = dict.fromkeys(gradients, 0.0)
    for number, (batch, targets) in enumerate(batches):
        _, terms = distiller(batch.images, batch.labels, targets, final_context(batch, number))
        for term in distiller.terms:
            gradients[term.name] = gradients[term.name] + term.weight * gradient(distiller, terms[term.name]).cpu()
            values[term.name] += terms[term.name].item() / len(batches)
    reference_norm = torch.stack([gradients[term.name] for term in labels]).sum(0).norm()
    return [
        TermGradient(
            term.name, term.weight, values[term.name], float(gradients[term.name].norm() / reference_norm),
            {name: _cosine(gradients[term.name], other) for name, other in gradients.items()},
        )
        for term in distiller.terms
    ]  # fmt: skip


def final_context(batch: Batch, number: int) -> dict[str, Tensor]:
    """The context of losses (see `losses.base.Input`) at the end of a run, so that epochs can be compared; `number` seeds draws."""
    epoch = torch.full((), torch.inf, device=batch.images.device)
    return {
        "index": batch.indices, "epoch": epoch, "progress": torch.ones_like(epoch),
        "seed": torch.full((), number, dtype=torch.int64),
    }  # fmt: skip


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a, b, dim=0))


def gradient(distiller: Distiller, value: Tensor) -> Tensor:
    """The gradient of a scalar in all of the student's parameters as one vector, zero where it does not depend on them."""
    parameters = [p for p in distiller.student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )
