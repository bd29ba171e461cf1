"""A trained student at work: images prepared as in its evaluation, and their classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nst.data.batch import scale_and_shift
from nst.data.images import SUFFIXES, WHITE, decode, is_image
from nst.export.formats import FILES, Forward, load
from nst.finished import MODEL, finished_run, read_export
from nst.storage.folder import SUMMARY


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
