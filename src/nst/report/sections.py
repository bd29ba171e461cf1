"""The parts of a group's page as plain data, from the result, the runs' logs and the evidence."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nst.report.figures import Axis, Curves, Scatter, Strip, change_strip, curves, result_strip, scatter
from nst.report.runs import inside, read_events
from nst.report.text import cells, columns

Record = dict[str, Any]
KERNELS = {"linear": "linear", "polynomial": "polynomial (xᵀy)²", "gaussian": "Gaussian"}


@dataclass(frozen=True)
class Grid:
    """A table as text."""

    header: list[str]
    rows: list[list[str]]
    best: int | None = None  # the row to highlight
    words: bool = False  # whether the last column is text


def colour(row: Record, group: Record) -> str:
    """The row's colour class: the baseline, a method with NST, another one."""
    if row is group["rows"][0]:
        return "alone"
    return "nst" if any(name.startswith("nst") for name in row["weights"]) else "other"


def result_table(group: Record) -> Grid:
    """The table itself."""
    names = columns(group)
    rows = [[cells(row).get(name, "–") for name in names] for row in group["rows"]]
    best = next((i for i, row in enumerate(group["rows"]) if row["rank"] == 1), None)
    return Grid(names, rows, best, words=names[-1] == "verdict")


def result_rows(group: Record) -> list[Strip]:
    """Every method on one axis: seeds, mean, interval, published figure."""
    rows, values = group["rows"], []
    for row in rows:
        last = row["last"]
        if last:
            half = min(last["half_width"] or 0, 3 * (last["std"] or 0))
            values += [*row["by_seed"].values(), max(last["mean"] - half, 0), min(last["mean"] + half, 100)]
        values += [row["published"]] if row["published"] is not None else []
    if not values:
        return []
    axis = Axis(values)
    strips = []
    for row in rows:
        last = row["last"] or {"mean": None, "half_width": None}
        seeds = list(row["by_seed"].values())
        strips.append(
            result_strip(
                axis, row["label"], colour(row, group), seeds, last["mean"], last["half_width"], row["published"]
            )
        )
    return strips


def curve_panels(group: Record, outputs: Path) -> list[Curves]:
    """The paper's Figure 4: one panel per method, the baseline behind each."""
    errors = {row["name"]: errors_by_epoch(row, outputs) for row in group["rows"]}
    everything = [v for points in errors.values() for values in points.values() for v in values]
    if not everything:
        return []
    low, high = max(min(everything) * 0.9, 0.1), max(everything) * 1.05
    last = max(epoch for points in errors.values() for epoch in points)
    baseline = errors[group["rows"][0]["name"]]
    panels = []
    for row in group["rows"]:
        own_series = (colour(row, group), errors[row["name"]])
        series = [own_series] if row is group["rows"][0] else [("alone", baseline), own_series]
        panels.append(curves(row["label"], series, last, low, max(high, low * 1.5)))
    return panels


def errors_by_epoch(row: Record, outputs: Path) -> dict[float, list[float]]:
    """Epoch → the error in percent of each seed's run; epochs that not all have are left out."""
    events = [read_events(inside(outputs, run), "eval") for run in row["runs"]]
    runs = [{e["epoch"]: 100 - e["top1"] for e in evaluations} for evaluations in events if evaluations]
    shared = set.intersection(*(set(run) for run in runs)) if runs else set()
    return {epoch: [run[epoch] for run in runs] for epoch in sorted(shared)}


def mmd(group: Record, evidence: Record) -> tuple[list[Strip], Grid] | None:
    """MMD² between teacher and student, before and after training: drawn, and as numbers for every kernel."""
    rows = [row for row in group["rows"] if evidence["mmd"].get(row["name"], {}).get("polynomial", {}).get("after")]
    if not rows:
        return None
    mean = {
        row["name"]: {
            kernel: tuple(sum(v) / len(v) for v in (pair["before"], pair["after"]))
            for kernel, pair in evidence["mmd"][row["name"]].items()
        }
        for row in rows
    }
    axis = Axis([v for values in mean.values() for v in values["polynomial"]], log=True)
    strips = [change_strip(axis, row["label"], colour(row, group), *mean[row["name"]]["polynomial"]) for row in rows]
    header = ["method", *(f"{name}: {when}" for name in KERNELS.values() for when in ("before", "after"))]
    numbers = [[row["label"], *(f"{v:.3g}" for kernel in KERNELS for v in mean[row["name"]][kernel])] for row in rows]
    return strips, Grid(header, numbers)


def neuron_pictures(group: Record, folder: Path) -> list[tuple[str, str]]:
    """The paper's Figure 2, heat maps of single neurons on real images: (network, PNG in base64)."""
    names = {"teacher": "Teacher", **{row["name"]: row["label"] for row in group["rows"]}}
    files = {label: folder / "evidence" / f"{group['name']}-{name}.png" for name, label in names.items()}
    return [(label, base64.b64encode(file.read_bytes()).decode()) for label, file in files.items() if file.is_file()]


def tsne_panels(group: Record, evidence: Record) -> list[Scatter]:
    """The paper's Figure 5: channels of teacher and student, before and after matching."""
    panels = []
    for i, row in enumerate(row for row in group["rows"] if row["name"] in evidence["tsne"]):
        places = evidence["tsne"][row["name"]]
        text = f"{'Before matching' if row is group['rows'][0] else 'After matching'}: {row['label']}"
        panels.append(scatter(text, [("theirs", places["teacher"]), ("nst" if i else "alone", places["student"])]))
    return panels


def cost(group: Record) -> Grid | None:
    """Seconds and steps of a run."""
    rows = [row for row in group["rows"] if row["seconds"]]
    if not rows:
        return None
    base = rows[0]["seconds"]["mean"] / max(rows[0]["steps"][0], 1)
    lines = []
    for row in rows:
        step = row["seconds"]["mean"] / max(row["steps"][0], 1)
        lines.append(
            [
                row["label"], f"{row['seconds']['mean']:.1f}", f"{row['steps'][0]:,}", f"{1000 * step:.2f}",
                f"{step / base:.2f}×" if base else "–", str(row["skipped_steps"]),
            ]
        )  # fmt: skip
    return Grid(["method", "seconds a run", "steps", "ms a step", "of the first row", "skipped steps"], lines)


def origin(result: Record) -> dict[str, str]:
    """Commits, hardware and versions of all runs."""
    rows = [row for group in result["groups"] for row in group["rows"]]
    commits = sorted({commit for row in rows for commit in row["commits"]})
    texts_by_name = {"Commit": ", ".join(commits) or "none"}
    for name, key in (("Hardware", "hardware"), ("Versions", "versions")):
        texts = {json.dumps(about, sort_keys=True) for row in rows for about in row[key]}
        shown = [", ".join(f"{k} {v}" for k, v in json.loads(text).items()) for text in sorted(texts)]
        texts_by_name[name] = "; ".join(shown) or "none"
    return texts_by_name


def configurations(result: Record, outputs: Path) -> list[dict[str, str]]:
    """Every method's command, run folders and whole configuration."""
    entries = []
    for group in result["groups"]:
        for row in group["rows"]:
            config = inside(outputs, row["runs"][0]) / "config.json"
            entries.append(
                {
                    "name": f"{group['title']}: {row['label']}" if len(result["groups"]) > 1 else row["label"],
                    "command": row["command"],
                    "runs": ", ".join(row["runs"]),
                    "config": config.read_text(errors="replace") if config.is_file() else "not run",
                }
            )
    return entries
