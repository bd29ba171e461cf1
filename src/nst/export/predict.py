"""A trained student on image files: the probability of each class."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nst.data.decode import SUFFIXES
from nst.export.finished import REBUILD, finished_run, load_student
from nst.export.preprocess import Preprocessing, preprocessing
from nst.runs.folder import SUMMARY


@dataclass(frozen=True)
class Classifier:
    """A student, how images are prepared for it, and the names of its classes (numbers where they have none)."""

    model: nn.Module
    prepare: Preprocessing
    classes: tuple[str, ...]


def classifier(folder: Path, device: str = "cpu") -> Classifier:
    """From the folder of an export, or of a finished run.

    Raises:
        ValueError: it is neither, or damaged.
    """
    if (folder / REBUILD).is_file():
        model, about = load_student(folder), json.loads((folder / REBUILD).read_text())
        given, names, count = about["input"], about["classes"], about["output"]["shape"][-1]
    elif (folder / SUMMARY).is_file():
        run = finished_run(folder)
        model, given, count = run.student(), run.settings.data, run.settings.data["num_classes"]
        names = run.summary["data"].get("classes")
    else:
        what = "holds neither an export nor a finished run" if folder.is_dir() else "no such folder"
        raise ValueError(f"model={folder}: {what}; give a run's folder, or its export/ (nst export run=… writes it)")
    return Classifier(model.to(device), preprocessing(given), tuple(names or map(str, range(count))))


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, by name. Raises ValueError where there are none."""
    if not folder.is_dir():
        raise ValueError(f"images={folder}: no such folder")
    found = sorted(file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES) and file.is_file())
    if not found:
        raise ValueError(f"images={folder}: no images in it (an image ends in {', '.join(SUFFIXES)})")
    return found


@torch.no_grad()
def predict(
    found: Classifier, files: list[Path], top: int, batch_size: int, device: str = "cpu"
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """For each file its `top` most probable classes, with softmax probabilities.

    Raises:
        ValueError: a file that is no image, by name.
    """
    for start in range(0, len(files), batch_size):
        part = files[start : start + batch_size]
        images = torch.stack([_prepared(found.prepare, file) for file in part])
        likely = found.model(images.to(device)).softmax(1).topk(min(top, len(found.classes)))
        for file, values, classes in zip(part, likely.values.tolist(), likely.indices.tolist(), strict=True):
            yield file, [(found.classes[c], value) for c, value in zip(classes, values, strict=True)]


def _prepared(prepare: Preprocessing, file: Path) -> torch.Tensor:
    try:
        return prepare(file.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: the image {error}") from None
