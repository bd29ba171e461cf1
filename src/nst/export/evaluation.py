"""The accuracy of a finished run's student, or of any weights, on any data set: overall and for every class."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nst import build
from nst.config import EvaluateConfig, check_numbers, check_pair, check_ranges
from nst.data.batch import Batch
from nst.data.decode import scale_and_shift
from nst.dist import join
from nst.evaluate import evaluate
from nst.export.card import WORST
from nst.export.finished import FinishedRun, finished_run
from nst.export.formats import Rescaled
from nst.export.measure import class_accuracies, confusion_matrix
from nst.files import sha256_of, write_whole
from nst.models.weights import load_weights
from nst.teacher import expected_normalization

REPORT = "evaluation.json"


class _Recorded(nn.Module):
    """Keeps the classes that a network gives, beside the labels of the batches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.answers: list[Tensor] = []
        self.labels: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        self.answers.append(logits.argmax(1))
        return logits

    def noting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches as they are; their labels are kept."""
        for batch in batches:
            self.labels.append(batch.labels)
            yield batch


def evaluate_weights(settings: EvaluateConfig) -> dict[str, Any]:
    """Evaluate and print accuracy, macro average (the mean of the classes' accuracies) and the worst classes.

    Returns:
        All of it, and the confusion matrix (rows: labels, columns: answers). Written to `evaluation.json` in `settings.to`, by
        default the folder of the run.

    Raises:
        ValueError: a file or setting at fault.
    """
    run: FinishedRun | None = None
    if settings.run is not None:
        run = finished_run(settings.run, settings.root, settings.weights or "last")
        weights, data = str(run.weights), settings.data or run.settings.data
        settings = replace(
            settings, model=run.settings.model, weights=weights, data=data, to=settings.to or settings.run
        )
    assert settings.weights is not None
    check_evaluation(settings)
    model = build.network("model", build.without_weights(settings.model), seed=0)
    metadata = load_weights(model, settings.weights, settings.weights_key)
    data = build.dataset(settings)
    names = list((run.classes(data) if run is not None else data.classes) or map(str, range(data.num_classes)))
    expects = expected_normalization(settings.mean, settings.std, metadata)
    if expects is not None and (expects.mean, expects.std) != (tuple(data.mean), tuple(data.std)):
        # from the data's normalisation to the network's
        scale, shift = scale_and_shift(expects.mean, expects.std)
        model = Rescaled(model, 255 * scale * torch.tensor(data.std), 255 * scale * torch.tensor(data.mean) + shift)
    with join(settings.device) as dist:
        recorded = _Recorded(model.to(dist.device))
        batches = data.split(settings.split).loader(
            settings.batch_size, train=False, rank=dist.rank, world=dist.world, device=dist.device
        )
        metrics = evaluate(recorded, recorded.noting(batches.epoch(0)), dist, settings.precision)
        matrix = confusion_matrix(torch.cat(recorded.answers), torch.cat(recorded.labels), data.num_classes)
        matrix = dist.sum(matrix.double()).long().cpu()
        main = dist.main
    classes = class_accuracies(matrix, names)
    report = {
        "model": settings.model["name"], "weights": settings.weights, "sha256": sha256_of(settings.weights),
        "data": {"name": data.name, "split": settings.split, "sha256": data.fingerprint},
        **asdict(metrics), "macro": sum(entry["top1"] for entry in classes) / len(classes),
        "classes": classes, "confusion": matrix.tolist(),
    }  # fmt: skip
    if main:
        if settings.to is not None:
            write_whole(Path(settings.to) / REPORT, json.dumps(report).encode())
        _print(report, run, settings.to)
    return report


def check_evaluation(settings: EvaluateConfig) -> None:
    """Raises ValueError for wrong settings of an evaluation."""
    check_numbers(settings, "")
    check_ranges(settings, "")
    for group in ("model", "data"):
        build.check_component(group, getattr(settings, group))
    check_pair("", settings, settings.data["channels"])
    classes = [node.get("num_classes") for node in (settings.model, settings.data)]
    if None not in classes and classes[0] != classes[1]:
        raise ValueError(f"model.num_classes={classes[0]}, but data.num_classes={classes[1]}: they must be the same")


def _print(report: dict[str, Any], run: FinishedRun | None, folder: str | None) -> None:
    data, top5 = report["data"], f" top-5 {report['top5']:.2f} %," if len(report["confusion"]) > 5 else ""
    text = (
        f"{report['model']} ({report['weights']}) on {report['images']:,} {data['split']} images of {data['name']}: "
        f"top-1 {report['top1']:.2f} %,{top5} macro average {report['macro']:.2f} %, cross-entropy {report['loss']:.4f}"
    )
    if run is not None and run.test and data["split"] == "test" and run.summary["data"]["sha256"] == data["sha256"]:
        before = run.test["top1"]
        text += f"; the run itself measured top-1 {before:.2f} %" if abs(before - report["top1"]) > 0.005 else ""
    print(text)
    worst = report["classes"][:WORST]
    print("worst classes: " + ", ".join(f"{e['class']} {e['top1']:.2f} % (of {e['images']})" for e in worst))
    if folder is not None:
        print(f"every class and the confusion matrix: {Path(folder) / REPORT}")
