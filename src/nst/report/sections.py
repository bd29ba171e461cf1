"""The parts of a group's page: HTML from the result, the runs' logs and the evidence."""

import base64
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from nst.report.figures import Axis, change_strip, curves, result_strip, scatter
from nst.report.runs import read_events
from nst.report.text import cells, columns, teacher_text

Record = dict[str, Any]
KERNELS = {"linear": "linear", "polynomial": "polynomial (xᵀy)²", "gaussian": "Gaussian"}


def colour(row: Record, group: Record) -> str:
    """The row's colour class: the student alone, a method with NST, another one."""
    if row is group["rows"][0]:
        return "alone"
    return "nst" if "NST" in row["label"] or row["name"].split("-")[0] in ("paper", "official", "crd") else "other"


def html_table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], best: int | None = None, words: bool = False
) -> str:
    """A table that scrolls sideways on a phone, its first column staying."""

    def line(tag: str, texts: tuple[str, ...]) -> str:
        open_last = f'<{tag} class="words">' if words else f"<{tag}>"
        opens = [f"<{tag}>"] * (len(texts) - 1) + [open_last]
        return "".join(f"{o}{escape(text)}</{tag}>" for o, text in zip(opens, texts, strict=True))

    opens = ['<tr class="best">' if i == best else "<tr>" for i in range(len(rows))]
    body = "".join(f"{o}{line('td', row)}</tr>" for o, row in zip(opens, rows, strict=True))
    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    return f'<div class="card scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def result_table(group: Record) -> str:
    """The table itself."""
    shown = columns(group)
    header = tuple(name for _, name in shown)
    rows = [tuple(cells(row)[i] for i, _ in shown) for row in group["rows"]]
    best = next((i for i, row in enumerate(group["rows"]) if row["rank"] == 1), None)
    said = f'<p class="mute">{escape(teacher_text(group["teacher"]))} %.</p>' if group["teacher"] else ""
    return html_table(header, rows, best, words=header[-1] == "verdict") + said


def key(*entries: tuple[str, str]) -> str:
    """A legend: (class, meaning)."""
    return '<div class="key">' + "".join(f'<span class="{c}">{escape(text)}</span>' for c, text in entries) + "</div>"


def result_rows(group: Record, metric: str) -> list[str]:
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
    lines = []
    for row in rows:
        last = row["last"] or {"mean": None, "half_width": None}
        strip = result_strip(
            axis, list(row["by_seed"].values()), last["mean"], last["half_width"], row["published"], colour(row, group)
        )
        lines.append(f'<div class="name">{escape(row["label"])}</div>{strip}')
    entries = [("nst", "mean, 95 % interval; faint: each seed")]
    if any(row["published"] is not None for row in rows):
        entries.append(("theirs k-theirs", "published"))
    return [
        f"<h3>Top-1 {metric} at the last epoch, %</h3>", key(*entries),
        f'<div class="card"><div class="rows">{"".join(lines)}<div class="corner"></div>{axis.scale()}</div></div>',
    ]  # fmt: skip


def curve_panels(group: Record, outputs: Path) -> list[str]:
    """The paper's Figure 4: a panel a method, the student alone behind each."""
    found = {row["name"]: errors_by_epoch(row, outputs) for row in group["rows"]}
    everything = [v for points in found.values() for values in points.values() for v in values]
    if not everything:
        return []
    low, high = max(min(everything) * 0.9, 0.1), max(everything) * 1.05
    last = max(epoch for points in found.values() for epoch in points)
    baseline = found[group["rows"][0]["name"]]
    panels = []
    for row in group["rows"]:
        own = (colour(row, group), found[row["name"]])
        series = [own] if row is group["rows"][0] else [("alone", baseline), own]
        drawing = curves(f"{row['label']}: test error over epochs", series, last, low, max(high, low * 1.5))
        panels.append(f"<figure><figcaption>{escape(row['label'])}</figcaption>{drawing}</figure>")
    split = "/".join(sorted({name for row in group["rows"] for name in row["evaluated_on"]})) or "test"
    return [
        "<h3>Training curves</h3>",
        f'<p class="mute">Error on the {split} images in %, logarithmic, over epochs. Line: mean over seeds; band: lowest to '
        "highest seed; grey: the student alone.</p>",
        f'<div class="card panels">{"".join(panels)}</div>',
    ]


def errors_by_epoch(row: Record, outputs: Path) -> dict[float, list[float]]:
    """Epoch → the error in percent of each seed's run; epochs that not all have are left out."""
    runs = [{e["epoch"]: 100 - e["top1"] for e in read_events(outputs / run, "eval")} for run in row["runs"]]
    runs = [run for run in runs if run]
    shared = set.intersection(*(set(run) for run in runs)) if runs else set()
    return {epoch: [run[epoch] for run in runs] for epoch in sorted(shared)}


