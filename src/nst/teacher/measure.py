"""What is measured of a teacher once, and kept: how good it is, and what losses need of it over the whole training set."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.distiller import TargetSpec
from nst.evaluate import NEIGHBOURS, evaluate, knn_accuracy, labelled_features, pooled_features, whole_batches
from nst.files import write_whole


def digest(of: Any, length: int = 8) -> str:
    """Hexadecimal digits of the SHA-256 of nested plain values."""
    return sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:length]


def measure_accuracy(
    name: str, network: nn.Module, key: dict[str, Any], settings: RunConfig, data: Dataset, dist: Dist, classifies: bool
) -> dict[str, Any]:
    """The accuracy on the held-out images if there are any, else on the test images; measured once and kept in a file. Collective.

    Args:
        name: of the network, with which the file's begins.
        key: what its outputs depend on besides the images, as plain values; a hash of all ends the file's name.
        classifies: the outputs are logits of the data's classes; else the accuracy of its nearest neighbours takes the place of top-1.

    Returns:
        `measure` ("top1" or "knn"), `evaluated_on`, `loss`, `top1`, `top5` and `images`; without labels {}.
    """
    if not data.labeled:
        return {}
    split, measure = "test" if data.val is None else "val", "top1" if classifies else "knn"
    images, trainer, precision = data.split(split), settings.trainer, settings.teacher.precision
    known = None if classifies else data.train.fingerprint
    of = {**key, "measure": measure, "images": {"split": split, "sha256": images.fingerprint, "known": known}}
    file = Path(settings.outputs) / data.name / "teachers" / f"{name}-{digest(of)}.json"
    found: dict[str, Any] | None = json.loads(file.read_text())["accuracy"] if file.is_file() else None
    if dist.max(int(found is None)) == [1] or found is None:
        if classifies:
            title = f"evaluating the teacher {name}"
            batches = whole_batches(images, torch.arange(len(images)), dist, trainer, title=title)
            metrics = evaluate(network, (batch for _, _, batch in batches), dist, precision)
            found = {figure: getattr(metrics, figure) for figure in ("loss", "top1", "top5", "images")}
        else:
            shown = {"precision": precision, "title": "nearest neighbours: the teacher's features"}
            features = labelled_features(network, (data.train, images), dist, trainer, **shown)
            found = {"loss": 0.0, "top1": knn_accuracy(*features), "top5": 0.0, "images": len(features[-1])}
        if dist.main:
            write_whole(file, json.dumps({"of": of, "accuracy": found}, indent=1).encode())
    if dist.main:
        what = "top-1" if classifies else f"accuracy of the {NEIGHBOURS} nearest neighbours"
        print(f"teacher {name}: {what} {found['top1']:.2f} % on the {split} images")
    return {"measure": measure, "evaluated_on": split, **found, "images": int(found["images"])}


def init_losses(
    specs: Sequence[TargetSpec],
    network: nn.Module | None,
    stem: Path,
    key: dict[str, Any],
    settings: RunConfig,
    data: Dataset,
    dist: Dist,
) -> None:
    """Hand every loss with a `teacher_layer` its statistics over the training images, computed once and kept in files. Collective.

    Args:
        network, key: as of `measure_accuracy`.
        stem: folder, and beginning of the files' names.

    Raises:
        ValueError: there is no file, and no network to compute them.
    """
    images, every = data.train, torch.arange(len(data.train))
    for loss in {spec.loss: None for spec in specs if spec.loss.teacher_layer is not None}:
        kind, layer = type(loss).__name__, loss.teacher_layer
        of = {**key, "images": images.fingerprint, "layer": layer, "loss": kind}
        file = stem.with_name(f"{stem.name}-{kind.lower()}-{digest(of)}.safetensors")
        try:
            statistics = load_file(file)["statistics"]
        except (OSError, KeyError, SafetensorError):  # not there, or damaged
            statistics = None
        if dist.max(int(statistics is None)) == [1] or statistics is None:
            if network is None:
                raise ValueError(f"{kind} needs {file}, which is computed once from the teacher: name teacher.weights")
            title, precision = f"{kind}: features of {len(images):,} images", settings.teacher.precision
            features = pooled_features(network, images, every, dist, settings.trainer, layer, precision, title=title)
            statistics = loss.teacher_statistics(features, images.labels.to(features.device)).cpu()
            if dist.main:
                write_whole(file, save({"statistics": statistics}, {"of": json.dumps(of)}))
                print(f"{kind}: computed once from the teacher over {len(images):,} images, kept in {file}")
        loss.init_teacher(statistics)


def check_accuracy(about: Mapping[str, Any], data: Dataset, minimum: float | None) -> None:
    """Raises ValueError for a teacher below `teacher.min_accuracy`; by default for one that is not better than chance.

    Chance is predicting the most frequent class; the test is a one-sided binomial test at the 1 % level.
    """
    top1, split, images = about["top1"], about["evaluated_on"], about["images"]
    found = f"the teacher ({about['weights']}) scores {top1:.2f} % on the {split} images"
    if minimum is None:
        from scipy.stats import binomtest  # takes half a second to import

        labels = data.split(split).labels
        chance = float(torch.bincount(labels).max() / len(labels))
        if binomtest(round(top1 * images / 100), images, chance, alternative="greater").pvalue > 0.01:
            raise ValueError(
                f"{found}; the most frequent class gives {100 * chance:.2f} %: wrong weights, classes in another order, too "
                "little training? teacher.min_accuracy=0 accepts it"
            )
    elif top1 < minimum:
        raise ValueError(f"{found}; teacher.min_accuracy={minimum} is required")
