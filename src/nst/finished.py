"""Finished runs: networks rebuilt from stored settings, those of exports too, and their accuracy on a data set."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from nst import build
from nst.config import EvaluateConfig, RunConfig, TrainerConfig, check_pair, check_ranges, check_values
from nst.data.dataset import Dataset
from nst.dist import join
from nst.evaluate import evaluate, knn_accuracy, labelled_features, linear_probe, worst_classes
from nst.files import sha256_of, write_whole
from nst.models.external import resize_inputs
from nst.models.weights import load_weights, recorded_size
from nst.storage.folder import BEST, STUDENT, SUMMARY, read_json
from nst.teacher.network import Normalization, load_teacher

log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
MODEL = "model.json"  # in an export: how to rebuild the network, and what was measured
CALLABLE = ("nst.models", "nst.data", "torch.nn", "torchvision", "timm")  # what stored settings may call


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, with the weights of its last or of its best epoch."""

    folder: Path
    settings: RunConfig
    summary: dict[str, Any]
    weights: Path  # the student's file

    @property
    def test(self) -> dict[str, Any]:
        """Its accuracies on the test images."""
        return self.summary["test" if self.weights.name == STUDENT else "test_best"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        data = self.settings.data
        return data["channels"], data["size"], data["size"]

    def classes(self, data: Dataset | None = None) -> list[str] | None:
        """The names of the classes in the training, else those of `data`. Raises ValueError where one has another number in `data`."""
        trained, here = self.summary["data"].get("classes"), [] if data is None else list(data.classes or ())
        for label, (before, now) in enumerate(zip(trained or (), here, strict=False)):
            if before != now and (before in here or now in trained):
                raise ValueError(f"{self.folder}: its class {label} is {before!r}, here {now!r}; give its order")
        if trained and here and trained != here:
            log.warning("classes are spelled otherwise than in the training of %s: %s", self.folder, ", ".join(here))
        return trained or here or None

    def student(self) -> nn.Module:
        """The trained student in `eval()` mode on the CPU: no hooks, no projections, no teacher."""
        model = build.network("model", build.without_weights(self.settings.model), self.settings.seed)
        load_weights(model, self.weights)
        return model.eval()


def finished_run(folder: str | PathLike[str], data_root: str | None = None, weights: str = "last") -> FinishedRun:
    """Read a run's folder. Its losses, optimizer and trackers are read as plain values: nothing calls them.

    Args:
        folder: `outputs/<data>/<teacher>-<model>/<losses>/seed<k>-<hash>`.
        data_root: folder of the data, if it has moved.
        weights: "last" or "best": of the last epoch, or of the best one by the validation images, else by the test images.

    Raises:
        ValueError: there is no finished run, its summary or its student is damaged, or it names code that `check_code` refuses.
    """
    folder = Path(folder)
    file, student = folder / SUMMARY, folder / STUDENT
    if not file.is_file() or not student.is_file():
        reason = f"no finished run, {SUMMARY} or {STUDENT} is missing" if folder.is_dir() else "no such folder"
        raise ValueError(f"run={folder}: {reason}")
    summary = read_json(file)
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), summary["config"]))
        assert isinstance(settings, RunConfig)
        check_values(settings)
        for node in (settings.model, settings.teacher.model, settings.data):
            check_code(node, file)
        digest = summary["student"]["sha256"]
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: its settings are not those of a run of this version: {error}") from error
    _check_sha256(student, digest, file)
    if data_root is not None:
        settings.data = {**settings.data, "path" if "path" in settings.data else "root": data_root}
    chosen = {"last": student, "best": folder / BEST}.get(weights)
    if chosen is None or not chosen.is_file():
        both = "last, best" if (folder / BEST).is_file() else "last"
        raise ValueError(f"weights={weights}: {folder} has weights={both}")
    return FinishedRun(folder, settings, summary, chosen)


