"""A trained student at work: the classes of image files, and its accuracy on a data set, overall and for every class."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nst import build
from nst.config import EvaluateConfig, TrainerConfig, check_pair, check_ranges
from nst.data.batch import scale_and_shift
from nst.data.images import SUFFIXES, WHITE, decode, is_image
from nst.dist import join
from nst.evaluate import evaluate, knn_accuracy, labelled_features, linear_probe
from nst.export.finished import MODEL, FinishedRun, finished_run, read_export
from nst.export.formats import FILES, Forward, load
from nst.files import write_whole
from nst.models.external import resize_inputs
from nst.models.weights import recorded_size
from nst.storage.folder import SUMMARY
from nst.teacher.network import Normalization, load_teacher

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Preprocessing:
    """Of the evaluation."""

    channels: int
    size: int  # of the centre crop, which the network sees
    mean: Sequence[float]  # by channel, on the scale 0 … 1
    std: Sequence[float]
    resize: int | None = None  # of the shorter side before it; None: the data's images had their size
    interpolation: str = "bilinear"
    antialias: bool = True
    background: Sequence[int] = WHITE  # R, G, B behind transparent images

    def __call__(self, encoded: bytes) -> Tensor:
        """The bytes of an image file of any size → `[channels, size, size]` float32. Raises ValueError for what is no image."""
        from nst.data.augment import centre_crop

        pixels, side = decode(encoded, self.channels, tuple(self.background)), self.resize or self.size
        cropped = centre_crop(pixels, self.size, side, self.interpolation, self.antialias)
        scale, shift = (value[:, None, None] for value in scale_and_shift(self.mean, self.std))
        return cropped.to(torch.float32).mul_(scale).add_(shift)

    def __str__(self) -> str:
        mean, std = (f"[{', '.join(f'{v:g}' for v in values)}]" for values in (self.mean, self.std))
        before = f"images of {self.size} × {self.size} pixels"
        if self.resize is not None:
            how = f"{self.interpolation}, {'with' if self.antialias else 'without'} antialiasing"
            before = f"the shorter side resized to {self.resize} pixels ({how}), then the centre crop of {self.size} × {self.size}"
        return f"{before}; by channel `(pixel / 255 - mean) / std` with mean {mean} and std {std}"


def preprocessing(node: Mapping[str, Any]) -> Preprocessing:
    """Of a run's `data`, or of `input` in a `model.json`."""
    known = {field.name: node[field.name] for field in fields(Preprocessing) if field.name in node}
    if node.get("pad") is not None:
        known["resize"] = None  # what is padded stays as it is in evaluation
    return Preprocessing(**known)


Classifier = tuple[Forward, Preprocessing, tuple[str, ...]]  # a student, its preprocessing, its class names or numbers


def classifier(folder: str | PathLike[str], device: str = "cpu") -> Classifier:
    """From the folder of a finished run, or of an export: its weights, else its ONNX file or its graph, which run on the CPU.

    Raises:
        ValueError: it is neither, damaged, gives no classes, or names code that `check_code` refuses.
    """
    folder, file = Path(folder), "safetensors"
    if (folder / MODEL).is_file():
        about = read_export(folder)
        file = next(name for name in ("safetensors", "onnx", "torch", "onnx_int8") if name in about["files"])
        model, prepare, names = load(folder, file), preprocessing(about["input"]), about["classes"]
        if about["normalize"] and file != "safetensors":  # the file does it itself
            prepare = replace(prepare, mean=(0.0,) * prepare.channels, std=(1.0,) * prepare.channels)
        features_only, count = about["output"]["values"] != "logits", about["output"]["shape"][-1]
    elif (folder / SUMMARY).is_file():
        run = finished_run(folder)
        model, prepare, names = run.student(), preprocessing(run.settings.data), run.classes()
        features_only, count = run.settings.model.get("features_only"), run.settings.data["num_classes"]
    else:
        reason = "is neither an export nor a finished run" if folder.is_dir() else "no such folder"
        raise ValueError(f"model={folder}: {reason}; pass a run's folder, or its export/")
    if features_only:
        raise ValueError(f"model={folder}: its student gives features, not classes; fine-tune it first")
    if isinstance(model, nn.Module):
        model = model.to(device)
    elif device != "cpu":
        raise ValueError(f"device={device}: {FILES[file]} runs on the CPU; formats=[safetensors] runs anywhere")
    return model, prepare, tuple(map(str, names or range(count)))


def image_files(folder: str | PathLike[str]) -> list[Path]:
    """The images in a folder, by name; of a file, that file. Raises ValueError if there are none."""
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    images = sorted(file for file in folder.glob("*") if is_image(file.name) and file.is_file())
    if not images:
        inner = sorted(file.parent for file in folder.glob("[!.]*/*") if is_image(file.name))
        reason = f"no images ({', '.join(SUFFIXES)}) in it" if folder.is_dir() else "no such folder or file"
        hint = f"; only the folder itself is read: images={inner[0]}" if inner else ""
        raise ValueError(f"images={folder}: {reason}{hint}")
    return images


@torch.no_grad()
def predict(
    student: Classifier, files: Sequence[str | PathLike[str]], top: int, batch_size: int, device: str = "cpu"
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """For each file its `top` most probable classes, with softmax probabilities. Raises ValueError for a file that is no image."""
    model, prepare, names = student
    for start in range(0, len(files), batch_size):
        batch, images = [Path(file) for file in files[start : start + batch_size]], []
        for file in batch:
            try:
                images.append(prepare(file.read_bytes()))
            except (ValueError, OSError) as error:
                raise ValueError(f"{file}: the image {error}") from None
        likely = model(torch.stack(images).to(device)).softmax(1).topk(min(top, len(names)))
        for file, values, classes in zip(batch, likely.values.tolist(), likely.indices.tolist(), strict=True):
            yield file, [(names[c], value) for c, value in zip(classes, values, strict=True)]


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
            how = {"precision": settings.precision, "title": "features"}
            known = labelled_features(model.eval(), parts, dist, trainer, **how)
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


def worst_classes(metrics: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Name, number of images and accuracy in percent of the classes that have images, the worst first; `metrics` of an evaluation."""
    images, top1 = metrics["class_images"], metrics["class_top1"]
    rows = zip(names or range(len(images)), images, top1, strict=True)
    found = [{"class": str(name), "images": n, "top1": accuracy} for name, n, accuracy in rows if n]
    return sorted(found, key=lambda entry: entry["top1"])
