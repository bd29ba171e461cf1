"""A table's results, computed from `plan.json` and the run folders it names."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nst.report.agreement import check_agreement, sources
from nst.report.runs import (
    chance,
    diverged,
    fell_back,
    inside,
    plain_component,
    read_config,
    read_events,
    read_json,
    read_summary,
    value,
)
from nst.report.settings import shown, weights
from nst.report.stats import paired, ranks, sample, verdict

Record = dict[str, Any]


def read_table(folder: Path, outputs: Path) -> Record:
    """The whole result of a table, as in `table.json`.

    Args:
        folder: the table's own, with `plan.json`.
        outputs: the folder of all runs.

    Raises:
        ValueError: a damaged file, a plan that names a place outside of `outputs`, or runs that saw other images or another
            teacher than others of the same settings.
    """
    plan = read_json(folder / "plan.json")
    lower = plan["metric"] == "error"
    groups = [_group(group, outputs, lower) for group in plan["groups"]]
    if plan.get("along") is not None:
        value(plan, "along", str, folder / "plan.json")
        at = [value(group, "at", (int, float), folder / "plan.json") for group in groups]
        if not all(0 < number < math.inf for number in at) or len(set(at)) < len(at):
            raise ValueError(
                f"{folder / 'plan.json'} is damaged: the groups are at {at}; different positive numbers are needed"
            )
    rows = [row for group in groups for row in group["rows"]]
    check_agreement(inside(outputs, run) for row in rows for run in row["runs"])
    changes = list(dict.fromkeys(change for row in rows for change in row["changes"]))
    return {
        **{key: plan[key] for key in ("table", "command", "title", "source", "metric")},
        "along": plan.get("along"),
        "reduced": any(row["reduced"] for row in rows),
        "comparable": all(row["comparable"] for row in rows),
        "changes": changes,
        "groups": groups,
    }


def _group(group: Record, outputs: Path, lower: bool) -> Record:
    for name in (group["name"], *(row["name"] for row in group["rows"])):
        if not plain_component(name):
            raise ValueError(f"plan.json: the name {name!r} cannot be part of a file's name")
    rows = [_row(row, outputs, lower) for row in group["rows"]]
    baseline = rows[0]["by_seed"] if rows else {}
    ours = ranks([row["last"]["mean"] if row["last"] else None for row in rows], lower)
    theirs = ranks([row["published"] for row in rows], lower)
    for i, row in enumerate(rows):
        row["rank"], row["published_rank"] = ours[i], theirs[i]
        against = paired(row["by_seed"], baseline) if i else None
        row["paired"] = asdict(against) if against else None
    return {
        "name": group["name"],
        "title": group["title"],
        "at": group.get("at"),  # of the table's axis
        "layers": group["layers"],
        "teacher": _teacher(group, outputs, lower),
        "rows": rows,
    }


def _row(row: Record, outputs: Path, lower: bool) -> Record:
    folders = {run["seed"]: inside(outputs, run["folder"]) for run in row["runs"]}
    summaries = {seed: read_summary(folder) for seed, folder in folders.items()}
    done = {seed: summary for seed, summary in summaries.items() if summary is not None}
    lost = sum(diverged(folder) is not None for folder in folders.values())
    return {
        **{key: row[key] for key in ("name", "label", "published", "published_top5", "command", "changes")},
        "published_epoch": row.get("epoch", "unknown"),
        "tuned": row.get("tuned", False),
        "reduced": row["reduced"],
        "comparable": row["comparable"],
        "planned": len(row["runs"]),
        "diverged": lost,
        "fell_back": sum(_fell_back(folder) for folder in folders.values()),
        **_settings(folders.values(), list(done.values())),
        **_figures(row, done, lower, lost),
        "seconds": asdict(sample([s["seconds"] for s in done.values()])) if done else None,
        "steps": [s["steps"] for s in done.values()],
        "skipped_steps": sum(s["skipped_steps"] for s in done.values()),
        "student": next((s["student"] for s in done.values()), None),
        "commits": sorted({str(s["commit"]) for s in done.values()}),
        "versions": _distinct(s["versions"] for s in done.values()),
        "hardware": _distinct(s["hardware"] for s in done.values()),
        "sources": _sources(done.values()),
        "runs": [run["folder"] for run in row["runs"]],
    }


def _figures(row: Record, done: dict[int, Record], lower: bool, lost: int) -> Record:
    """Our last and best epoch, and the verdict of the comparable one beside the published figure."""
    last = {seed: figure(s["test"]["top1"], lower) for seed, s in done.items()}
    best = [figure(s["best"]["top1"], lower) for s in done.values()]
    ours = sample(list(last.values())) if last else None
    evaluated_on = sorted({s["evaluated_on"] for s in done.values()})
    compared = sample(best) if best and row.get("epoch") == "best" else ours
    hindrance = None if row["comparable"] else "reduced" if row["reduced"] else "other settings"
    chosen_elsewhere = row.get("epoch") == "best" and "val" in evaluated_on
    if hindrance is None and chosen_elsewhere:
        hindrance = "our best epoch is one on validation images"
    standing = verdict(compared, row["published"], lower, hindrance) if compared else "diverged" if lost else "not run"
    published = None if chosen_elsewhere else row["published"]
    return {
        "by_seed": last,
        "last": asdict(ours) if ours else None,
        "top5": _top5(list(done.values()), lower),
        "best": asdict(sample(best)) if best else None,
        "best_epochs": [s["best"]["epoch"] for s in done.values()],
        "evaluated_on": evaluated_on,
        "difference": compared.mean - published if compared and published is not None else None,
        "verdict": standing,
    }


def _top5(done: Sequence[Record], lower: bool) -> Record | None:
    values = [s["test"].get("top5") for s in done]
    return asdict(sample([figure(v, lower) for v in values])) if values and None not in values else None


def _fell_back(folder: Path) -> bool:
    guessing = chance(read_config(folder)) if (folder / "config.json").exists() else None
    return guessing is not None and fell_back(read_events(folder, "eval"), guessing)


def _settings(folders: Iterable[Path], done: Sequence[Record]) -> Record:
    """Weights and other settings of the row's runs, which differ in their seed only."""
    folder = next((folder for folder in folders if (folder / "config.json").exists()), None)
    config = read_config(folder) if folder is not None else None
    images = next((n for s in done if isinstance(n := s["test"].get("images"), int) and n > 0), None)
    return {
        "test_images": images,
        "weights": weights(config) if config else {},
        "settings": shown(config, images) if config else {},
    }