def evaluate_weights(settings: EvaluateConfig) -> dict[str, Any]:
    """Evaluate and print accuracy, macro average (the mean of the classes' accuracies) and the worst classes.

    A network without classifier has the accuracy of nearest neighbours and of a linear probe that know the training images.

    Returns:
        What is written to `evaluation.json` in `settings.to`, by default the folder of the run: all of it, and the confusion
        matrix (rows: labels, columns: answers).

    Raises:
        ValueError: a file or setting at fault.
    """
    run: FinishedRun | None = None
    if settings.run is not None:
        run = finished_run(settings.run, settings.root, settings.weights or "last")
        found = {"model": run.settings.model, "weights": str(run.weights), "to": settings.to or settings.run}
        settings = replace(settings, **found, data=settings.data or run.settings.data)
    assert settings.weights is not None
    check_ranges(settings, "")
    check_pair("", settings, settings.data["channels"])
    features_only = settings.model.get("features_only")
    classes, others = (node.get("num_classes") for node in (settings.model, settings.data))
    if None not in (classes, others) and classes != others and not features_only:
        raise ValueError(f"model.num_classes={classes}, but data.num_classes={others}: they must be the same")
    model = build.network("model", build.without_weights(settings.model), seed=0)
    resize_inputs(model, recorded_size(settings.weights))
    data = build.dataset(settings)
    if features_only and not data.labeled:
        raise ValueError(f"data={data.name}: its images have no labels, by which features are judged")
    names, images = data.classes if run is None else run.classes(data), Normalization(tuple(data.mean), tuple(data.std))
    with join(settings.device) as dist:
        model.to(dist.device)
        about = load_teacher(model, images, settings.weights, settings.weights_key, settings.mean, settings.std)
        on = {"name": data.name, "split": settings.split, "sha256": data.fingerprint}
        report: dict[str, Any] = {"model": settings.model["name"], "weights": settings.weights}
        report |= {"sha256": about["sha256"], "data": on}
        if features_only:
            trainer, parts = (
                TrainerConfig(eval_batch_size=settings.batch_size),
                (data.train, data.split(settings.split)),
            )
            known = labelled_features(
                model.eval(), parts, dist, trainer, precision=settings.precision, title="features"
            )
            report |= {"images": len(known[3]), "known_images": len(known[1])}
            report |= {"knn": knn_accuracy(*known), "linear_probe": linear_probe(*known)}
            said = f"k-NN {report['knn']:.2f} %, linear probe {report['linear_probe']:.2f} %, both by the "
            said += f"features of {report['known_images']:,} training images"
        else:
            matrix = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64, device=dist.device)
            ranks: dict[str, Any] = {"rank": dist.rank, "world": dist.world, "device": dist.device}
            loader = data.split(settings.split).loader(settings.batch_size, train=False, **ranks)
            metrics = asdict(evaluate(model, loader.epoch(0), dist, settings.precision, matrix))
            worst = worst_classes(metrics, names)
            report |= {key: metrics[key] for key in ("loss", "top1", "top5", "images")}
            report |= {"macro": sum(entry["top1"] for entry in worst) / len(worst), "classes": worst}
            report |= {"confusion": dist.sum(matrix).tolist(), "names": [*map(str, names or range(data.num_classes))]}
            top5 = f" top-5 {report['top5']:.2f} %," if data.num_classes > 5 else ""
            said = f"top-1 {report['top1']:.2f} %,{top5} macro average {report['macro']:.2f} %, "
            said += f"cross-entropy {report['loss']:.4f}"
            same = run is not None and settings.split == "test" and run.summary["data"]["sha256"] == data.fingerprint
            if run is not None and same and run.test and abs(run.test["top1"] - report["top1"]) > 0.005:
                said += f"; the run itself measured top-1 {run.test['top1']:.2f} %"
            said += "\nworst classes: "
            said += ", ".join(f"{entry['class']} {entry['top1']:.2f} % (of {entry['images']})" for entry in worst[:5])
    if dist.main:
        where = f"{report['images']:,} {settings.split} images of {data.name}"
        print(f"{report['model']} ({report['weights']}) on {where}: {said}")
        if settings.to is not None:
            write_whole(Path(settings.to) / EVALUATION, json.dumps(report).encode())
            (Path(settings.to) / "evaluation.html").unlink(missing_ok=True)  # of another evaluation
        if settings.to is not None and not features_only:
            from nst.report.page import evaluation_page  # brings matplotlib

            write_whole(Path(settings.to) / "evaluation.html", evaluation_page(report).encode())
            print(f"every class and the confusion matrix: {Path(settings.to) / EVALUATION}, evaluation.html")
    return report


def check_code(node: Any, file: Path) -> None:
    """Check what plain settings stored in `file` would call, at any depth; each `_target_` is looked up, none is called.

    Raises:
        ValueError: a target that is not in `CALLABLE` nor of a module in the working folder, or an interpolation.
    """
    if isinstance(node, str) and "${" in node:
        raise ValueError(f"{file} has {node[:80]!r}, an interpolation; stored settings are plain values")
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        check_code(inner, file)
    if not isinstance(node, Mapping) or "_target_" not in node:
        return
    target, here = str(node["_target_"]), Path.cwd()

    def known(name: str) -> bool:
        top = name.partition(".")[0]
        own = top.isidentifier() and ((here / f"{top}.py").is_file() or (here / top).is_dir())
        return own or any(f"{name}.".startswith(f"{home}.") for home in CALLABLE)

    try:  # looked up only below a known name; its own home counts, too, since a module of ours imports others
        found = get_object(target) if known(target) else None
    except (ImportError, ValueError) as error:
        raise ValueError(f"{file} names {target[:80]!r}, which cannot be imported: {error}") from error
    if not known(str(getattr(getattr(found, "func", found), "__module__", None))):  # of a partial, its function
        raise ValueError(f"{file} names {target[:80]!r}, not of nst, torch.nn, torchvision, timm or a module in {here}")


def load_student(folder: str | PathLike[str]) -> nn.Module:
    """Rebuild a network from `model.json` and `student.safetensors`, in `eval()` mode on the CPU.

    Raises:
        ValueError: a file is missing, damaged or of another network, or `model.json` names code that `check_code` refuses.
    """
    about, file = read_export(folder), Path(folder) / MODEL
    node = {**about["arguments"], "_target_": about["target"]}
    check_code(node, file)
    if about["weights"] is None:
        raise ValueError(f"{file}: the weights were not exported; formats=[safetensors] writes them")
    weights = file.with_name(Path(about["weights"]).name)
    _check_sha256(weights, about["sha256"], file)
    model = build.network(str(file), node, seed=0)
    load_weights(model, weights)
    return model.eval()


def read_export(folder: str | PathLike[str]) -> dict[str, Any]:
    """`model.json` of an export. Raises ValueError if it is missing or not one of this version."""
    file = Path(folder) / MODEL
    if not file.is_file():
        raise ValueError(f"{file} does not exist; nst export writes it")
    about = read_json(file, "export the run again")
    if missing := {"target", "arguments", "weights", "input", "output", "files"} - about.keys():
        raise ValueError(f"{file} is damaged: it has no {', '.join(sorted(missing))}; export the run again")
    return about


def _check_sha256(weights: Path, expected: str, named_in: Path) -> None:
    """Raises ValueError if a weights file is not the one that `named_in` describes."""
    if weights.is_file() and (found := sha256_of(weights)) != expected:
        raise ValueError(f"{weights} has SHA-256 {found}, {named_in} says {expected}: it was replaced or is damaged")
