"""How good features are: the accuracy of nearest neighbours, a linear probe, and a loss's terms on held-out images."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nst.config import TrainerConfig
from nst.data.batch import Batch, Split, counted
from nst.data.dataset import Dataset
from nst.dist import Dist, autocast
from nst.distiller import Distiller, seed_draws
from nst.evaluate import Metrics, final_context
from nst.layers import LOGITS, LayerHooks
from nst.losses import TransferLoss
from nst.losses.base import pool

if TYPE_CHECKING:
    from nst.teacher import LiveTeacher

NEIGHBOURS = 20
MOST_IMAGES = 10_000  # of the training images, and of those whose classes are asked for


def batches(
    split: Split,
    indices: Tensor,
    dist: Dist,
    trainer: TrainerConfig,
    after: Callable[[], object] = bool,
    title: str = "",
) -> Iterator[tuple[int, slice, Batch]]:
    """This rank's batches of unaugmented images: whole batches in turn, the same ones for any number of ranks.

    Args:
        indices: `[n]`, in the split.
        after: called after each batch, equally often on every rank.
        title: of a progress bar; none without.

    Yields:
        The batch's number, its place in `indices`, and the batch.
    """
    size, n = trainer.eval_batch_size, len(indices)
    count = -(-n // size)
    parts = [slice(n * i // count, n * (i + 1) // count) for i in range(count)]  # none much smaller than the others
    loader = split.loader(
        size, train=False, device=dist.device, channels_last=trainer.channels_last, workers=trainer.workers
    )
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
    *,
    layer: str | None = None,
    precision: str = "fp32",
    after: Callable[[], object] = bool,
    title: str = "",
) -> Tensor:
    """A network's features of unaugmented images, averaged over positions: `[n, D]` on every rank.

    Args:
        network: in `eval()` mode.
        indices: `[n]`, in the split.
        layer: None: the last stage where the network names it, else its output.
        after, title: as of `batches`.
    """
    if layer is None and "last" in getattr(network, "named_layers", {}):
        layer = "last"
    hooks, rows = LayerHooks(network, [] if layer is None else [layer]), torch.empty(0)
    try:
        for _, part, batch in batches(split, indices, dist, trainer, after, title):
            with autocast(dist.device, precision):
                output = network(batch.images)
            features = pool(output if layer is None else hooks.read()[layer], "network")
            if not len(rows):
                rows = features.new_zeros(len(indices), features.shape[1])
            rows[part] = features
    finally:
        hooks.remove()
    (width,) = dist.max(rows.shape[-1])
    return dist.sum(rows if len(rows) else torch.zeros(len(indices), width, device=dist.device))


def labelled_features(
    network: nn.Module, parts: Iterable[Split], dist: Dist, trainer: TrainerConfig, **settings: Any
) -> list[Tensor]:
    """Features and labels of at most 10,000 images of each split, evenly spaced; of a known and an asked split what `knn_accuracy` takes.

    Args:
        settings: of `pooled_features`.

    Raises:
        FloatingPointError: a feature is not finite.
    """
    found: list[Tensor] = []
    for split in parts:
        indices = torch.linspace(0, len(split) - 1, min(MOST_IMAGES, len(split))).long()
        features = pooled_features(network, split, indices, dist, trainer, **settings)
        if not bool(torch.isfinite(features).all()):
            raise FloatingPointError("its features are not finite")
        found += [features.float().cpu(), split.labels[indices]]
    return found


def knn_accuracy(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
    """How often the classes of the 20 nearest images tell an image's class, by cosine distance and majority: in percent.

    Args:
        known, asked: features `[n, D]`, `[m, D]`.
        labels, truth: their classes `[n]`, `[m]`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), metric="cosine", algorithm="brute")
    neighbours.fit(known.numpy(), labels.numpy())
    return 100 * float(neighbours.score(asked.numpy(), truth.numpy()))


def linear_probe(known: Tensor, labels: Tensor, asked: Tensor, truth: Tensor) -> float:
    """The accuracy of a logistic regression on standardised features, in percent; the arguments are those of `knn_accuracy`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(known.numpy(), labels.numpy())
    return 100 * float(probe.score(asked.numpy(), truth.numpy()))


class FeatureEvaluation:
    """Of a student that learns features alone: the terms on held-out images, and where there are labels its nearest neighbours."""

    def __init__(
        self, distiller: Distiller, teacher: "LiveTeacher", data: Dataset, dist: Dist, trainer: TrainerConfig
    ) -> None:
        """Nothing runs yet. Raises ValueError if no term can be evaluated on other images than those it was trained on."""
        self.distiller, self.teacher, self.data, self.dist, self.trainer = distiller, teacher, data, dist, trainer
        # a memory has a row for each training image
        self.terms = [t for t in distiller.terms if type(t.loss).init_memory is TransferLoss.init_memory]
        if not self.terms and not data.labeled:
            raise ValueError(
                f"loss.{distiller.terms[0].name} keeps values of the training images, so it says nothing of held-out ones, and data={data.name} "
                "has no labels: add a term of features, such as nst_poly"
            )

    def __call__(self, split: str, after: Callable[[], object] = bool) -> Metrics:
        """Evaluate the student as it is, in `eval()` mode; modes and random draws are left as they come. A collective call.

        Args:
            split: "val" or "test".
            after: as of `batches`.

        Raises:
            FloatingPointError: a feature is not finite.
        """
        self.distiller.eval()
        images, weighted = self.data.split(split), {}
        values = self._values(images, after).tolist()
        for term, value in zip(self.terms, values, strict=True):
            weighted[f"weighted/{term.name}"] = value
        knn = None
        if self.data.labeled:
            student, parts, precision = self.distiller.student, (self.data.train, images), self.trainer.precision
            knn = knn_accuracy(
                *labelled_features(student, parts, self.dist, self.trainer, precision=precision, after=after)
            )
        return Metrics(sum(values), None, None, len(images), others=weighted, knn=knn)

    @torch.no_grad()
    def _values(self, images: Split, after: Callable[[], object]) -> Tensor:
        """The weighted terms, `[terms]` float64: means over the images."""
        device, distiller = self.dist.device, self.distiller
        teacher = self.teacher.beside(distiller.target_specs)
        rows = torch.zeros(
            -(-len(images) // self.trainer.eval_batch_size), len(self.terms), device=device, dtype=torch.float64
        )
        gather, distiller.gather = distiller.gather, None  # each rank has whole batches
        try:
            for number, _, batch in batches(images, torch.arange(len(images)), self.dist, self.trainer, after):
                context, targets = final_context(batch, number), teacher(batch)
                seed_draws(number)
                with autocast(device, self.trainer.precision):
                    logits = distiller.student(batch.images)
                    features = distiller.hooks.read() | {LOGITS: logits}
                    for column, term in enumerate(self.terms):
                        value = distiller.value(term, features, targets, {**context, "labels": batch.labels})
                        rows[number, column] = term.weight * len(batch.labels) * value.double()
        finally:
            distiller.gather = gather
            teacher.set_target_specs(())
        return self.dist.sum(rows).sum(0) / len(images)
