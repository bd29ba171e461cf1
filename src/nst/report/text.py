"""A table's result as text: columns, notes, headline; for the terminal, and as Markdown, CSV and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from nst.report.render import environment, number
from nst.tables.frame import weights_text
from nst.tables.plan import folder_of
from nst.tables.result import GroupResult, Method, Result
from nst.tables.statistics import GAIN, Frame, Gain, Sample, gains, lost_text, sample

BASELINE = "Δ vs. baseline"
PUBLISHED = "Δ vs. published"
NOT_TUNED = "†"
DEFAULT = f"{NOT_TUNED} default weight, not tuned for these networks and data (or the weight in the row's label)."
WORDS = ("method", "λ", "verdict")  # columns of text; the others are numbers
AXES = {"data.limit": "training images"}  # names of settings along which groups lie
COARSE = 0.1  # percentage points of one test image, from which the headline states them

Grid = list[list[str]]
"""A table as text: the header, then the rows."""


def grid(group: GroupResult) -> Grid:
    """A group's table without the columns that say nothing: settings that all rows share, counts of lost runs that are 0."""
    methods, compared = group.methods, any(method.row.published is not None for method in group.methods)
    shared = shared_settings(group)
    varying = [key for key in dict.fromkeys(key for method in methods for key in method.settings) if key not in shared]
    lost = [name for name in ("collapsed", "diverged") if any(getattr(method, name) for method in methods)]
    weighted = ["λ"] if any(method.weights for method in methods) else []
    names = ["method", BASELINE, "last epoch", "median", *weighted, *varying, "95 % interval", "best epoch", *lost]
    names += ["published", PUBLISHED, "rank (published)", "verdict"] if compared else ["rank"]
    return [names, *([cells.get(name, "–") for name in names] for cells in map(_cells, methods))]


def _cells(method: Method) -> dict[str, str]:
    """A method as text, by column; what it lacks is left out."""
    row, last, runs = method.row, method.last, len(method.cell.runs)
    cells = {"method": row.label, "verdict": method.verdict, **method.settings}
    cells |= {name: f"{getattr(method, name)} of {runs}" for name in ("collapsed", "diverged")}
    if method.weights:
        cells["λ"] = f"{weights_text(method.weights)}{'' if row.tuned else f' {NOT_TUNED}'}"
    if method.paired:
        cells[BASELINE] = method.paired.signed
    if last:
        top5 = f" / {method.top5.mean:.2f}" if method.top5 and row.published_top5 is not None else ""
        cells |= {"last epoch": f"{last}{top5}", "median": f"{last.median:.2f}", "95 % interval": last.interval}
        cells |= {"best epoch": str(method.best), "rank": str(method.rank)}
    if row.published is not None:
        about = ", ".join(filter(None, (row.epoch, row.by)))
        cells["published"] = f"{published_text(row.published, row.published_top5)} ({about})"
    if method.difference is not None:
        cells[PUBLISHED] = f"{method.difference:+.2f} ({'best' if row.epoch == 'best' else 'last'})"
    theirs = "" if method.published_rank is None else f" ({method.published_rank})"
    return cells | {"rank (published)": cells.get("rank", "–") + theirs}


def published_text(top1: float, top5: float | None) -> str:
    """A published figure, top-5 beside it where there is one."""
    return f"{top1:.2f}" + ("" if top5 is None else f" / {top5:.2f}")


def shared_settings(group: GroupResult) -> dict[str, str]:
    """The settings that are equal in all rows that have them; rows without a finished run lack some."""
    values: dict[str, set[str]] = {}
    for key, text in (item for method in group.methods for item in method.settings.items()):
        values.setdefault(key, set()).add(text)
    return {key: next(iter(texts)) for key, texts in values.items() if len(texts) == 1}


