"""Classify images: `nst predict model=FOLDER images=FOLDER`."""

import csv
import json
import sys
from collections.abc import Sequence
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

DEFAULTS = {"model": "", "images": "", "format": "csv", "top": "5", "batch_size": "64", "device": "cpu"}
CHOICES = {"format": ("csv", "json"), "device": ("cpu", "cuda")}


def main(arguments: Sequence[str]) -> None:
    """Print the classes of each image."""
    with readable_errors(status=2):
        settings = parse(arguments)
        use_working_directory()
    with readable_errors():
        show(settings)


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """The value of every key.

    Raises:
        ValueError: an unknown or missing key, or a value out of range.
    """
    settings = dict(DEFAULTS)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in settings:
            nearest = nearest_keys(key.lstrip("-"), list(settings))
            hint = f"did you mean {nearest[0]}=…?" if nearest else f"there are {', '.join(settings)}"
            raise ValueError(f"{argument!r}: no such key; {hint}")
        settings[key] = value
    if missing := [key for key in ("model", "images") if not settings[key]]:
        raise ValueError(required(missing))
    for key, choices in CHOICES.items():
        if settings[key] not in choices:
            raise ValueError(f"{key}={settings[key]}: one of {', '.join(choices)} is needed")
    for key in ("top", "batch_size"):
        if not (settings[key].isascii() and settings[key].isdecimal() and 1 <= int(settings[key]) <= 10_000):
            raise ValueError(f"{key}={settings[key]}: a whole number from 1 to 10000 is needed")
    return settings


def show(settings: dict[str, str]) -> None:
    """Classify and print.

    Raises:
        ValueError: no such model or images, or a file that is no image.
    """
    from nst.export.predict import classifier, image_files, predict

    files = image_files(Path(settings["images"]).expanduser())
    student = classifier(Path(settings["model"]).expanduser(), settings["device"])
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if settings["format"] == "csv":
        writer.writerow(["image", "rank", "class", "probability"])
    top, batch_size = int(settings["top"]), int(settings["batch_size"])
    for file, likely in predict(student, files, top, batch_size, settings["device"]):
        if settings["format"] == "csv":
            writer.writerows([file.name, i, name, f"{value:.6f}"] for i, (name, value) in enumerate(likely, start=1))
        else:
            classes = [{"class": name, "probability": value} for name, value in likely]
            print(json.dumps({"image": file.name, "classes": classes}))
