"""A trained student on image files: the probability of each class."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nst.data.decode import SUFFIXES
from nst.export.finished import REBUILD, finished_run, load_student
from nst.export.preprocess import Preprocessing, preprocessing
from nst.runs.folder import SUMMARY, read_json


@dataclass(frozen=True)
class Classifier:
    """A student, its preprocessing, and its class names (numbers if there are none)."""

    model: nn.Module
    prepare: Preprocessing
    classes: tuple[str, ...]


def classifier(folder: Path, device: str = "cpu", allow: Collection[str] = ()) -> Classifier:
    """From the folder of an export, or of a finished run; `allow` as in `load_student`.

    Raises:
        ValueError: it is neither, damaged, or names code that is not allowed.
    """
    if (folder / REBUILD).is_file():
        model, about = load_student(folder, allow), read_json(folder / REBUILD, "export the run again")
        try:
            prepare, names = preprocessing(about["input"]), about["classes"]
            count = int(about["output"]["shape"][-1])
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{folder / REBUILD}: {error} is missing; export the run again") from error
    elif (folder / SUMMARY).is_file():
        run = finished_run(folder, allow=allow)
        model, prepare, count = run.student(), preprocessing(run.settings.data), run.settings.data["num_classes"]
        names = run.about_data.get("classes")
    else:
        reason = "is neither an export nor a finished run" if folder.is_dir() else "no such folder"
        raise ValueError(f"model={folder}: {reason}; pass a run's folder, or its export/ (nst export run=… writes it)")
    return Classifier(model.to(device), prepare, tuple(map(str, names or range(count))))


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, by name; of a file, that file. Raises ValueError if there are none."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"images={folder}: no such folder or file")
    images = sorted(file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES) and file.is_file())
    if not images:
        inner = sorted(file.parent for file in folder.glob("[!.]*/*") if file.name.lower().endswith(SUFFIXES))
        hint = f"; only the folder itself is read: images={inner[0]}" if inner else ""
        raise ValueError(f"images={folder}: no images in it (an image ends in {', '.join(SUFFIXES)}){hint}")
    return images


@torch.no_grad()
def predict(
    student: Classifier, files: list[Path], top: int, batch_size: int, device: str = "cpu"
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """For each file its `top` most probable classes, with softmax probabilities.

    Raises:
        ValueError: a file that is no image, by name.
    """
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        images = torch.stack([_prepared(student.prepare, file) for file in batch])
        likely = student.model(images.to(device)).softmax(1).topk(min(top, len(student.classes)))
        for file, values, classes in zip(batch, likely.values.tolist(), likely.indices.tolist(), strict=True):
            yield file, [(student.classes[c], value) for c, value in zip(classes, values, strict=True)]


def _prepared(prepare: Preprocessing, file: Path) -> torch.Tensor:
    try:
        return prepare(file.read_bytes())
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: the image {error}") from None
