"""How good a teacher is: measured once, kept, and checked before a student is trained by it."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from nst.config import TeacherConfig, TrainerConfig
from nst.data.batch import Split
from nst.data.dataset import Dataset
from nst.data.progress import counted
from nst.dist import Dist
from nst.evaluate import Metrics, evaluate
from nst.files import write_whole
from nst.layers import LayerHooks
from nst.teacher.live import LiveTeacher

NEIGHBOURS = 20
KNN_IMAGES = 10_000  # of the training images, and of those whose classes are asked for, at most


class TeacherOutput(nn.Module):
    """A teacher as a plain module from images of the data's normalisation to its output, for evaluation."""

    def __init__(self, live: LiveTeacher) -> None:
        super().__init__()
        self.live = live

    def forward(self, images: Any) -> Any:
        logits = self.live.logits(images)
        self.live.hooks.read()
        return logits


def digest(of: Mapping[str, Any], length: int = 8) -> str:
    """Hexadecimal digits of the SHA-256 of nested plain values."""
    return sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:length]


def measured_accuracy(
    live: LiveTeacher,
    name: str,
    of: Mapping[str, Any],
    classifies: bool,
    data: Dataset,
    ranks: Dist,
    trainer: TrainerConfig,
    folder: Path,
) -> dict[str, Any]:
    """The teacher's accuracy on the held-out images if there are any, else on the test images. Collective.

    It is measured once and kept in `folder`, beside all that it depends on.

    Args:
        name: for messages and the file's name.
        of: what the accuracy depends on besides the images, as plain values.
        classifies: its output is logits of the data's classes. Else its k-nearest-neighbour accuracy takes the place of top-1.

    Returns:
        `measure` ("top1" or "knn"), `evaluated_on`, `loss`, `top1`, `top5` and `images` (of k-NN top1 alone means something).
    """
    split = "val" if data.val is not None else "test"
    images, measure = data.split(split), "top1" if classifies else "knn"
    of = {**of, "measure": measure, "images": {"split": split, "sha256": images.fingerprint}}
    if not classifies:
        of["known images"] = data.train.fingerprint
    file = folder / f"{name}-{digest(of)}.json"
    kept = torch.zeros(4, dtype=torch.float64)
    if ranks.main and file.is_file():
        kept += torch.tensor(list(json.loads(file.read_text())["accuracy"].values()), dtype=kept.dtype)
    loss, top1, top5, count = ranks.sum(kept.to(ranks.device)).tolist()
    metrics = Metrics(loss, top1, top5, int(count))
    if not count:
        keys: dict[str, Any] = {
            "device": ranks.device,
            "channels_last": trainer.channels_last,
            "workers": trainer.workers,
        }
        if classifies:
            loader = images.loader(trainer.eval_batch_size, train=False, rank=ranks.rank, world=ranks.world, **keys)
            title, total = f"evaluating the teacher {name}", len(images) // ranks.world
            metrics = evaluate(TeacherOutput(live).eval(), counted(loader.epoch(0), title, total), ranks)
        else:
            top1, count = torch.zeros(2, dtype=torch.float64)
            if ranks.main:
                top1, count = knn_accuracy(pooled_features(live), data.train, images, trainer.eval_batch_size, **keys)
            top1, count = ranks.sum(torch.tensor([top1, count], dtype=torch.float64, device=ranks.device)).tolist()
            metrics = Metrics(0.0, top1, 0.0, int(count))
        if ranks.main:
            write_whole(file, json.dumps({"of": of, "accuracy": numbers(metrics)}, indent=1).encode())
    if ranks.main:
        what = "top-1" if classifies else f"accuracy of the {NEIGHBOURS} nearest neighbours"
        print(f"teacher {name}: {what} {metrics.top1:.2f} % on the {split} images")
    return {"measure": measure, "evaluated_on": split, **numbers(metrics)}


def numbers(metrics: Metrics) -> dict[str, Any]:
    """Those of all classes together."""
    return {"loss": metrics.loss, "top1": metrics.top1, "top5": metrics.top5, "images": metrics.images}


def pooled_features(live: LiveTeacher) -> Callable[[Tensor], Tensor]:
    """A function from images `[B, C, H, W]` to features `[B, D]`: the layer `last` averaged over positions, else the output."""
    layer = ["last"] if "last" in getattr(live.model, "named_layers", {}) else []

    def features(images: Tensor) -> Tensor:
        hooks = LayerHooks(live.model, layer)
        try:
            output = live.logits(images)
            value = hooks.read().get("last", output)
        finally:
            hooks.remove()
            live.hooks.read()
        return value.float().flatten(2).mean(2) if value.ndim > 2 else value.float()

    return features


@torch.no_grad()
def knn_accuracy(
    features: Callable[[Tensor], Tensor],
    known: Split,
    asked: Split,
    batch_size: int,
    *,
    device: torch.device,
    channels_last: bool = False,
    workers: int = 0,
) -> tuple[float, int]:
    """How often the classes of the nearest images tell an image's class: cosine distance, majority of 20, no augmentation.

    Args:
        features: images [B, C, H, W] -> [B, D].
        known, asked: labelled images; of each 10,000 at most are used, evenly spaced.

    Returns:
        The accuracy in percent, and the number of images asked for.

    Raises:
        ValueError: a feature is not finite.
    """
    from sklearn.neighbors import KNeighborsClassifier

    values: list[Tensor] = []
    labels: list[Tensor] = []
    for split in (known, asked):
        indices = torch.linspace(0, len(split) - 1, min(KNN_IMAGES, len(split))).long()
        parts = [slice(first, first + batch_size) for first in range(0, len(indices), batch_size)]
        loader = split.loader(batch_size, train=False, device=device, channels_last=channels_last, workers=workers)
        batches = loader.batches(indices, torch.full_like(indices, split.unaugmented), parts)
        title = f"features of {len(indices):,} images for their nearest neighbours"
        rows = [features(batch.images).cpu() for batch in counted(batches, title, len(indices))]
        values.append(torch.cat(rows))
        labels.append(split.labels[indices])
        if not torch.isfinite(values[-1]).all():
            raise ValueError("the teacher's features are not finite: check teacher.weights and teacher.precision")
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels[0])), metric="cosine", algorithm="brute")
    neighbours.fit(values[0].numpy(), labels[0].numpy())
    return 100 * neighbours.score(values[1].numpy(), labels[1].numpy()), len(labels[1])


def check_accuracy(about: Mapping[str, Any], data: Dataset, settings: TeacherConfig, trained_here: bool) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    minimum, top1, split = settings.min_accuracy, about["top1"], about["evaluated_on"]
    reason = None
    if minimum is not None and top1 < minimum:
        reason = f"teacher.min_accuracy={minimum} is required"
    elif minimum is None:
        labels = data.split(split).labels
        chance = float(torch.bincount(labels).max() / len(labels))
        hits = round(top1 * about["images"] / 100)
        if binomtest(hits, about["images"], chance, alternative="greater").pvalue > 0.01:
            reason = f"predicting the most frequent class gives {100 * chance:.2f} %, so it may be at chance: "
            if trained_here:
                reason += "trained here: more epochs (teacher.train.epochs), or another learning rate?"
            else:
                reason += "wrong weights, classes in another order, or another normalisation (teacher.mean, .std)?"
    if reason is not None:
        raise ValueError(
            f"the teacher ({about['weights']}) scores {top1:.2f} % on the {split} images; {reason} "
            "teacher.min_accuracy=0 accepts any teacher"
        )
