"""Export of a run's student: write the files, load them again, compare, time, describe."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nst import build
from nst.config import ExportConfig
from nst.data.dataset import Dataset
from nst.export.card import model_card
from nst.export.finished import FinishedRun, finished_run
from nst.export.formats import (
    FILES,
    Forward,
    Normalized,
    capture,
    formats_to_write,
    load,
    write_onnx,
    write_safetensors,
    write_torch,
)
from nst.export.measure import compare, cost, latencies, logits_of, sample_images
from nst.export.preprocess import preprocessing
from nst.export.table import print_table
from nst.files import sha256_of, write_whole
from nst.models.weights import read_weights
from nst.runs.provenance import provenance

BATCHES = (1, 32)  # sizes that are timed
TOLERANCE = 1e-3  # of the largest logit: more than rounding


def export(cfg: DictConfig) -> dict[str, Any]:
    """Export as configured in `configs/export.yaml`; print and return the measurements (also in `export.json`).

    Raises:
        ValueError: the run is not finished, a format can't be written, or a file disagrees with the network in memory.
    """
    settings = OmegaConf.to_object(cfg)
    assert isinstance(settings, ExportConfig)
    _check(settings)
    formats = formats_to_write(settings.formats)
    run = finished_run(settings.run, settings.root, settings.allow)
    data = build.dataset(run.settings)
    run.check_classes(data)
    folder = Path(settings.to) if settings.to else run.folder / "export"
    student = run.student()
    write(folder, run, student, data, formats, settings.normalize)
    report = measure(folder, run, student, data, formats, settings)
    write_whole(folder / "export.json", json.dumps(report, indent=1).encode())
    write_whole(folder / "MODEL_CARD.md", model_card(run, report, data, settings.licence).encode())
    print_table(run, report, folder)
    return report


def _check(settings: ExportConfig) -> None:
    for key in ("images", "repeats"):
        if getattr(settings, key) < 1:
            raise ValueError(f"{key}={getattr(settings, key)}: at least 1 is needed")
    if settings.device not in ("cpu", "cuda"):
        raise ValueError(f"device={settings.device}: cpu or cuda is needed")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device")


def write(
    folder: Path, run: FinishedRun, student: nn.Module, data: Dataset, formats: list[str], normalize: bool
) -> None:
    """Write the files. `normalize`: the captured ones take pixels in 0…1."""
    if "safetensors" in formats:
        metadata = read_weights(run.folder / FILES["safetensors"]).metadata
        write_safetensors(folder, run, student, _interface(run, data), metadata)
    if {"torch", "onnx"} & {*formats}:
        model = Normalized(student, data.mean, data.std).eval() if normalize else student
        program = capture(model, run.image_shape)
        if "torch" in formats:
            write_torch(folder, program)
        if "onnx" in formats:
            write_onnx(folder, program, "pixels" if normalize else "images")


def _interface(run: FinishedRun, data: Dataset) -> dict[str, Any]:
    """The input and output of the network, for users of the weights."""
    return {
        "input": {
            "shape": ["batch", *run.image_shape],
            "dtype": "float32",
            "values": "(pixel / 255 - mean) / std, by channel",
            **asdict(preprocessing(run.settings.data)),
        },
        "output": {"shape": ["batch", data.num_classes], "values": "logits"},
        "classes": run.classes(data),
    }


def measure(
    folder: Path, run: FinishedRun, student: nn.Module, data: Dataset, formats: list[str], settings: ExportConfig
) -> dict[str, Any]:
    """Load every file again, compare it with the student in memory on test images, and time them and the teacher.

    Raises:
        ValueError: a file's logits differ from those of the student in memory.
    """
    batches = list(sample_images(data, settings.images))
    images, labels = [b[0] for b in batches], torch.cat([b[1] for b in batches])
    expected = logits_of(student, images)
    loaded = {name: load(folder, name, settings.allow) for name in formats}
    files = {}
    for name, forward in loaded.items():
        inputs = [_pixels(x, data) for x in images] if settings.normalize and name != "safetensors" else images
        agreement = compare(expected, logits_of(forward, inputs), labels)
        path = folder / FILES[name]
        if not agreement.max_difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
            raise ValueError(
                f"{path} disagrees with the network in memory: its logits differ by up to "
                f"{agreement.max_difference:.3g} on {len(labels)} test images; do not use it"
            )
        files[name] = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} | asdict(agreement)
    teacher = run.teacher()
    return {
        "images": len(labels),
        "normalize": settings.normalize,
        "files": files,
        "student": cost(student, run.image_shape) | {"top1": compare(expected, expected, labels).top1},
        "teacher": None if teacher is None else cost(teacher, run.image_shape),
        "latency": _latency(teacher, student, loaded, run.image_shape, settings),
        "changed_sources": [Path(file).name for file in run.changed_sources(student)],
        **provenance(torch.device(settings.device), 1),
    }


def _pixels(images: Tensor, data: Dataset) -> Tensor:
    """Normalised images back to pixels in 0…1."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
    return images * std + mean


def _latency(
    teacher: nn.Module | None,
    student: nn.Module,
    loaded: dict[str, Forward],
    image_shape: tuple[int, int, int],
    settings: ExportConfig,
) -> dict[str, dict[str, Any]]:
    """Batch size → network or file → median milliseconds and calls. The files are timed on the CPU only."""
    timed: dict[str, Forward] = {} if teacher is None else {"teacher": teacher.to(settings.device)}
    timed["student"] = student.to(settings.device)
    if settings.device == "cpu":
        timed |= {name: forward for name, forward in loaded.items() if name != "safetensors"}
    result: dict[str, dict[str, Any]] = {}
    for size in BATCHES:
        images = torch.randn(size, *image_shape, device=settings.device)
        result[str(size)] = {name: asdict(v) for name, v in latencies(timed, images, settings.repeats).items()}
    return result
