"""How good a student is: accuracy, nearest neighbours, a linear probe, the terms of its loss on held-out images, their gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.config import TrainerConfig
from nst.data.batch import Batch, Split, counted
from nst.data.dataset import Dataset
from nst.dist import Dist, autocast
from nst.distiller import Distiller, Targets, seed_draws
from nst.layers import LOGITS, LayerHooks
from nst.losses import TransferLoss
from nst.losses.base import pool
from nst.storage.folder import measure_of

if TYPE_CHECKING:
    from nst.teacher import LiveTeacher

NEIGHBOURS = 20
MOST_IMAGES = 10_000  # of the training images, and of those whose classes are asked for


@dataclass(frozen=True)
class Metrics:
    """Of one evaluation, each image counted once; accuracies in percent. A student of features alone has no top-1."""

    loss: float  # cross-entropy; of a student of features alone the weighted sum of the terms
    top1: float | None
    top5: float | None
    images: int
    class_images: list[int] = field(default_factory=list)  # of each class
    class_top1: list[float | None] = field(default_factory=list)  # accuracy of each class; None where it has no image
    others: dict[str, float] = field(default_factory=dict)  # further metrics by name, or the weighted terms
    knn: float | None = None  # accuracy of the nearest neighbours, of features alone

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


Evaluation = Callable[..., Metrics]
"""Of a split by name, and a function that is called after each batch, on all ranks alike."""

Metric = Callable[[Tensor, Tensor], Tensor | float]
"""A function of an evaluation's logits `[N, classes]`, float32, and labels `[N]`, all images at once; the value is a number."""

TAKEN = ("kind", "step", "epoch", *(f.name for f in fields(Metrics)))  # names of an evaluation's own values


def macro_accuracy(logits: Tensor, labels: Tensor) -> float:
    """The mean of the accuracies of the classes that occur, in percent."""
    right = torch.bincount(labels, weights=(logits.argmax(1) == labels).double())
    count = torch.bincount(labels)
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
    after: Callable[[], object] = bool,
) -> Metrics:
    """Evaluate this rank's batches in `eval()` mode and average over all ranks; the model's mode is restored.

    Args:
        confusion: `[classes, classes]` int64, to which this rank's images are added: label (row), answer (column).
        metrics: more to measure, by name; all ranks' images come to each in the order of the split.
        after: called after each batch.

    Raises:
        ValueError: if there is no image; a metric that gives no number.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(2, device=ranks.device, dtype=torch.float64)  # loss, top-5
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # what metrics need
    by_class = sums.new_zeros(2, 0)  # images of each class, and the right ones
    try:
        for batch in batches:
            with autocast(ranks.device, precision):
                logits = model(batch.images)
            logits = logits.float()
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
            answers = logits.topk(1, dim=1).indices[:, 0]
            right = answers == batch.labels
            sums += torch.stack([loss.double(), best.any(dim=1).sum().double()])
            if not by_class.shape[1]:
                by_class = by_class.new_zeros(2, logits.shape[1])
            by_class.index_add_(1, batch.labels, torch.stack([torch.ones_like(right), right]).double())
            if metrics:
                kept.append((batch.indices, logits, batch.labels))
            if confusion is not None:
                confusion.index_put_((batch.labels, answers), torch.ones_like(answers), accumulate=True)
            after()
    finally:
        model.train(training)
    (classes,) = ranks.max(by_class.shape[1])
    if not classes:
        raise ValueError("no images to evaluate on")
    by_class = by_class if by_class.shape[1] else by_class.new_zeros(2, classes)  # of a rank without images
    loss_sum, top5 = ranks.sum(sums).tolist()
    counts, hits = ranks.sum(by_class).tolist()
    images = sum(counts)
    accuracies = [100 * right / count if count else None for count, right in zip(counts, hits, strict=True)]
    others: dict[str, float] = {}
    if metrics:
        indices, logits, labels = (ranks.join(torch.cat(parts)) for parts in zip(*kept, strict=True))
        order = indices.argsort()
        for name, metric in metrics.items():
            try:
                others[name] = float(metric(logits[order], labels[order]))
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                raise ValueError(f"metric.{name}: {error}; a number from logits and labels is needed") from error
    percent = 100 * sum(hits) / images, 100 * top5 / images
    return Metrics(loss_sum / images, *percent, int(images), [int(count) for count in counts], accuracies, others)


def worst_classes(metrics: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Name, number of images and accuracy in percent of the classes that have images, the worst first; `metrics` of an evaluation."""
    images, top1 = metrics["class_images"], metrics["class_top1"]
    rows = zip(names or range(len(images)), images, top1, strict=True)
    found = [{"class": str(name), "images": n, "top1": accuracy} for name, n, accuracy in rows if n]
    return sorted(found, key=lambda entry: entry["top1"])


