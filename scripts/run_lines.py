"""What results/ keeps of a run: one JSON line. No line names a folder of the machine: of a path only its last part is kept."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nst.report.listing import DEFAULTS, comparable
from nst.report.runs import chance, diverged, read_events

FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")
SETTINGS = (
    "loss",
    "seed",
    "data",
    "student",
    "teacher",
    "knowledge",
    "optim",
    "clip",
    "epochs",
    "precision",
)  # what a run is
SHOWN = (
    "trainer.epochs",
    "trainer.precision",
    "trainer.clip_grad_norm",
    "data.name",
    "data.limit",
    "data.validation",
)  # of a run's configuration, that SETTINGS has

Record = dict[str, Any]


def add(folder: Path, target: Path) -> None:
    """Add to `target` the runs below `folder` that are over and not in it.

    Raises:
        ValueError: a run differs from one in `target` only in what tables do not show, such as the batch size.
    """
    kept = [json.loads(line) for line in target.read_text().splitlines()] if target.is_file() else []
    runs = {what(run): run for run in kept}
    for file in sorted(folder.rglob("config.json")):
        if (file.parent / "summary.json").is_file() or diverged(file.parent):
            run = json.loads(FOLDERS.sub("", json.dumps(one_run(file.parent))))
            known = runs.setdefault(what(run), run)
            if "others" in known and (mixed := hidden_differences([known, run])):  # earlier lines lack them
                raise ValueError(
                    f"{file.parent}: {target.name} has a run that differs in {mixed} alone; use another file"
                )
    target.write_text("".join(json.dumps(run) + "\n" for run in runs.values()))


def what(run: Record) -> str:
    """Equal for equal runs."""
    return json.dumps([run.get(key) for key in SETTINGS], sort_keys=True)


def one_run(folder: Path) -> Record:
    """Settings, accuracies by epoch, cost and origin of a run that finished or diverged."""
    config, file = json.loads((folder / "config.json").read_text()), folder / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    taught, epochs = config["teacher"]["model"] is not None, config["trainer"]["epochs"]
    crops = [event["top1"] for event in read_events(folder, "train") if event["epoch"] > epochs - 1]
    origin = ("compiled", "steps", "skipped_steps", "seconds", "commit", "versions", "hardware")
    return {
        "loss": {name: {k: v for k, v in node.items() if k != "_target_"} for name, node in config["loss"].items()},
        "seed": config["seed"],
        "data": {key: config["data"][key] for key in ("name", "limit", "validation")},
        "student": config["model"]["name"],
        "teacher": config["teacher"]["model"]["name"] if taught else None,
        "knowledge": config["knowledge"] if taught else None,
        "optim": optimizer(config),
        "clip": config["trainer"].get("clip_grad_norm"),
        "epochs": epochs,
        "precision": config["trainer"]["precision"],
        "others": others(config),
        "teacher_settings": {k: v for k, v in comparable(config).items() if k.startswith("teacher.")},
        "chance": chance(config),
        "evaluated_on": "val" if config["data"]["validation"] else "test",
        "diverged": None if summary else diverged(folder),
        "crops_top1": round(sum(crops) / len(crops), 2) if crops else None,  # training images, over the last epoch
        "test_top1": summary["test"]["top1"] if summary else None,
        "top1_by_epoch": {event["epoch"]: event["top1"] for event in read_events(folder, "eval")},
        **{key: summary.get(key) for key in origin},
    }


def others(config: Record) -> Record:
    """Settings of data, student and trainer that `SETTINGS` lacks, by dotted key, without the trainer's defaults."""
    prefix = ("trainer.", "data.", "model.")
    return {
        key.replace("model.", f"model.{config['model']['name']}."): setting
        for key, setting in comparable(config).items()
        if key.startswith(prefix) and key not in SHOWN and setting != DEFAULTS.get(key)
    }


def optimizer(config: Record) -> Record:
    """The optimizer's settings with the schedule's name and settings."""
    own = {key: value for key, value in config["optim"].items() if key not in ("_target_", "no_decay")}
    schedule = config.get("schedule")
    if schedule is None:
        return own
    name = schedule["_target_"].rpartition(".")[2].lower()
    return own | {"schedule": name} | {key: value for key, value in schedule.items() if key != "_target_"}


def hidden_differences(runs: Sequence[Record]) -> str:
    """The settings beside columns and names of rows in which runs differ, as text; "" if there are none.

    A component's setting that a run lacks is left out: the run is of a version without it, or the student is another one. So is
    `trainer.compile`, which changes rounding only.
    """
    rest = [{k: v for k, v in run["others"].items() if k != "trainer.compile"} for run in runs if "others" in run]
    keys = {key for one in rest for key in one if key.startswith("trainer.") or all(key in other for other in rest)}
    values = {key: [one.get(key, "the default") for one in rest] for key in keys}
    for key in set.intersection(*({*run["optim"]} for run in runs)) - {"lr", "schedule", "weight_decay"}:
        values[f"optim.{key}"] = [run["optim"][key] for run in runs]
    for key in ("name", "validation"):
        values[f"data.{key}"] = [run["data"][key] for run in runs]
    taught = [run for run in runs if run["knowledge"]]
    values["teacher"] = [run["teacher"] for run in taught]
    values["the teacher's settings"] = [run["teacher_settings"] for run in taught if "teacher_settings" in run]
    values["cache.dtype"] = [run["knowledge"].get("dtype") for run in taught]
    differing = {key: sorted({json.dumps(value) for value in several}) for key, several in values.items()}
    return "; ".join(f"{key}: {', '.join(texts)}" for key, texts in sorted(differing.items()) if len(texts) > 1)
