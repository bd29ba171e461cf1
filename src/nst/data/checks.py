"""Checks of the configuration of the data, and of the labels."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def check_settings(
    num_classes: int,
    channels: int,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    validation: float,
    limit: int | None,
) -> None:
    """Raises ValueError with the key for settings that no data set can have."""
    whole = {"num_classes": num_classes, "channels": channels, "size": size}
    for key, value in (whole if limit is None else whole | {"limit": limit}).items():
        check_whole(key, value, 1)
    if channels not in (1, 3):
        raise ValueError(f"data.channels: {channels}; images have 1 channel (grey) or 3 (RGB)")
    for key, values in (("mean", mean), ("std", std)):
        check_numbers(key, values, channels, f"data.channels={channels}")
    if min(std) < 1e-6:
        raise ValueError(f"data.std: {list(std)}; each value must be above 0 (at least 1e-6)")
    if not is_number(validation) or not 0 <= validation < 1:
        raise ValueError(
            f"data.validation: {validation!r}; it is a fraction of the training images, 0 (none) to below 1"
        )
    if limit is not None and limit < num_classes:
        raise ValueError(f"data.limit: {limit} is below the {num_classes} classes; keep at least one image a class")


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def check_whole(key: str, value: Any, least: int) -> None:
    """Raises ValueError with `data.<key>` unless the value is a whole number, at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise ValueError(f"data.{key}: {value!r}; it must be a whole number from {least}")


def check_flag(key: str, value: Any) -> None:
    """Raises ValueError with `data.<key>` unless the value is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"data.{key}: {value!r}; it is true or false")


def check_text(key: str, value: Any) -> None:
    """Raises ValueError with `data.<key>` unless the value is a non-empty text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"data.{key}: {value!r}; it must be a text that is not empty")


def check_numbers(key: str, values: Any, count: int, what: str) -> None:
    """Raises ValueError with `data.<key>` unless the value is a list of `count` finite numbers, as `what` needs."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"data.{key}: {values!r}; it must be a list of {count} numbers for {what}")
    if len(values) != count:
        raise ValueError(f"data.{key}: {len(values)} values for {what}; give {count}")
    if not all(map(is_number, values)):
        raise ValueError(f"data.{key}: {list(values)}; each value must be a finite number")


def path_of(key: str, value: Any) -> Path:
    """The path that `data.<key>` names, `~` expanded; it may not exist yet.

    Raises:
        ValueError: it is not a path, of an unknown user, or cannot be accessed (permissions, name too long).
    """
    check_text(key, value)
    try:
        if "\0" in value:
            raise ValueError("it holds a null character")
        path = Path(value).expanduser()
        path.exists()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"data.{key}: {value!r} cannot be used as a path ({error})") from None
    return path


def check_labels(labels: Tensor, num_classes: int, where: Callable[[int], str]) -> None:
    """Raises ValueError for the first label outside 0 … num_classes − 1; `where(i)` names label i's file and row."""
    bad = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{where(first)}: label {int(labels[first])}, but data.num_classes={num_classes} allows 0 to {num_classes - 1}"
            + (f" ({len(bad)} labels are outside)" if len(bad) > 1 else "")
        )


def check_classes(
    labels: Tensor, num_classes: int, where: str, part: str = "training", classes: Sequence[str] | None = None
) -> None:
    """Raises ValueError, naming `where` and the classes, if a class has no image in this part."""
    if num_classes > len(labels):
        raise ValueError(
            f"{where}: {len(labels)} {part} images, but data.num_classes={num_classes}; each class needs an image"
        )
    empty = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if empty:
        named = [f"{label} ({classes[label]})" if classes and label < len(classes) else str(label) for label in empty]
        raise ValueError(f"{where}: no {part} image of class {listed(named)} (data.num_classes={num_classes})")


def check_same_names(training: Sequence[str] | None, test: Sequence[str] | None, where: str) -> None:
    """Raises ValueError, naming `where`, if both parts have class names and these differ."""
    if training and test and list(training) != list(test):
        label = next(
            (i for i, (a, b) in enumerate(zip(training, test, strict=False)) if a != b), min(len(training), len(test))
        )
        here, there = (f"{names[label]!r}" if label < len(names) else "missing" for names in (training, test))
        raise ValueError(f"{where}: class {label} is {here} in the training images, {there} in the test images")


def listed(names: Sequence[str], at_most: int = 5) -> str:
    """Names in a message, the first few of them."""
    return ", ".join(names[:at_most]) + (f", … ({len(names)} in all)" if len(names) > at_most else "")
