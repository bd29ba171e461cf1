"""Run folders as they lie on disk: what a run was, how far it came, what came out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_summary(folder: Path) -> Record | None:
    """What a finished run left, or None."""
    file = folder / "summary.json"
    return json.loads(file.read_text()) if file.is_file() else None


def diverged(folder: Path) -> str | None:
    """Why the run in `folder` was stopped, if a non-finite loss or gradient stopped its last start."""
    file = folder / "diverged.json"
    return json.loads(file.read_text())["reason"] if file.is_file() else None


def read_events(folder: Path, kind: str) -> list[Record]:
    """The lines of `metrics.jsonl` of one kind ("train" or "eval"); a line cut off by a crash is left out."""
    file = folder / "metrics.jsonl"
    events: list[Record] = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event.get("kind") == kind:
            events.append(event)
    return events


def all_runs(outputs: Path) -> list[Record]:
    """Every run below `outputs`, finished or not, by folder.

    Each has data, teacher, model, loss, seed, state ("finished", "epoch 3 of 15", "pruned at …" or "diverged after …"), last and best (top-1 in percent,
    or None), best_epoch, seconds and folder.
    """
    return [_record(file.parent, outputs) for file in sorted(outputs.glob("*/*/*/*/config.json"))]


def _record(folder: Path, outputs: Path) -> Record:
    config = json.loads((folder / "config.json").read_text())
    summary, evaluations = read_summary(folder), read_events(folder, "eval")
    best = max(evaluations, key=lambda e: e["top1"], default=None)
    done, epochs = len(evaluations) and evaluations[-1]["epoch"], config["trainer"]["epochs"]
    cut = "pruned at " if (folder / "pruned.json").is_file() else "diverged after " if diverged(folder) else ""
    losses = "+".join(f"{name}" for name in config["loss"] if name != "ce") or "ce"
    timing = read_events(folder, "train")
    return {
        "data": config["data"]["name"],
        "teacher": (config["teacher"]["model"] or {}).get("name", "none"),
        "model": config["model"]["name"],
        "loss": losses,
        "seed": config["seed"],
        "epochs": epochs,
        "state": "finished" if summary else f"{cut}epoch {done} of {epochs}",
        "last": summary["test"]["top1"] if summary else (evaluations[-1]["top1"] if evaluations else None),
        "best": summary["best"]["top1"] if summary else (best["top1"] if best else None),
        "best_epoch": summary["best"]["epoch"] if summary else (best["epoch"] if best else None),
        "seconds": summary["seconds"] if summary else (timing[-1]["timing"]["seconds"] if timing else None),
        "folder": str(folder.relative_to(outputs)),
    }


def select(runs: Sequence[Record], wanted: dict[str, str], sort: str) -> list[Record]:
    """Runs whose fields are as wanted ("kd" also finds "kd+nst_poly" by `loss=kd*`), sorted; accuracies best first.

    Raises:
        ValueError: a field that runs do not have.
    """
    known = [
        "data", "teacher", "model", "loss", "seed", "epochs", "state", "last", "best", "best_epoch", "seconds", "folder",
    ]  # fmt: skip
    for key in [*wanted, sort]:
        if key not in known:
            raise ValueError(f"{key}: runs have no such field; there are {', '.join(known)}")
    kept = [run for run in runs if all(_matches(str(run[key]), value) for key, value in wanted.items())]
    down = sort in ("last", "best")

    def order(run: Record) -> tuple[bool, Any]:
        value = run[sort]
        return (value is None, -value if down and value is not None else value if value is not None else 0)

    return sorted(kept, key=order)


def _matches(found: str, wanted: str) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(found, one) for one in wanted.split(","))
