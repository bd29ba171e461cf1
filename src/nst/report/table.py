"""A table's results, computed from `plan.json` and the run folders it names."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nst.report.runs import diverged, read_summary
from nst.report.stats import paired, ranks, sample, verdict

Record = dict[str, Any]


def read_table(folder: Path, outputs: Path) -> Record:
    """The whole result of a table: what `table.json` holds.

    Args:
        folder: the table's own, with `plan.json`.
        outputs: the folder of all runs.
    """
    plan = json.loads((folder / "plan.json").read_text())
    lower = plan["metric"] == "error"
    groups = [_group(group, outputs, lower) for group in plan["groups"]]
    rows = [row for group in groups for row in group["rows"]]
    changes = list(dict.fromkeys(change for row in rows for change in row["changes"]))
    return {
        **{key: plan[key] for key in ("table", "command", "title", "source", "metric")},
        "reduced": any(row["reduced"] for row in rows),
        "comparable": all(row["comparable"] for row in rows),
        "changes": changes,
        "groups": groups,
    }


def _group(group: Record, outputs: Path, lower: bool) -> Record:
    found = [_row(row, outputs, lower) for row in group["rows"]]
    baseline = found[0]["by_seed"] if found else {}
    ours = ranks([row["last"]["mean"] if row["last"] else None for row in found], lower)
    theirs = ranks([row["published"] for row in found], lower)
    for i, row in enumerate(found):
        row["rank"], row["published_rank"] = ours[i], theirs[i]
        against = paired(row["by_seed"], baseline) if i else None
        row["paired"] = asdict(against) if against else None
    return {
        "name": group["name"],
        "title": group["title"],
        "taps": group["taps"],
        "teacher": _teacher(group, outputs, lower),
        "rows": found,
    }


def _row(row: Record, outputs: Path, lower: bool) -> Record:
    summaries = {run["seed"]: read_summary(outputs / run["folder"]) for run in row["runs"]}
    done = {seed: summary for seed, summary in summaries.items() if summary is not None}
    last = {seed: figure(s["test"]["top1"], lower) for seed, s in done.items()}
    best = [figure(s["best"]["top1"], lower) for s in done.values()]
    ours = sample(list(last.values())) if last else None
    hindrance = None if row["comparable"] else "reduced" if row["reduced"] else "other settings"
    lost = sum(diverged(outputs / run["folder"]) is not None for run in row["runs"])
    difference = ours.mean - row["published"] if ours and row["published"] is not None else None
    return {
        **{key: row[key] for key in ("name", "label", "published", "published_top5", "command", "changes")},
        "reduced": row["reduced"],
        "comparable": row["comparable"],
        "asked": len(row["runs"]),
        "diverged": lost,
        "by_seed": last,
        "last": asdict(ours) if ours else None,
        "top5": asdict(sample([figure(s["test"]["top5"], lower) for s in done.values()])) if done else None,
        "best": asdict(sample(best)) if best else None,
        "best_epochs": [s["best"]["epoch"] for s in done.values()],
        "evaluated_on": sorted({s["evaluated_on"] for s in done.values()}),
        "difference": difference,
        "verdict": verdict(ours, row["published"], lower, hindrance) if ours else "diverged" if lost else "not run",
        "seconds": asdict(sample([s["seconds"] for s in done.values()])) if done else None,
        "steps": [s["steps"] for s in done.values()],
        "skipped_steps": sum(s["skipped_steps"] for s in done.values()),
        "student": next((s["student"] for s in done.values()), None),
        "commits": sorted({str(s["commit"]) for s in done.values()}),
        "versions": _distinct(s["versions"] for s in done.values()),
        "hardware": _distinct(s["hardware"] for s in done.values()),
        "runs": [run["folder"] for run in row["runs"]],
    }


def _teacher(group: Record, outputs: Path, lower: bool) -> Record | None:
    """The one teacher of the group, as it was measured when its students started."""
    for row in group["rows"]:
        for run in row["runs"]:
            about = (read_summary(outputs / run["folder"]) or {}).get("teacher")
            if about is not None:
                return {
                    **group["teacher"],
                    "name": about["name"],
                    "figure": figure(about["top1"], lower),
                    "top5": figure(about["top5"], lower),
                    "parameters": about["parameters"],
                    "weights": about["weights"],
                    "sha256": about["sha256"],
                }
    return None


def figure(top: float, lower: bool) -> float:
    """An accuracy in percent as the table states it."""
    return 100 - top if lower else top


def _distinct(values: Any) -> list[Any]:
    return [json.loads(text) for text in sorted({json.dumps(value, sort_keys=True) for value in values})]
