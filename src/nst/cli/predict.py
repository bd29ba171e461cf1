"""Classify images: `nst predict model=FOLDER images=FOLDER`."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from nst.cli.compose import use_working_directory
from nst.cli.errors import nearest_keys, readable_errors, required

USAGE = """Classify the images of a folder, or one image, with a trained student.

  nst predict model=FOLDER images=FOLDER [format=csv|json] [top=5] [batch_size=64] [device=cpu]

  model:  the folder of a finished run, or of an export (with model.json and student.safetensors)
  images: a folder of images of any size, or one image file; each is resized, cropped and normalised as in the run's evaluation
  format: csv (default): a line for each image and class; json: a line for each image
  top:    how many classes of each image, the most probable first; probabilities are a softmax of the logits, not calibrated
  device: cpu or cuda"""


@dataclass(frozen=True)
class Request:
    """The arguments of the command."""

    model: Path
    images: Path
    format: str
    top: int
    batch_size: int
    device: str


def main(arguments: Sequence[str]) -> None:
    """Print the classes of each image."""
    with readable_errors():
        request = parse(arguments)
        use_working_directory()
        show(request)


def parse(arguments: Sequence[str]) -> Request:
    """Read `key=value` arguments.

    Raises:
        ValueError: an unknown or missing key, or a value out of range.
    """
    keys, values = [field.name for field in fields(Request)], dict[str, str]()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            nearest = nearest_keys(key.lstrip("-"), keys)
            hint = f"did you mean {nearest[0]}=…?" if nearest else f"there are {', '.join(keys)}"
            raise ValueError(f"{argument!r}: no such key; {hint}")
        values[key] = value
    if missing := [key for key in ("model", "images") if not values.get(key)]:
        raise ValueError(required(missing))
    if values.get("format", "csv") not in ("csv", "json"):
        raise ValueError(f"format={values['format']}: one of csv, json is needed")
    if values.get("device", "cpu") not in ("cpu", "cuda"):
        raise ValueError(f"device={values['device']}: one of cpu, cuda is needed")
    model, images = (Path(values[key]).expanduser() for key in ("model", "images"))
    top, batch_size = _count("top", values.get("top", "5")), _count("batch_size", values.get("batch_size", "64"))
    return Request(model, images, values.get("format", "csv"), top, batch_size, values.get("device", "cpu"))


def _count(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 10_000):
        raise ValueError(f"{key}={text}: a whole number from 1 to 10000 is needed")
    return int(text)


def show(request: Request) -> None:
    """Classify and print.

    Raises:
        ValueError: no such model or images, or a file that is no image.
    """
    from nst.export.predict import classifier, image_files, predict

    files = image_files(request.images)
    student = classifier(request.model, request.device)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if request.format == "csv":
        writer.writerow(["image", "rank", "class", "probability"])
    for file, likely in predict(student, files, request.top, request.batch_size, request.device):
        if request.format == "csv":
            writer.writerows([file.name, i, name, f"{value:.6f}"] for i, (name, value) in enumerate(likely, start=1))
        else:
            classes = [{"class": name, "probability": value} for name, value in likely]
            print(json.dumps({"image": file.name, "classes": classes}))
