"""What is measured of a teacher once, and kept: how good it is, and what losses need of it over the whole training set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nst.config import TrainerConfig
from nst.data.batch import Split, counted
from nst.data.dataset import Dataset
from nst.dist import Dist, autocast
from nst.distiller import TargetSpec
from nst.evaluate import evaluate
from nst.files import write_whole
from nst.layers import LayerHooks
from nst.losses.maps import pool

NEIGHBOURS = 20
KNN_IMAGES = 10_000  # of the training images, and of those whose classes are asked for, at most


def digest(of: Any, length: int = 8) -> str:
    """Hexadecimal digits of the SHA-256 of nested plain values."""
    return sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Measurements:
    """Measurements of one teacher on one data set. Each is made once and kept in a file, named after all that it depends on.

    All methods are collective.
    """

    name: str
    network: nn.Module | None  # with its weights, in `eval()` mode; None: only what is in files can be had
    precision: str  # of its forward pass
    depends: Mapping[str, Any]  # what its outputs depend on besides the images, as plain values
    folder: Path  # of the files
    data: Dataset
    dist: Dist
    trainer: TrainerConfig  # how images are loaded

    def accuracy(self, classifies: bool) -> dict[str, Any]:
        """The accuracy on the held-out images if there are any, else on the test images.

        Args:
            classifies: the network's output is logits of the data's classes. Else the accuracy of its nearest neighbours takes the
                place of top-1.

        Returns:
            `measure` ("top1" or "knn"), `evaluated_on`, `loss`, `top1`, `top5` and `images` (of k-NN top1 alone means something).
        """
        split = "val" if self.data.val is not None else "test"
        images, measure = self.data.split(split), "top1" if classifies else "knn"
        of = {**self.depends, "measure": measure, "images": {"split": split, "sha256": images.fingerprint}}
        if not classifies:
            of["known images"] = self.data.train.fingerprint
        file = self.folder / f"{self.name}-{digest(of)}.json"
        names = ("loss", "top1", "top5", "images")
        kept = torch.zeros(len(names), dtype=torch.float64)
        if self.dist.main and file.is_file():
            kept += torch.tensor([json.loads(file.read_text())["accuracy"][name] for name in names], dtype=kept.dtype)
        found: dict[str, Any] = dict(zip(names, self.dist.sum(kept.to(self.dist.device)).tolist(), strict=True))
        if not found["images"]:
            assert self.network is not None
            if classifies:
                title, total = f"evaluating the teacher {self.name}", len(images) // self.dist.world
                batches = self._loader(images, rank=self.dist.rank, world=self.dist.world).epoch(0)
                metrics = evaluate(self.network, counted(batches, title, total), self.dist, self.precision)
                found = {name: getattr(metrics, name) for name in names}
            else:
                found["top1"], found["images"] = self.knn_accuracy(self.data.train, images)
            if self.dist.main:
                write_whole(file, json.dumps({"of": of, "accuracy": found}, indent=1).encode())
        if self.dist.main:
            what = "top-1" if classifies else f"accuracy of the {NEIGHBOURS} nearest neighbours"
            print(f"teacher {self.name}: {what} {found['top1']:.2f} % on the {split} images")
        return {"measure": measure, "evaluated_on": split, **found, "images": int(found["images"])}

    def knn_accuracy(self, known: Split, asked: Split) -> tuple[float, int]:
        """How often the classes of the nearest images tell an image's class: cosine distance, majority of 20, no augmentation.

        Args:
            known, asked: labelled images; of each 10,000 at most are used, evenly spaced.

        Returns:
            The accuracy in percent, and the number of images asked for.

        Raises:
            ValueError: a feature is not finite.
        """
        from sklearn.neighbors import KNeighborsClassifier

        layer = "last" if "last" in getattr(self.network, "named_layers", {}) else None
        values, labels = [], []
        for split in (known, asked):
            indices = torch.linspace(0, len(split) - 1, min(KNN_IMAGES, len(split))).long()
            values.append(self.features(split, indices, layer, "nearest neighbours").float().cpu())
            labels.append(split.labels[indices])
            if not torch.isfinite(values[-1]).all():
                raise ValueError("the teacher's features are not finite: check teacher.weights and teacher.precision")
        neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels[0])), metric="cosine", algorithm="brute")
        neighbours.fit(values[0].numpy(), labels[0].numpy())
        return 100 * neighbours.score(values[1].numpy(), labels[1].numpy()), len(labels[1])

    def init_losses(self, specs: Sequence[TargetSpec]) -> None:
        """Hand every loss with a `teacher_layer` its statistics over the training images.

        Raises:
            ValueError: there is no file, and no teacher to compute them.
        """
        for loss in {spec.loss: None for spec in specs if spec.loss.teacher_layer is not None}:
            kind, layer, images = type(loss).__name__, loss.teacher_layer, self.data.train
            depends = {**self.depends, "images": images.fingerprint, "layer": layer, "loss": kind}
            file = self.folder / f"{self.name}-{kind.lower()}-{digest(depends)}.safetensors"
            try:
                statistics = load_file(file)["statistics"]
            except (OSError, KeyError, SafetensorError):  # not there, or damaged
                statistics = None
            if self.dist.max(int(statistics is None)) == [1] or statistics is None:
                if self.network is None:
                    raise ValueError(
                        f"{kind} needs what is computed once from the teacher's layer {layer} over the training images, and {file} is not "
                        "there: name the teacher.weights"
                    )
                features = self.features(images, torch.arange(len(images)), layer, kind)
                statistics = loss.teacher_statistics(features, images.labels.to(features.device)).cpu()
                if self.dist.main:
                    write_whole(file, save({"statistics": statistics}, {"of": json.dumps(depends)}))
                    print(f"{kind}: computed once from the teacher over {len(images):,} images, kept in {file}")
            loss.init_teacher(statistics)

    @torch.no_grad()
    def features(self, split: Split, indices: Tensor, layer: str | None, reason: str) -> Tensor:
        """The network's features of unaugmented images, averaged over positions: `[n, D]` on every rank.

        Args:
            indices: `[n]`, in the split.
            layer: None: its output.
            reason: for the progress bar.
        """
        assert self.network is not None
        size, dist, rows = self.trainer.eval_batch_size, self.dist, torch.empty(0)
        parts = [slice(first, first + size) for first in range(0, len(indices), size)][dist.rank :: dist.world]
        batches = self._loader(split).batches(indices, torch.full_like(indices, split.unaugmented), parts)
        total = len(indices) // dist.world
        title = f"{reason}: the teacher's features of {total:,} images"
        hooks = LayerHooks(self.network, [] if layer is None else [layer])
        try:
            for part, batch in zip(parts, counted(batches, title, total), strict=True):
                with autocast(dist.device, self.precision):
                    output = self.network(batch.images)
                features = pool(output if layer is None else hooks.read()[layer], "teacher")
                if not len(rows):
                    rows = features.new_zeros(len(indices), features.shape[1])
                rows[part] = features
        finally:
            hooks.remove()
        (width,) = dist.max(rows.shape[-1])
        return dist.sum(rows if len(rows) else torch.zeros(len(indices), width, device=dist.device))

    def _loader(self, split: Split, rank: int = 0, world: int = 1) -> Any:
        return split.loader(
            self.trainer.eval_batch_size, train=False, rank=rank, world=world, device=self.dist.device,
            channels_last=self.trainer.channels_last, workers=self.trainer.workers,
        )  # fmt: skip


def check_accuracy(about: Mapping[str, Any], data: Dataset, minimum: float | None, trained_here: bool) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    top1, split, reason = about["top1"], about["evaluated_on"], None
    if minimum is not None and top1 < minimum:
        reason = f"teacher.min_accuracy={minimum} is required"
    elif minimum is None:
        from scipy.stats import binomtest  # takes half a second to import

        labels = data.split(split).labels
        chance = float(torch.bincount(labels).max() / len(labels))
        hits = round(top1 * about["images"] / 100)
        if binomtest(hits, about["images"], chance, alternative="greater").pvalue > 0.01:
            causes = "wrong weights, classes in another order, or another normalisation (teacher.mean, .std)?"
            if trained_here:
                causes = "trained here: more epochs (teacher.train.epochs), or another learning rate?"
            reason = f"predicting the most frequent class gives {100 * chance:.2f} %, so it may be at chance: {causes}"
    if reason is not None:
        raise ValueError(
            f"the teacher ({about['weights']}) scores {top1:.2f} % on the {split} images; {reason} "
            "teacher.min_accuracy=0 accepts any teacher"
        )
