"""The frame of runs: one row a run, read once from its folder. All that lists, compares or draws runs is made from it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd

from nst.config import UNNAMED
from nst.evaluate import has_collapsed as collapsed_by
from nst.tables.statistics import Frame

Record = dict[str, Any]

NUMBER = (int, float)
CONFIG: dict[str, type | tuple[type, ...]] = {  # what every configuration has
    "data.name": str, "model.name": str, "loss": dict, "optim": dict, "seed": int, "trainer.epochs": int,
}  # fmt: skip
RESULT: dict[str, tuple[str, type | tuple[type, ...]]] = {  # column → its key in the summary of a finished run
    "test": ("test.top1", NUMBER), "best": ("best.top1", NUMBER), "best_epoch": ("best.epoch", NUMBER),
    "evaluated_on": ("evaluated_on", str), "seconds": ("seconds", NUMBER), "steps": ("steps", int),
    "commit": ("commit", (str, NoneType)), "versions": ("versions", dict), "hardware": ("hardware", dict),
    "taught_by": ("teacher", (dict, NoneType)),
}  # fmt: skip
TAUGHT_BY: dict[str, type | tuple[type, ...]] = {
    "teacher.name": str, "teacher.top1": NUMBER, "teacher.parameters": int, "teacher.weights": (str, NoneType),
    "teacher.sha256": str,
}  # fmt: skip
COLUMNS = [
    "folder", "data", "teacher", "model", "loss", "seed", "epochs", "settings", "weights", "chance", "curve", "train", "state",
    "diverged", "collapsed", "last", *RESULT, "top5", "test_images", "data_key", "data_sha256", "teacher_key", "teacher_sha256",
]  # fmt: skip


def read_frame(folders: Iterable[Path]) -> Frame:
    """A row for each of these runs that has a configuration, see `read_run`.

    Raises:
        ValueError: a damaged file, named with its key.
    """
    return pd.DataFrame([read_run(f) for f in folders if (f / "config.json").exists()], columns=COLUMNS)


def read_run(folder: Path) -> Record:
    """A run, finished or not.

    Returns:
        folder, data, teacher, model, loss (names of the terms), seed, epochs; settings (those that distinguish runs, by
        dotted key), weights (λ by term, the cross-entropy's only where it is not 1), chance; curve (epoch → accuracy),
        train (accuracy on the training crops over the last epoch), state ("finished", "epoch 3 of 15", "diverged after …"),
        diverged (the reason, or None), collapsed; last and best, best_epoch, seconds, and of finished runs the columns of
        `RESULT`, top5 and test_images; data_sha256 and teacher_sha256 with the settings that name them. Accuracies are
        top-1 in percent; last is on the test images, of a run that is not finished on those of its evaluations.

    Raises:
        ValueError: a damaged file, named with its key.
    """
    file = folder / "config.json"
    config = _read_json(file)
    for key, kinds in CONFIG.items():
        _value(config, key, kinds, file)
    taught = (config.get("teacher") or {}).get("model") is not None
    if taught:
        _value(config, "teacher.model.name", str, file)
    for name in config["loss"]:
        _value(config, f"loss.{name}.weight", NUMBER, file)
    weights = {name: float(node["weight"]) for name, node in config["loss"].items()}
    classes, epochs = config["data"].get("num_classes"), config["trainer"]["epochs"]
    evaluations, steps = _read_events(folder, "eval"), _read_events(folder, "train")
    curve = {event["epoch"]: event["top1"] for event in evaluations}
    crops = [event["top1"] for event in steps if event["epoch"] > epochs - 1]
    stop = folder / "diverged.json"
    diverged = _value(_read_json(stop), "reason", str, stop) if stop.exists() else None
    progress = f"epoch {max(curve, default=0):g} of {epochs}"
    timings = [event.get("timing", {}).get("seconds") for event in steps]
    run = {
        "folder": str(folder), "data": config["data"]["name"], "model": config["model"]["name"],
        "teacher": config["teacher"]["model"]["name"] if taught else "none",
        "loss": "+".join(name for name in config["loss"] if name != "ce") or "ce",
        "seed": config["seed"], "epochs": epochs, "settings": distinguishing(config),
        "weights": {name: weight for name, weight in weights.items() if name != "ce" or weight != 1},
        "chance": 100 / classes if isinstance(classes, int) and classes > 0 else None,
        "curve": curve, "train": sum(crops) / len(crops) if crops else None,
        "state": f"diverged after {progress}" if diverged else progress, "diverged": diverged,
        "last": list(curve.values())[-1] if curve else None, "best": max(curve.values(), default=None),
        "best_epoch": max(curve, key=lambda epoch: curve[epoch], default=None),
        "seconds": next((second for second in reversed(timings) if isinstance(second, NUMBER)), None),
    }  # fmt: skip
    run["collapsed"] = has_collapsed(list(curve.values()), run["chance"])
    if (folder / "summary.json").exists():
        run |= _result(folder / "summary.json")
    given = taught and config["teacher"].get("weights") is not None  # else it was trained on these images
    images = {key: value for key, value in run["settings"].items() if key.startswith("data.")}
    teacher = {key: value for key, value in run["settings"].items() if key.startswith("teacher.")}
    run["data_key"] = json.dumps(images, sort_keys=True)
    run["teacher_key"] = json.dumps([teacher, None if given else images], sort_keys=True)
    return run


def _result(file: Path) -> Record:
    """The columns that a finished run has of its summary."""
    summary = _read_json(file)
    columns = {column: _value(summary, key, kinds, file) for column, (key, kinds) in RESULT.items()}
    for key, kinds in TAUGHT_BY.items() if summary["teacher"] is not None else ():
        _value(summary, key, kinds, file)
    return columns | {
        "state": "finished", "diverged": None, "last": columns["test"],
        "top5": summary["test"].get("top5"), "test_images": summary["test"].get("images"),
        "data_sha256": (summary.get("data") or {}).get("sha256"),
        "teacher_sha256": (summary["teacher"] or {}).get("sha256"),
    }  # fmt: skip


def distinguishing(config: Mapping[str, Any]) -> Record:
    """The settings that distinguish runs, by dotted key: without seed, paths, null, and what is not used."""
    unused = [*UNNAMED, "seed"]
    if (config.get("teacher") or {}).get("model") is None:
        unused += ["teacher", "cache"]
    elif config["teacher"].get("weights") is not None:
        unused.append("teacher.train")
    return {
        key: setting
        for key, setting in flat(config).items()
        if setting is not None and not any(key == name or key.startswith(f"{name}.") for name in unused)
    }


def flat(node: Any, prefix: str = "") -> Record:
    """Nested settings as `{"dotted.key": value}`."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def has_collapsed(accuracies: Iterable[float], chance: float | None) -> bool:
    """Whether an evaluation lost more than half of the best lead over chance before it; False where chance is unknown."""
    best = 0.0
    for top1 in accuracies if chance is not None else ():
        if collapsed_by(top1, best, chance or 0.0):
            return True
        best = max(best, top1)
    return False


def other_contents(runs: Frame) -> Iterable[tuple[str, Frame]]:
    """Runs that name the same data, or the same teacher, but had other images or weights: ("data" or "teacher", those runs).

    Files may change under a name: a data set that was extended, a teacher that was trained again.
    """
    for kind in ("data", "teacher") if len(runs) else ():
        for _, same in runs[runs[f"{kind}_sha256"].notna()].groupby(f"{kind}_key", sort=False):
            if same[f"{kind}_sha256"].nunique() > 1:
                yield kind, same


def check_agreement(runs: Frame) -> None:
    """Check that runs can stand in one table.

    Raises:
        ValueError: two of them have the same settings, but other images or another teacher.
    """
    for kind, same in other_contents(runs):
        one, other = same.drop_duplicates(f"{kind}_sha256").head(2).to_dict("records")
        raise ValueError(
            f"{one['folder']} and {other['folder']} cannot stand in one table: their settings of the {kind} are the same, but "
            f"its SHA-256 was {one[f'{kind}_sha256'][:16]}… and {other[f'{kind}_sha256'][:16]}…; delete the outdated one to "
            "run it again"
        )


def _read_json(file: Path) -> Record:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object")
    return content


def _value(record: Record, key: str, kinds: type | tuple[type, ...], file: Path) -> Any:
    """The value at a dotted key. Raises ValueError, naming file and key, if it is missing or of another type."""
    node: Any = record
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise ValueError(f"{file} is damaged: {key} is missing")
        node = node[part]
    if not isinstance(node, kinds) or isinstance(node, bool):
        raise ValueError(f"{file} is damaged: {key} is {str(node)[:80]!r}")
    return node


def _read_events(folder: Path, kind: str) -> list[Record]:
    """The lines of `metrics.jsonl` of one kind ("train" or "eval"); a line cut off by a crash is left out."""
    file = folder / "metrics.jsonl"
    events: list[Record] = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        known = isinstance(event, dict) and event.get("kind") == kind
        if known and all(isinstance(event.get(key), NUMBER) for key in ("epoch", "top1")):
            events.append(event)
    return events
