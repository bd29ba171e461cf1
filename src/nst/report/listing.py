"""All runs below a folder: their states, their differences, and statistics over seeds."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nst.config import UNNAMED, CacheConfig, TeacherConfig, TrainerConfig
from nst.report.agreement import contents, sources
from nst.report.runs import chance, diverged, fell_back, read_config, read_events, read_summary, teacher_of
from nst.report.settings import schedule, weights
from nst.report.stats import sample

Record = dict[str, Any]

RUN_PARTS = {"trainer": TrainerConfig, "cache": CacheConfig, "teacher": TeacherConfig}

FIELDS = (
    "data", "teacher", "model", "loss", "seed", "epochs", "state", "last", "best", "best_epoch", "fell_back", "seconds",
    "folder",
)  # fmt: skip


def read_runs(outputs: Path) -> tuple[list[Record], list[str]]:
    """Every run below `outputs`, finished or not, by folder; and one line for each that is damaged.

    A run has data, teacher, model, loss (names of the terms), weights, rate, schedule, seed, epochs, state ("finished",
    "epoch 3 of 15", "pruned at …" or "diverged after …"), last and best (top-1 in percent, or None), best_epoch, fell_back
    (whether an evaluation lost more than half of the best accuracy above chance), seconds, folder, and config: its settings by dotted key.

    Raises:
        ValueError: there is no such folder.
    """
    if not outputs.is_dir():
        raise ValueError(f"outputs={outputs}: no such folder; name the folder of the runs")
    runs, damaged = [], []
    for file in sorted(outputs.glob("*/*/*/*/config.json")):
        try:
            runs.append(_run(file.parent, outputs))
        except ValueError as error:
            damaged.append(str(error))
    _tell_contents_apart(runs)
    return runs, damaged


def _tell_contents_apart(runs: Sequence[Record]) -> None:
    """Data, a teacher or code of the same name but another SHA-256 are a setting in which runs differ."""
    seen: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for kind, settings, digest in run["contents"]:
            seen.setdefault((kind, settings), set()).add(digest)
    for run in runs:
        for kind, settings, digest in run.pop("contents"):
            if len(seen[kind, settings]) > 1:
                run["config"][f"{kind}.sha256"] = digest[:16]


def _run(folder: Path, outputs: Path) -> Record:
    config, summary, evaluations = read_config(folder), read_summary(folder), read_events(folder, "eval")
    best = max(evaluations, key=lambda e: e["top1"], default=None)
    done, epochs = len(evaluations) and evaluations[-1]["epoch"], config["trainer"]["epochs"]
    cut = "pruned at " if (folder / "pruned.json").exists() else "diverged after " if diverged(folder) else ""
    steps = [] if summary else read_events(folder, "train")
    guessing = chance(config)
    timings = [event["timing"] for event in steps if isinstance(event.get("timing"), dict)]
    seconds = [timing["seconds"] for timing in timings if isinstance(timing.get("seconds"), int | float)]
    return {
        "data": config["data"]["name"],
        "teacher": (teacher_of(config) or {}).get("name", "none"),
        "model": config["model"]["name"],
        "loss": "+".join(name for name in config["loss"] if name != "ce") or "ce",
        "weights": weights(config),
        "rate": config["optim"].get("lr"),
        "schedule": schedule(config),
        "seed": config["seed"],
        "epochs": epochs,
        "state": "finished" if summary else f"{cut}epoch {done:g} of {epochs}",
        "last": summary["test"]["top1"] if summary else (evaluations[-1]["top1"] if evaluations else None),
        "best": summary["best"]["top1"] if summary else (best["top1"] if best else None),
        "best_epoch": summary["best"]["epoch"] if summary else (best["epoch"] if best else None),
        "fell_back": guessing is not None and fell_back(evaluations, guessing),
        "seconds": summary["seconds"] if summary else (seconds[-1] if seconds else None),
        "folder": str(folder.relative_to(outputs)),
        "config": comparable(config),
        "contents": [*contents(summary or {}), *((f"code.{k}", "", v) for k, v in sources(summary or {}).items())],
    }


def comparable(config: Record) -> dict[str, Any]:
    """The settings that distinguish runs, by dotted key: without seed, paths, null, and unused settings.

    A run of an earlier version lacks later keys: it has their defaults. Those of components are not known here.
    """
    unused = [*UNNAMED, "seed"]
    if teacher_of(config) is None:
        unused += ["teacher", "cache"]
    elif config["teacher"].get("weights") is not None:
        unused.append("teacher.recipe")
    settings = DEFAULTS | {k: v for k, v in _flat(config).items() if v is not None}
    return {k: v for k, v in settings.items() if not any(k == key or k.startswith(f"{key}.") for key in unused)}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}


DEFAULTS = {
    key: value
    for key, value in _flat({name: asdict(part()) for name, part in RUN_PARTS.items()}).items()
    if value is not None
}


def select(runs: Sequence[Record], filters: dict[str, str], sort: str) -> list[Record]:
    """Runs whose fields match (`loss=kd*` matches "kd" and "kd+nst_poly"), sorted; accuracies best first.

    Raises:
        ValueError: a field that runs do not have.
    """
    for key in [*filters, sort]:
        if key not in FIELDS:
            raise ValueError(f"{key}: runs have no such field; there are {', '.join(FIELDS)}")
    selected = [run for run in runs if all(_matches(str(run[key]), value) for key, value in filters.items())]
    return sorted(selected, key=lambda run: order(run[sort], sort))


def order(value: Any, sort: str) -> tuple[bool, Any]:
    """Accuracies descend, other fields ascend, nothing comes last."""
    return value is None, 0 if value is None else -value if sort in ("last", "best") else value


def _matches(text: str, patterns: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns.split(","))


def sections(runs: Sequence[Record]) -> dict[tuple[str, str, str], list[Record]]:
    """Runs by data set, teacher and student, each with `settings`: those that differ between the runs of its section."""
    by_section: dict[tuple[str, str, str], list[Record]] = {}
    for run in runs:
        by_section.setdefault((run["data"], run["teacher"], run["model"]), []).append(run)
    return {key: _with_settings(by_section[key]) for key in sorted(by_section)}


def _with_settings(runs: Sequence[Record]) -> list[Record]:
    """Settings that differ, besides weights, rate, schedule and epochs, which are always shown."""
    always_shown = ("optim.lr", "optim.schedule", "schedule._target_", "trainer.epochs")
    keys = dict.fromkeys(key for run in runs for key in run["config"])
    differing = []
    for key in keys:
        term = key.split(".")[1] if key.startswith("loss.") else None
        having = [run["config"].get(key) for run in runs if term is None or any(_of(k, term) for k in run["config"])]
        if len({json.dumps(value, sort_keys=True) for value in having}) > 1 and key not in always_shown:
            differing.append(key)
    shown = [key for key in differing if not (key.startswith("loss.") and key.endswith(".weight"))]
    return [run | {"settings": {k: run["config"].get(k) for k in shown if _belongs(k, run)}} for run in runs]


def _of(key: str, term: str) -> bool:
    return key.startswith(f"loss.{term}.")


def _belongs(key: str, run: Record) -> bool:
    return not key.startswith("loss.") or any(_of(k, key.split(".")[1]) for k in run["config"])


def grouped(runs: Sequence[Record], sort: str) -> list[Record]:
    """Runs of one section that differ in their seed only, as one record each: mean ± std over the finished ones.

    A record has what its runs share, `seeds`, `states` (state → number of runs), `n` (finished runs), `last`, `best` (a
    `Sample` as a dict, or None), `fell_back` (number of runs), `seconds` (mean) and `folders`.
    """
    by_config: dict[str, list[Record]] = {}
    for run in runs:
        by_config.setdefault(json.dumps(run["config"], sort_keys=True), []).append(run)
    groups = [_group(members) for members in by_config.values()]
    if sort in ("last", "best"):
        groups.sort(key=lambda group: order(group[sort]["mean"] if group[sort] else None, sort))
    return groups


def _group(runs: Sequence[Record]) -> Record:
    done = [run for run in runs if run["state"] == "finished"]
    states = [run["state"] for run in runs]
    shared = ("data", "teacher", "model", "loss", "weights", "rate", "schedule", "epochs", "settings")
    return {
        **{key: runs[0][key] for key in shared},
        "seeds": sorted(run["seed"] for run in runs),
        "states": {state: states.count(state) for state in sorted(set(states))},
        "n": len(done),
        **{key: asdict(sample([run[key] for run in done])) if done else None for key in ("last", "best")},
        "fell_back": sum(run["fell_back"] for run in runs),
        "seconds": sample([run["seconds"] for run in done]).mean if done else None,
        "folders": sorted(run["folder"] for run in runs),
    }