def _sources(done: Iterable[Record]) -> dict[str, list[str]]:
    """Module of the user's own code → the SHA-256 of its source in the runs; several if it has changed between them."""
    found: dict[str, set[str]] = {}
    for module, digest in (item for summary in done for item in sources(summary).items()):
        found.setdefault(module, set()).add(digest)
    return {module: sorted(digests) for module, digests in sorted(found.items())}


def _teacher(group: Record, outputs: Path, lower: bool) -> Record | None:
    """The one teacher of the group, as it was measured when its students started."""
    for row in group["rows"]:
        for run in row["runs"]:
            about = (read_summary(inside(outputs, run["folder"])) or {}).get("teacher")
            if about is not None:
                return {
                    **group["teacher"],
                    "name": about["name"],
                    "evaluated_on": about.get("evaluated_on", "test"),
                    "figure": figure(about["top1"], lower),
                    "top5": figure(about["top5"], lower) if about.get("top5") is not None else None,
                    "parameters": about["parameters"],
                    "weights": about["weights"],
                    "sha256": about["sha256"],
                }
    return None


def figure(top: float, lower: bool) -> float:
    """An accuracy in percent as the table states it."""
    return 100 - top if lower else top


def _distinct(values: Iterable[Any]) -> list[Any]:
    return [json.loads(text) for text in sorted({json.dumps(value, sort_keys=True) for value in values})]
