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
from nst.data.batch import Loader, Split, counted
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.distiller import TargetSpec
from nst.evaluate import NEIGHBOURS, evaluate, knn_accuracy, labelled_features, pooled_features
from nst.files import write_whole


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
            `measure` ("top1" or "knn"), `evaluated_on`, `loss`, `top1`, `top5` and `images` (of k-NN top1 alone means something). Without
            labels nothing is measured: {}.
        """
        if not self.data.labeled:
            return {}
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
                size, total = self.trainer.eval_batch_size, len(images) // self.dist.world
                title = f"evaluating the teacher {self.name}"
                batches = self.loader(images, size, train=False, rank=self.dist.rank, world=self.dist.world).epoch(0)
                metrics = evaluate(self.network, counted(batches, title, total), self.dist, self.precision)
                found = {name: getattr(metrics, name) for name in names}
            else:
                title, parts = "nearest neighbours: the teacher's features", (self.data.train, images)
                try:
                    features = labelled_features(
                        self.network, parts, self.dist, self.trainer, precision=self.precision, title=title
                    )
                except FloatingPointError as error:
                    raise ValueError(f"the teacher: {error}; check teacher.weights and teacher.precision") from error
                found["top1"], found["images"] = knn_accuracy(*features), len(features[-1])
            if self.dist.main:
                write_whole(file, json.dumps({"of": of, "accuracy": found}, indent=1).encode())
        if self.dist.main:
            what = "top-1" if classifies else f"accuracy of the {NEIGHBOURS} nearest neighbours"
            print(f"teacher {self.name}: {what} {found['top1']:.2f} % on the {split} images")
        return {"measure": measure, "evaluated_on": split, **found, "images": int(found["images"])}

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

    def features(self, split: Split, indices: Tensor, layer: str | None, reason: str) -> Tensor:
        """The network's features of unaugmented images, as `pooled_features`; `reason`: for the progress bar."""
        assert self.network is not None
        title = f"{reason}: the teacher's features of {len(indices):,} images"
        return pooled_features(
            self.network, split, indices, self.dist, self.trainer, layer=layer, precision=self.precision, title=title
        )

    def loader(self, split: Split, batch_size: int, **keys: Any) -> Loader:
        """A loader of a split on this rank's device, by the trainer's settings and further arguments of `Split.loader`."""
        layout, workers = self.trainer.channels_last, self.trainer.workers
        return split.loader(batch_size, device=self.dist.device, channels_last=layout, workers=workers, **keys)


def check_accuracy(about: Mapping[str, Any], data: Dataset, minimum: float | None, trained_here: bool) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    top1, split, reason = about["top1"], about["evaluated_on"], None
    if minimum is not None and top1 < minimum:
        reason = f"teacher.min_accuracy={minimum} is required;"
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