def settings_text(group: GroupResult) -> str:
    """The settings that all rows of a group share, in a line; "" before the first run."""
    seeds = ", ".join(dict.fromkeys(str(seed) for method in group.methods for seed in method.by_seed))
    shared = shared_settings(group) | ({"seeds": seeds} if seeds else {})
    return "; ".join(f"{key} {text}" for key, text in shared.items())


def teacher_text(group: GroupResult) -> str:
    """The teacher's figure beside the published one; "" before the first run."""
    teacher, theirs = group.teacher, group.group.teacher
    if teacher is None:
        return ""
    top5 = teacher["top5"] if theirs.published_top5 is not None else None
    text = f"Teacher {teacher['name']}: {published_text(teacher['figure'], top5)} %"
    text += "" if teacher["evaluated_on"] == "test" else f" on the {teacher['evaluated_on']} images"
    if theirs.published is not None:
        text += f" (published {published_text(theirs.published, theirs.published_top5)})"
    return f"{text}."


def headline(group: GroupResult, metric: str) -> str:
    """The result in a sentence or two."""
    methods = [method for method in group.methods if method.last]
    if not methods:
        return "No run of this group is finished."
    best, first = min(methods, key=lambda method: method.rank or 0), group.methods[0]
    assert best.last is not None
    text = f"Best mean at the last epoch: {best.row.label}, {best.last.mean:.2f} % {metric}"
    if best is not first and first.last:
        text += f"; baseline {first.last.mean:.2f} %"
        if best.paired and best.paired.half_width is not None:
            sure = "more" if abs(best.paired.mean) > best.paired.half_width else "no more"
            text += f". Over the same {best.paired.n} seeds that is {best.paired.signed} points: {sure} than the variation between seeds explains"
            if best.test_images and 100 / best.test_images >= COARSE:
                count = round(abs(best.paired.mean) * best.test_images / 100)
                text += f", and about {count} of the {best.test_images:,} test images"
    return f"{text}."


def along(result: Result) -> dict[str, Any] | None:
    """What is shown of a table whose groups are values of one setting: its name, the gains, and grids of them and of what NST adds."""
    if result.plan.table.along is None or not len(result.frame):
        return None
    axis, lower, frame = AXES.get(result.plan.table.along, result.plan.table.along), result.lower, result.frame
    found, added = gains(frame, lower), gains(frame, lower, of_nst=True)
    return {"axis": axis, "gains": found, "grid": gain_grid(frame, found, axis), "added": nst_grid(frame, added, axis)}


def gain_grid(runs: Frame, found: Sequence[Gain], axis: str) -> Grid:
    """The baseline as it is, then each method's gain, with the counts of lost runs."""
    places, base = sorted(runs["at"].unique()), []
    for at in places:
        here = runs[runs["at"] == at]
        own = here[here["method"] == here["method"].iloc[0]]
        values = sample(own["value"].dropna())
        spread = "" if values is None or values.std is None else f" ± {values.std:.2f} [{values.median:.2f}]"
        base.append((f"{values.mean:.2f}{spread} ({values.n})" if values else "–") + lost_text(own))
    rows = [[gain.label, *(_at(gain, at) + gain.lost.get(at, "") for at in places)] for gain in found]
    return [[axis, *map(number, places)], ["baseline, %", *base], *rows]


def nst_grid(runs: Frame, found: Sequence[Gain], axis: str) -> Grid:
    """What NST adds, the last column its mean; the header alone if no method has NST."""
    places = sorted(runs["at"].unique())
    rows = [
        [gain.label, *(_at(gain, at) for at in places), gain.overall.gain if gain.overall else "–"] for gain in found
    ]
    return [[axis, *map(number, places), "mean"], *rows]


def _at(gain: Gain, at: float) -> str:
    return gain.points[at].gain if at in gain.points else "–"


def title(result: Result) -> str:
    """The table's title, marked if its runs differ from the table's settings."""
    title, cells = result.plan.table.title, result.plan.cells
    if all(cell.comparable for cell in cells):
        return title
    return f"{title} ({'reduced' if any(cell.reduced for cell in cells) else 'changed'})"


