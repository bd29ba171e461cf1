"""A trained student on image files: the probability of each class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nst.data.decode import SUFFIXES, WHITE, decode, is_image, scale_and_shift
from nst.export.finished import REBUILD, finished_run, read_export
from nst.export.formats import FILES, Forward, load
from nst.storage.folder import SUMMARY

if TYPE_CHECKING:  # torchvision, which only a call needs
    from nst.data.augment import Interpolation


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of the evaluation."""

    channels: int
    size: int  # of the centre crop, which the network sees
    resize: int | None  # of the shorter side before it; None: the data's images had their size
    interpolation: "Interpolation"
    antialias: bool
    mean: tuple[float, ...]  # by channel, on the scale 0 … 1
    std: tuple[float, ...]
    background: tuple[int, ...] = WHITE  # R, G, B behind transparent images

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"images of {self.channels} channels; image files have 1 or 3")

    def __call__(self, encoded: bytes) -> Tensor:
        """The bytes of an image file of any size → `[channels, size, size]` float32. Raises ValueError for what is no image."""
        from nst.data.augment import centre_crop

        pixels = decode(encoded, self.channels, tuple(self.background))
        side = self.size if self.resize is None else self.resize
        cropped = centre_crop(pixels, self.size, side, self.interpolation, self.antialias)
        scale, shift = (value[:, None, None] for value in scale_and_shift(self.mean, self.std))
        return cropped.to(torch.float32).mul_(scale).add_(shift)

    def __str__(self) -> str:
        mean, std = (f"[{', '.join(f'{v:g}' for v in values)}]" for values in (self.mean, self.std))
        smooth = "with" if self.antialias else "without"
        before = f"images of {self.size} × {self.size} pixels"
        if self.resize is not None:
            before = (
                f"the shorter side resized to {self.resize} pixels ({self.interpolation}, {smooth} antialiasing), then the "
                f"centre crop of {self.size} × {self.size}"
            )
        return f"{before}; by channel `(pixel / 255 - mean) / std` with mean {mean} and std {std}"


def preprocessing(node: Mapping[str, Any]) -> Preprocessing:
    """Of a run's `data`, or of `input` in a `model.json`."""
    how = node.get("interpolation", "bilinear"), node.get("antialias", True)
    resize = None if node.get("pad") is not None else node.get("resize")  # what is padded stays as it is in evaluation
    background = tuple(node.get("background", WHITE))
    return Preprocessing(
        node["channels"], node["size"], resize, *how, tuple(node["mean"]), tuple(node["std"]), background
    )


@dataclass(frozen=True)
class Classifier:
    """A student, its preprocessing, and its class names (numbers if there are none)."""

    model: Forward
    prepare: Preprocessing
    classes: tuple[str, ...]


def classifier(folder: str | PathLike[str], device: str = "cpu") -> Classifier:
    """From the folder of a finished run, or of an export: its weights, else its ONNX file or its graph, which run on the CPU.

    Raises:
        ValueError: it is neither, damaged, or names code that `check_code` refuses.
    """
    folder, file = Path(folder), "safetensors"
    if (folder / REBUILD).is_file():
        about = read_export(folder)
        file = next(name for name in ("safetensors", "onnx", "torch", "onnx_int8") if name in about["files"])
        model, prepare, names = load(folder, file), preprocessing(about["input"]), about["classes"]
        if about["normalize"] and file != "safetensors":  # the file does it itself
            prepare = replace(prepare, mean=(0.0,) * prepare.channels, std=(1.0,) * prepare.channels)
        count = about["output"]["shape"][-1]
    elif (folder / SUMMARY).is_file():
        run = finished_run(folder)
        model, prepare, names = run.student(), preprocessing(run.settings.data), run.classes()
        count = run.settings.data["num_classes"]
    else:
        reason = "is neither an export nor a finished run" if folder.is_dir() else "no such folder"
        raise ValueError(f"model={folder}: {reason}; pass a run's folder, or its export/ (nst export run=… writes it)")
    if isinstance(model, nn.Module):
        model = model.to(device)
    elif device != "cpu":
        raise ValueError(f"device={device}: {FILES[file]} runs on the CPU; formats=[safetensors] runs anywhere")
    return Classifier(model, prepare, tuple(map(str, names or range(count))))


def image_files(folder: str | PathLike[str]) -> list[Path]:
    """The images in a folder, by name; of a file, that file. Raises ValueError if there are none."""
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"images={folder}: no such folder or file")
    images = sorted(file for file in folder.iterdir() if is_image(file.name) and file.is_file())
    if not images:
        inner = sorted(file.parent for file in folder.glob("[!.]*/*") if is_image(file.name))
        hint = f"; only the folder itself is read: images={inner[0]}" if inner else ""
        raise ValueError(f"images={folder}: no images in it (an image ends in {', '.join(SUFFIXES)}){hint}")
    return images


@torch.no_grad()
def predict(
    student: Classifier, files: Sequence[str | PathLike[str]], top: int, batch_size: int, device: str = "cpu"
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """For each file its `top` most probable classes, with softmax probabilities.

    Raises:
        ValueError: a file that is no image, by name.
    """
    for start in range(0, len(files), batch_size):
        batch, images = [Path(file) for file in files[start : start + batch_size]], []
        for file in batch:
            try:
                images.append(student.prepare(file.read_bytes()))
            except (ValueError, OSError) as error:
                raise ValueError(f"{file}: the image {error}") from None
        likely = student.model(torch.stack(images).to(device)).softmax(1).topk(min(top, len(student.classes)))
        for file, values, classes in zip(batch, likely.values.tolist(), likely.indices.tolist(), strict=True):
            yield file, [(student.classes[c], value) for c, value in zip(classes, values, strict=True)]
