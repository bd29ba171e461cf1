"""Reads run folders: configuration, progress, results. A damaged file is an error that names it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nst.evaluate import has_collapsed

Record = dict[str, Any]


def plain_component(name: str) -> bool:
    """Whether a name can be one component of a path: no folder, no way out of one."""
    return name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def inside(outputs: Path, place: str) -> Path:
    """A run's folder below `outputs`.

    Raises:
        ValueError: it lies elsewhere.
    """
    if not place or not all(plain_component(part) for part in place.split("/")):
        raise ValueError(f"plan.json: {place!r} is no folder below {outputs}")
    return outputs / place


def read_json(file: Path) -> Record:
    """The object in a JSON file.

    Raises:
        ValueError: no readable file, no JSON, or no object; names the file.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{file} is damaged: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object")
    return content


def value(record: Record, key: str, kinds: type | tuple[type, ...], file: Path) -> Any:
    """The value at a dotted key.

    Raises:
        ValueError: it is missing or of another type; names file and key.
    """
    node: Any = record
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise ValueError(f"{file} is damaged: {key} is missing")
        node = node[part]
    if not isinstance(node, kinds) or isinstance(node, bool):
        raise ValueError(f"{file} is damaged: {key} is {str(node)[:80]!r}")
    return node


NUMBER = (int, float)
SUMMARY: dict[str, type | tuple[type, ...]] = {
    "test": dict, "test.top1": NUMBER, "best.top1": NUMBER, "best.epoch": NUMBER, "evaluated_on": str, "seconds": NUMBER,
    "steps": int, "skipped_steps": int, "versions": dict, "hardware": dict, "commit": (str, type(None)),
    "teacher": (dict, type(None)),
}  # fmt: skip
TEACHER: dict[str, type | tuple[type, ...]] = {
    "teacher.name": str, "teacher.top1": NUMBER, "teacher.parameters": int, "teacher.weights": (str, type(None)),
    "teacher.sha256": str,
}  # fmt: skip
CONFIG: dict[str, type | tuple[type, ...]] = {
    "data.name": str, "model.name": str, "teacher": (dict, type(None)), "loss": dict, "optim": dict, "seed": int,
    "trainer.epochs": int,
}  # fmt: skip


def read_config(folder: Path) -> Record:
    """The configuration of the run in `folder`.

    Raises:
        ValueError: `config.json` is damaged or misses what every run has.
    """
    file = folder / "config.json"
    config = read_json(file)
    for key, kinds in CONFIG.items():
        value(config, key, kinds, file)
    if teacher_of(config) is not None:
        value(config, "teacher.model.name", str, file)
    for name, node in config["loss"].items():
        if not isinstance(node, dict) or not isinstance(node.get("weight"), NUMBER):
            raise ValueError(f"{file} is damaged: loss.{name} has no weight")
    return config


def teacher_of(config: Record) -> Record | None:
    """The node of the teacher's network; None for a run without a teacher."""
    return (config["teacher"] or {}).get("model")


def read_summary(folder: Path) -> Record | None:
    """The summary of a finished run, or None.

    Raises:
        ValueError: `summary.json` is damaged or misses what every summary has.
    """
    file = folder / "summary.json"
    if not file.exists():
        return None
    summary = read_json(file)
    for key, kinds in SUMMARY.items():
        value(summary, key, kinds, file)
    for key, kinds in TEACHER.items() if summary["teacher"] is not None else ():
        value(summary, key, kinds, file)
    return summary


def diverged(folder: Path) -> str | None:
    """Why the run in `folder` was stopped, if a non-finite loss or gradient stopped its last start."""
    file = folder / "diverged.json"
    return value(read_json(file), "reason", str, file) if file.exists() else None


def read_events(folder: Path, kind: str) -> list[Record]:
    """The lines of `metrics.jsonl` of one kind ("train" or "eval"); a line cut off by a crash is left out.

    Raises:
        ValueError: the file cannot be read.
    """
    file = folder / "metrics.jsonl"
    try:
        lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    except OSError as error:
        raise ValueError(f"{file} is damaged: {error.strerror}") from error
    needed = ("epoch", "top1") if kind == "eval" else ()
    events: list[Record] = []
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(event, dict)
            and event.get("kind") == kind
            and all(isinstance(event.get(key), NUMBER) for key in needed)
        ):
            events.append(event)
    return events


def chance(config: Record) -> float | None:
    """The accuracy of chance, in percent; None if the number of classes is not known."""
    classes = config["data"].get("num_classes")
    return 100 / classes if isinstance(classes, int) and classes > 0 else None


def fell_back(evaluations: Sequence[Record], guessing: float) -> bool:
    """Whether any evaluation has fallen (see `nst.falls`) from the best before it.

    Args:
        evaluations: events with `top1`, in order.
        guessing: the accuracy of chance, in percent.
    """
    best = 0.0
    for event in evaluations:
        if has_collapsed(event["top1"], best, guessing):
            return True
        best = max(best, event["top1"])
    return False