def mmd_rows(group: Record, evidence: Record) -> list[str]:
    """MMD² between teacher and student, before and after training."""
    rows = [row for row in group["rows"] if evidence["mmd"].get(row["name"], {}).get("polynomial", {}).get("after")]
    if not rows:
        return []
    mean = {
        row["name"]: {
            kernel: tuple(sum(v) / len(v) for v in (pair["before"], pair["after"]))
            for kernel, pair in evidence["mmd"][row["name"]].items()
        }
        for row in rows
    }
    axis = Axis([v for found in mean.values() for v in found["polynomial"]], log=True)
    lines = []
    for row in rows:
        before, after = mean[row["name"]]["polynomial"]
        strip = change_strip(axis, before, after, colour(row, group))
        lines.append(f'<div class="name">{escape(row["label"])}</div>{strip}')
    header = ("method", *(f"{name}: {when}" for name in KERNELS.values() for when in ("before", "after")))
    numbers = [(row["label"], *(f"{v:.3g}" for kernel in KERNELS for v in mean[row["name"]][kernel])) for row in rows]
    taps = group["taps"]
    return [
        "<h3>Distance of the selectivity patterns: MMD²</h3>",
        f'<p class="mute">Equation 4 of the paper between teacher (layer "{taps["teacher"]}") and student (layer '
        f'"{taps["student"]}"), mean over {evidence["images"]} test images and the seeds; the same measure for every method, '
        "whatever it minimised. Drawn: polynomial kernel, logarithmic.</p>",
        key(("alone k-hollow", "untrained student"), ("alone", "trained")),
        f'<div class="card"><div class="rows">{"".join(lines)}<div class="corner"></div>{axis.scale()}</div></div>',
        f"<details><summary>All kernels</summary>{html_table(header, numbers)}</details>",
    ]


def neuron_pictures(group: Record, folder: Path) -> list[str]:
    """The paper's Figure 2: what single neurons select on real images."""
    figures = []
    labels = {"teacher": "Teacher", **{row["name"]: row["label"] for row in group["rows"]}}
    for name, text in labels.items():
        file = folder / "evidence" / f"{group['name']}-{name}.png"
        if file.is_file():
            data = base64.b64encode(file.read_bytes()).decode()
            source = f"data:image/png;base64,{data}"
            figures.append(
                f'<figure><img src="{source}" alt="Heat maps: {escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'
            )
    if not figures:
        return []
    return [
        "<h3>What single neurons select</h3>",
        '<p class="mute">As the paper\'s Figure 2: a row an image of the test set, then where the four most active channels '
        "of the last stage respond (after the ReLU; each map scaled to its own maximum). First seed.</p>",
        f'<div class="card pair">{"".join(figures)}</div>',
    ]


def tsne_panels(group: Record, evidence: Record) -> list[str]:
    """The paper's Figure 5: channels of teacher and student, before and after matching."""
    figures = []
    for i, row in enumerate(row for row in group["rows"] if row["name"] in evidence["tsne"]):
        places = evidence["tsne"][row["name"]]
        text = f"{'Before matching' if row is group['rows'][0] else 'After matching'}: {row['label']}"
        drawing = scatter(text, [("theirs", places["teacher"]), ("nst" if i else "alone", places["student"])])
        figures.append(f"<figure>{drawing}<figcaption>{escape(text)}</figcaption></figure>")
    if not figures:
        return []
    return [
        "<h3>Channels of teacher and student</h3>",
        "<p class=\"mute\">As the paper's Figure 5: every dot is a channel's unit map on the first test image; t-SNE lays "
        "teacher and student out together. The more the colours mix, the closer the distributions. First seed.</p>",
        key(("theirs", "teacher"), ("alone", "student, trained alone"), ("nst", "student, trained with NST")),
        f'<div class="card pair">{"".join(figures)}</div>',
    ]


def cost(group: Record) -> list[str]:
    """Seconds and steps of a run."""
    rows = [row for row in group["rows"] if row["seconds"]]
    if not rows:
        return []
    base = rows[0]["seconds"]["mean"] / rows[0]["steps"][0]
    lines = []
    for row in rows:
        step = row["seconds"]["mean"] / row["steps"][0]
        lines.append(
            (
                row["label"], f"{row['seconds']['mean']:.1f}", f"{row['steps'][0]:,}", f"{1000 * step:.2f}",
                f"{step / base:.2f}×", str(row["skipped_steps"]),
            )
        )  # fmt: skip
    header = ("method", "seconds a run", "steps", "ms a step", "of the student alone", "skipped steps")
    return [
        "<h3>Cost</h3>",
        '<p class="mute">Training and evaluation of one student, mean over seeds, as it ran (other work on the machine '
        "included).</p>",
        html_table(header, lines),
    ]


def provenance(result: Record, outputs: Path) -> Iterator[str]:
    """Commands, commits, versions, hardware and whole configurations."""
    rows = [row for group in result["groups"] for row in group["rows"]]
    commits = sorted({commit for row in rows for commit in row["commits"]})
    hardware = {json.dumps(h, sort_keys=True) for row in rows for h in row["hardware"]}
    versions = {json.dumps(v, sort_keys=True) for row in rows for v in row["versions"]}
    yield f"<p>Commit: <code>{escape(', '.join(commits) or 'none')}</code></p>"
    for title, found in (("Hardware", hardware), ("Versions", versions)):
        texts = [", ".join(f"{k} {v}" for k, v in json.loads(text).items()) for text in sorted(found)]
        yield f'<p class="mute">{title}: {escape("; ".join(texts) or "none")}</p>'
    yield "<h3>Every method's command and configuration</h3>"
    for group in result["groups"]:
        for row in group["rows"]:
            name = f"{group['title']}: {row['label']}" if len(result["groups"]) > 1 else row["label"]
            config = outputs / row["runs"][0] / "config.json"
            text = config.read_text() if config.is_file() else "not run"
            folders = ", ".join(row["runs"])
            yield (
                f"<details><summary>{escape(name)}</summary><p><code>{escape(row['command'])}</code></p>"
                f'<p class="mute">Runs: <code>{escape(folders)}</code></p><pre>{escape(text)}</pre></details>'
            )
