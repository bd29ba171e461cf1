"""Export of a run's student: write the files, load them again, compare, time, describe."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from nst import build
from nst.config import ExportConfig, check_ranges
from nst.data.dataset import Dataset
from nst.data.decode import scale_and_shift
from nst.evaluate import Metrics
from nst.export.card import cost_rows, footnote, model_card
from nst.export.finished import REBUILD, FinishedRun, finished_run
from nst.export.formats import (
    FILES,
    Forward,
    Rescaled,
    capture,
    formats_to_write,
    int8_bytes,
    load,
    onnx_bytes,
    torch_bytes,
)
from nst.export.measure import class_accuracies, compare, confusion_matrix, cost, latencies, logits_of, sample_images
from nst.export.predict import preprocessing
from nst.files import sha256_of, write_whole
from nst.models.weights import read_weights, save_weights
from nst.storage.folder import STUDENT
from nst.storage.provenance import provenance

BATCHES = (1, 32)  # sizes that are timed
TOLERANCE = 1e-3  # of the largest logit: more than rounding in 32 bits


def export(settings: ExportConfig) -> dict[str, Any]:
    """Write the files, `model.json`, `export.json` and the model card; print and return the measurements of `export.json`.

    Files of an earlier export in the same folder are removed.

    Raises:
        ValueError: a setting out of range, the run is not finished, a format can't be written, or a file of 32 bits disagrees with
            the network in memory.
    """
    check_ranges(settings, "")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device")
    formats = formats_to_write(settings.formats)
    run = finished_run(settings.run, settings.root, settings.weights)
    data = build.dataset(run.settings)
    run.classes(data)  # which checks them
    folder = Path(settings.to) if settings.to else run.folder / "export"
    for name in (*FILES.values(), REBUILD, "export.json", "MODEL_CARD.md"):
        (folder / name).unlink(missing_ok=True)
    _write(folder, run, data, formats, settings)
    report = _measure(folder, run, data, formats, settings)
    write_whole(folder / "export.json", json.dumps(report, indent=1).encode())
    write_whole(folder / "MODEL_CARD.md", model_card(run, report, data, settings.licence).encode())
    _print(run, report, folder)
    return report


def _write(folder: Path, run: FinishedRun, data: Dataset, formats: list[str], settings: ExportConfig) -> None:
    student = run.student()
    if "safetensors" in formats:
        save_weights(folder / STUDENT, student, read_weights(run.weights).metadata)
    if {*formats} - {"safetensors"}:
        # The captured files take images as the loader gives them, or with `normalize` pixels in 0…1.
        scale, shift = scale_and_shift(data.mean, data.std)
        model = Rescaled(student, 255 * scale, shift).eval() if settings.normalize else student
        program = capture(model, run.image_shape)
        if "torch" in formats:
            write_whole(folder / FILES["torch"], torch_bytes(program))
        if {"onnx", "onnx_int8"} & {*formats}:
            content = onnx_bytes(program, "pixels" if settings.normalize else "images")
            if "onnx" in formats:
                write_whole(folder / FILES["onnx"], content)
            if "onnx_int8" in formats:
                images = [x for x, _ in sample_images(data.train, settings.calibration)]
                images = [_pixels(x, data) for x in images] if settings.normalize else images
                write_whole(folder / FILES["onnx_int8"], int8_bytes(content, images, settings.int8_exclude))
    node = build.without_weights(run.settings.model)
    recipe = {
        "target": node["_target_"],
        "arguments": {key: value for key, value in node.items() if key not in ("name", "_target_")},
        "files": {name: FILES[name] for name in formats},
        "weights": STUDENT if "safetensors" in formats else None,
        "sha256": sha256_of(folder / STUDENT) if "safetensors" in formats else None,
        "normalize": settings.normalize,  # True: files other than the weights take pixels / 255
        "input": {
            "shape": ["batch", *run.image_shape],
            "dtype": "float32",
            "values": "(pixel / 255 - mean) / std, by channel",
            **asdict(preprocessing(run.settings.data)),
        },
        "output": {"shape": ["batch", data.num_classes], "values": "logits"},
        "classes": run.classes(data),
    }
    write_whole(folder / REBUILD, json.dumps(recipe, indent=1).encode())


def _measure(
    folder: Path, run: FinishedRun, data: Dataset, formats: list[str], settings: ExportConfig
) -> dict[str, Any]:
    """Load every file again, compare it with the student in memory on test images, and time them and the teacher."""
    batches = list(sample_images(data.test, settings.images))
    images, labels = [b[0] for b in batches], torch.cat([b[1] for b in batches])
    student, teacher = run.student(), run.teacher()
    names = run.classes(data) or [str(k) for k in range(data.num_classes)]
    expected = logits_of(student, images)
    loaded = {name: load(folder, name) for name in formats}
    files = {}
    for name, forward in loaded.items():
        inputs = [_pixels(x, data) for x in images] if settings.normalize and name != "safetensors" else images
        agreement = compare(expected, logits_of(forward, inputs), labels)
        path = folder / FILES[name]
        exact = agreement.max_difference <= TOLERANCE * max(1.0, expected.abs().max().item())
        if not exact and name != "onnx_int8":
            raise ValueError(
                f"{path} disagrees with the network in memory: its logits differ by up to "
                f"{agreement.max_difference:.3g} on {len(labels)} test images; do not use it"
            )
        files[name] = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} | asdict(agreement)
    report = {
        "images": len(labels),
        "normalize": settings.normalize,
        "calibration": min(settings.calibration, len(data.train)) if "onnx_int8" in formats else None,
        "int8_exclude": settings.int8_exclude,
        "files": files,
        "student": cost(student, run.image_shape) | {"top1": compare(expected, expected, labels).top1},
        "test": run.test or asdict(evaluated(expected, labels)),
        "teacher": None if teacher is None else cost(teacher, run.image_shape),
        "classes": class_accuracies(confusion_matrix(expected.argmax(1), labels, data.num_classes), names),
    }
    timed: dict[str, Forward] = {} if teacher is None else {"teacher": teacher.to(settings.device)}
    timed["student"] = student.to(settings.device)
    if settings.device == "cpu":  # where the files run
        timed |= {name: forward for name, forward in loaded.items() if name != "safetensors"}
    latency = {}
    for size in BATCHES:
        example = torch.randn(size, *run.image_shape, device=settings.device)
        latency[str(size)] = {
            name: asdict(value) for name, value in latencies(timed, example, settings.repeats).items()
        }
    return {**report, "latency": latency, **provenance(torch.device(settings.device), 1)}


def evaluated(logits: Tensor, labels: Tensor) -> Metrics:
    """Accuracies and cross-entropy of logits `[n, classes]`."""
    found = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    top1, top5 = (100 * found[:, :k].any(1).sum().item() / len(labels) for k in (1, 5))
    return Metrics(F.cross_entropy(logits, labels).item(), top1, top5, len(labels))


def _pixels(images: Tensor, data: Dataset) -> Tensor:
    """Normalised images back to pixels in 0…1."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    return images * std + mean


def _print(run: FinishedRun, report: Mapping[str, Any], folder: Path) -> None:
    header, *rows = cost_rows(run, report)
    table = Table(title=f"{run.settings.model['name']}, verified on {report['images']:,} test images")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for text in footnote(run, report):
        console.print(text, highlight=False, markup=False)
    if not any(name.startswith("onnx") for name in report["files"]):
        console.print("no ONNX file: formats=[onnx] writes one (pip install 'nst[onnx]')", markup=False)
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