def banner(result: Result) -> str:
    """The first line of every rendering if the runs differ from the table's settings; else empty."""
    cells = result.plan.cells
    changes = dict.fromkeys(change for cell in cells for change in cell.changes)
    if not changes:
        return ""
    comparable, reduced = all(cell.comparable for cell in cells), any(cell.reduced for cell in cells)
    kind = "Reduced" if reduced else "Computed otherwise" if comparable else "Changed"
    return f"{kind}: {'; '.join(changes)}.{'' if comparable else ' Not comparable with published figures.'}"


def notes(result: Result) -> list[str]:
    """Notes on how to read the figures."""
    methods = result.methods
    missing = {m.row.label: len(m.cell.runs) - m.diverged - (m.last.n if m.last else 0) for m in methods}
    text = environment().get_template("notes.txt").render(
        lower=result.lower, baseline=BASELINE, compared=PUBLISHED, default=DEFAULT,
        published=any(method.row.published is not None for method in methods), by=any(method.row.by for method in methods),
        untuned=any(method.weights and not method.row.tuned for method in methods),
        splits=sorted({name for method in methods for name in method.evaluated_on}),
        collapsed=sum(method.collapsed for method in methods), diverged=sum(method.diverged for method in methods),
        missing=", ".join(f"{label} {count}" for label, count in missing.items() if count),
    )  # fmt: skip
    return [line for line in text.splitlines() if line]


def as_markdown(result: Result) -> str:
    """GitHub's tables."""
    return environment().get_template("table.md").render(
        title=title(result), banner=banner(result), along=along(result), gain=GAIN, plan=result.plan, notes=notes(result), words=WORDS,
        groups=[
            {"title": g.group.title, "grid": grid(g), "teacher": teacher_text(g), "settings": settings_text(g)} for g in result.groups
        ],
    )  # fmt: skip


def as_json(result: Result) -> str:
    """All of it, for a program."""
    table, request = result.plan.table, result.plan.request
    content = {
        "table": request.table, "command": request.command, "title": table.title, "source": table.source, "metric": table.metric,
        "along": table.along, "origin": result.origin,
        "groups": [
            {"name": g.group.name, "title": g.group.title, "at": result.plan.along.get(g.group.name), "teacher": g.teacher,
             "published": asdict(g.group.teacher), "layers": asdict(g.group.layers), "rows": [*map(_record, g.methods)]}
            for g in result.groups
        ],
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False, default=float) + "\n"


def _record(method: Method) -> dict[str, Any]:
    """A method's row in the file with its figures, unrounded."""
    figures = {key: asdict(value) if isinstance(value, Sample) else value for key, value in vars(method).items()}
    del figures["cell"]
    row = {key: value for key, value in asdict(method.row).items() if key not in ("name", "groups")}
    about = {key: getattr(method.cell, key) for key in ("command", "changes", "reduced", "comparable")}
    runs = [str(folder_of(run)) for run in method.cell.runs]
    return {"method": method.row.name, **row, **figures, **about, "runs": runs}


def as_csv(result: Result) -> str:
    """One line a method, with columns such as `last_mean`; without lists and curves."""
    about = {"table": result.plan.request.table, "metric": result.plan.table.metric}
    lines = [
        {**about, "group": group.group.name, **_record(method), "weights": weights_text(method.weights)}
        for group in result.groups
        for method in group.methods
    ]
    lists = ["overrides", "by_seed", "evaluated_on", "settings", "curve", "changes", "runs"]
    flat = [{key: value for key, value in line.items() if value is not None and key not in lists} for line in lines]
    return pd.json_normalize(flat, sep="_").to_csv(index=False)


def print_result(result: Result) -> None:
    """The tables, for the terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    console.print(Markdown(as_markdown(result)))