def whole_batches(
    split: Split,
    indices: Tensor,
    dist: Dist,
    trainer: TrainerConfig,
    after: Callable[[], object] = bool,
    title: str = "",
) -> Iterator[tuple[int, slice, Batch]]:
    """This rank's batches of unaugmented images: whole batches in turn, the same ones for any number of ranks.

    Args:
        after: called after each batch, equally often on every rank.
        title: of a progress bar; none without.

    Yields:
        The batch's number, its place in `indices`, and the batch.
    """
    size, n, layout = trainer.eval_batch_size, len(indices), trainer.channels_last
    count = -(-n // size)
    parts = [slice(n * i // count, n * (i + 1) // count) for i in range(count)]  # none much smaller than the others
    loader = split.loader(size, train=False, device=dist.device, channels_last=layout, workers=trainer.workers)
    own = loader.batches(indices, torch.full_like(indices, split.unaugmented), parts[dist.rank :: dist.world])
    own = counted(own, title, n // dist.world) if title else own
    for first in range(0, count, dist.world):
        if (number := first + dist.rank) < count:
            yield number, parts[number], next(own)
        after()


@torch.no_grad()
def pooled_features(
    network: nn.Module,
    split: Split,
    indices: Tensor,
    dist: Dist,
    trainer: TrainerConfig,
    layer: str | None = None,
    precision: str = "fp32",
    after: Callable[[], object] = bool,
    title: str = "",
) -> Tensor:
    """A network's features of unaugmented images, averaged over positions: `[n, D]` on every rank.

    The network is in `eval()` mode. Without a `layer` they are those of the last stage where the network names it, else its output.
    """
    if layer is None and "last" in getattr(network, "named_layers", {}):
        layer = "last"
    hooks, rows = LayerHooks(network, [] if layer is None else [layer]), torch.zeros(0, 0, device=dist.device)
    try:
        for _, part, batch in whole_batches(split, indices, dist, trainer, after, title):
            with autocast(dist.device, precision):
                output = network(batch.images)
            features = pool(output if layer is None else hooks.read()[layer], "network")
            rows = rows if len(rows) else features.new_zeros(len(indices), features.shape[1])
            rows[part] = features
    finally:
        hooks.remove()
    (width,) = dist.max(rows.shape[1])
    return dist.sum(rows if len(rows) else rows.new_zeros(len(indices), width))


def labelled_features(
    network: nn.Module, parts: Iterable[Split], dist: Dist, trainer: TrainerConfig, **how: Any
) -> list[Tensor]:
    """Features and labels of at most 10,000 images of each split, evenly spaced; of two splits what `knn_accuracy` takes.

    Raises:
        FloatingPointError: a feature is not finite.
    """
    found: list[Tensor] = []
    for split in parts:
        indices = torch.linspace(0, len(split) - 1, min(MOST_IMAGES, len(split))).long()
        features = pooled_features(network, split, indices, dist, trainer, **how)
        if not bool(torch.isfinite(features).all()):
            raise FloatingPointError("its features are not finite")
        found += [features.float().cpu(), split.labels[indices]]
    return found


def knn_accuracy(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """How often the classes of the 20 nearest images tell an image's class, by cosine distance and majority: in percent.

    The arguments are the features `[n, D]` and classes `[n]` of the training images, and those of the test images, `[m, D]` and `[m]`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), metric="cosine", algorithm="brute")
    neighbours.fit(features.numpy(), labels.numpy())
    return 100 * float(neighbours.score(test_features.numpy(), test_labels.numpy()))


def linear_probe(features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor) -> float:
    """The accuracy of a logistic regression on standardised features, in percent; the arguments are those of `knn_accuracy`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(features.numpy(), labels.numpy())
    return 100 * float(probe.score(test_features.numpy(), test_labels.numpy()))


def feature_evaluation(
    distiller: Distiller, live: "LiveTeacher", data: Dataset, dist: Dist, trainer: TrainerConfig
) -> Evaluation:
    """Of a student of features alone: the terms on held-out images, and where there are labels its nearest neighbours.

    It leaves the student in `eval()` mode, is collective, and raises FloatingPointError for features that are not finite.

    Raises:
        ValueError: no term can be evaluated on other images than those it was trained on.
    """
    # a memory has a row for each training image
    terms = [t for t in distiller.terms if type(t.loss).init_memory is TransferLoss.init_memory]
    if not terms and not data.labeled:
        name = distiller.terms[0].name
        raise ValueError(f"loss.{name} says nothing of held-out images: without labels add a term such as nst_poly")

    @torch.no_grad()
    def evaluation(split: str, after: Callable[[], object] = bool) -> Metrics:
        distiller.eval()
        images, teacher = data.split(split), live.beside(distiller.target_specs)
        count = -(-len(images) // trainer.eval_batch_size)
        rows = torch.zeros(count, len(terms), device=dist.device, dtype=torch.float64)
        gather, distiller.gather = distiller.gather, None  # each rank has whole batches
        try:
            for number, _, batch in whole_batches(images, torch.arange(len(images)), dist, trainer, after):
                context, targets = final_context(batch, number), teacher(batch)
                seed_draws(number)
                with autocast(dist.device, trainer.precision):
                    logits = distiller.student(batch.images)
                    features = distiller.hooks.read() | {LOGITS: logits}
                    for column, term in enumerate(terms):
                        value = distiller.value(term, features, targets, {**context, "labels": batch.labels})
                        rows[number, column] = term.weight * len(batch.labels) * value.double()
        finally:
            distiller.gather = gather
            teacher.hooks.remove()
        values, knn = (dist.sum(rows).sum(0) / len(images)).tolist(), None
        if data.labeled:
            how = {"precision": trainer.precision, "after": after}
            knn = knn_accuracy(*labelled_features(distiller.student, (data.train, images), dist, trainer, **how))
        weighted = {f"weighted/{term.name}": value for term, value in zip(terms, values, strict=True)}
        return Metrics(sum(values), None, None, len(images), others=weighted, knn=knn)

    return evaluation


def final_context(batch: Batch, number: int) -> dict[str, Tensor]:
    """The context of losses (see `losses.base.Input`) at the end of a run, so that epochs can be compared; `number` seeds draws."""
    epoch, seed = torch.full((), torch.inf, device=batch.images.device), torch.full((), number, dtype=torch.int64)
    return {"index": batch.indices, "epoch": epoch, "progress": torch.ones_like(epoch), "seed": seed}


@dataclass(frozen=True)
class TermGradient:
    """A term's gradient in the student's parameters, mean over some batches."""

    term: str
    weight: float
    value: float  # of the term, unweighted
    relative_norm: float  # of the weighted gradient, over that of the terms on the labels
    cosines: dict[str, float]  # to the gradient of every term


def compare_gradients(distiller: Distiller, batches: Sequence[tuple[Batch, Targets]]) -> list[TermGradient]:
    """Measure every term on the student in training mode; its parameters do not change, its running statistics do.

    Args:
        batches: at least one, of one process, each with the teacher's targets.

    Raises:
        ValueError: no term of labels to compare with.
    """
    labels = [term.name for term in distiller.terms if term.loss.source == "labels"]
    if not labels:
        raise ValueError("loss: no term on the labels, so there is nothing to compare the others with")
    distiller.train()
    parameters = [p for p in distiller.student.parameters() if p.requires_grad]
    gradients = {term.name: torch.zeros(()) for term in distiller.terms}
    values = dict.fromkeys(gradients, 0.0)
    for number, (batch, targets) in enumerate(batches):
        _, terms = distiller(batch.images, batch.labels, targets, final_context(batch, number))
        for term in distiller.terms:
            parts = torch.autograd.grad(terms[term.name], parameters, retain_graph=True, materialize_grads=True)
            gradients[term.name] = gradients[term.name] + term.weight * torch.cat([g.flatten() for g in parts]).cpu()
            values[term.name] += terms[term.name].item() / len(batches)
    reference = torch.stack([gradients[name] for name in labels]).sum(0).norm()
    found: list[TermGradient] = []
    for term in distiller.terms:
        own = gradients[term.name]
        cosines = {name: float(torch.cosine_similarity(own, other, dim=0)) for name, other in gradients.items()}
        norm = float(own.norm() / reference)
        found.append(TermGradient(term.name, term.weight, values[term.name], norm, cosines))
    return found
