"""One self-contained page per table: no network access, no scripts, all figures inline.

Templates escape every value from files; the page itself forbids scripts and network access, so that it is safe to view a
folder from somebody else.
"""

import base64
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from nst.report import figures
from nst.report.render import html_page
from nst.report.text import DEFAULT, along, banner, grid, headline, notes, settings_text, teacher_text, title
from nst.tables.result import GroupResult, Result, RowResult
from nst.tables.statistics import GAIN

KERNELS = {"linear": "linear", "polynomial": "polynomial (xᵀy)²", "gaussian": "Gaussian"}


def page(result: Result, folder: Path) -> str:
    """The whole page as HTML.

    Args:
        folder: the table's own; `evidence/` lies there.

    Raises:
        ValueError: a damaged file of the evidence.
    """
    gains = along(result)
    return html_page(
        "page.html",
        title=title(result),
        result=result,
        banner=banner(result),
        along=gains,
        gain=GAIN,
        gain_figure=_figure(figures.gain_lines(gains["gains"], gains["axis"])) if gains else None,
        groups=[_group(result, group, folder) for group in result.groups],
        notes=notes(result),
        configurations=[_configuration(result, group, row) for group in result.groups for row in group.rows],
    )


def _figure(svg: str | None) -> Markup | None:
    """A drawing of this package: matplotlib has escaped its texts."""
    return None if svg is None else Markup(svg)


def _group(result: Result, group: GroupResult, folder: Path) -> dict[str, Any]:
    """The content of the page for a group."""
    rows, file = group.rows, folder / "evidence" / f"{group.name}.json"
    try:
        evidence = json.loads(file.read_bytes()) if file.exists() else {"mmd": {}, "tsne": {}, "images": 0}
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    drawn = [row for row in rows if row.curve]
    errors = [value for row in drawn for values in row.curve.values() for value in values]
    extent = (max(max(row.curve) for row in drawn), min(errors), max(errors)) if drawn else (0.0, 0.0, 0.0)
    header, *lines = grid(group)
    return {
        "title": group.title,
        "headline": headline(group, result.metric),
        "settings": settings_text(group),
        "teacher": teacher_text(group),
        "grid": [header, *lines],
        "best": next((i for i, row in enumerate(rows) if row.rank == 1), None),
        "words": header[-1] == "verdict",
        "footnote": DEFAULT if any(row.weights and not row.tuned for row in rows) else "",
        "kinds": [*dict.fromkeys(row.kind for row in rows)],
        "published": any(row.published is not None for row in rows),
        "points": _figure(_points(rows, result.metric)),
        "curves": [(row.label, _figure(figures.curves(row, rows[0], extent))) for row in drawn],
        "split": "/".join(sorted({name for row in rows for name in row.evaluated_on})) or "test",
        "mmd": _mmd(rows, evidence["mmd"]),
        "layers": group.layers,
        "images": evidence["images"],
        "neurons": _pictures(group, file),
        "tsne": [_tsne(row, evidence["tsne"][row.name]) for row in rows if row.name in evidence["tsne"]],
        "cost": _cost(rows),
    }


def _points(rows: list[RowResult], metric: str) -> str | None:
    """The figure of results; None where nothing is finished and nothing published."""
    if not any(row.last or row.published is not None for row in rows):
        return None
    texts = [f"{row.label}: {f'mean {row.last.mean:.2f}' if row.last else 'not run'}" for row in rows]
    lines = [figures.Point(row.label, row.kind, row.by_seed.values(), row.last, row.published) for row in rows]
    return figures.points(lines, f"{metric} in percent: {'; '.join(texts)}")


def _mmd(rows: list[RowResult], measured: dict[str, Any]) -> dict[str, Any] | None:
    """MMD² between teacher and student, before and after training: drawn, and as numbers for every kernel."""
    found = [row for row in rows if measured.get(row.name, {}).get("polynomial", {}).get("after")]
    if not found:
        return None
    means = {
        (row.name, kernel): [sum(values) / len(values) for values in (pair["before"], pair["after"])]
        for row in found
        for kernel, pair in measured[row.name].items()
    }
    before, after = zip(*(means[row.name, "polynomial"] for row in found), strict=True)
    lines = [(row.label, row.kind, b, a) for row, b, a in zip(found, before, after, strict=True)]
    header = ["method", *(f"{name}: {when}" for name in KERNELS.values() for when in ("before", "after"))]
    texts = [[row.label, *(f"{v:.3g}" for kernel in KERNELS for v in means[row.name, kernel])] for row in found]
    return {"figure": _figure(figures.changes(lines, "MMD² before and after training")), "grid": [header, *texts]}


def _pictures(group: GroupResult, file: Path) -> list[tuple[str, str]]:
    """The paper's Figure 2, heat maps of single neurons on real images: (network, PNG in base64)."""
    names = {"teacher": "Teacher", **{row.name: row.label for row in group.rows}}
    files = {label: file.with_name(f"{group.name}-{name}.png") for name, label in names.items()}
    return [(label, base64.b64encode(file.read_bytes()).decode()) for label, file in files.items() if file.is_file()]


def _tsne(row: RowResult, places: dict[str, Any]) -> tuple[str, Markup | None]:
    """The paper's Figure 5: channels of teacher and student."""
    drawing = figures.scatter({"published": places["teacher"], row.kind: places["student"]}, f"channels of {row.label}")
    return row.label, _figure(drawing)


def _cost(rows: list[RowResult]) -> list[list[str]] | None:
    """Seconds and steps of a run, measured."""
    lines, first = [], None
    for row in rows:
        if row.seconds and row.steps:
            step = row.seconds.mean / row.steps
            first = first or step
            ratio = f"{step / first:.2f}×" if first else "–"
            lines.append([row.label, f"{row.seconds.mean:.1f}", f"{row.steps:,}", f"{1000 * step:.2f}", ratio])
    return [["method", "seconds a run", "steps", "ms a step", "of the first row"], *lines] if lines else None


def _configuration(result: Result, group: GroupResult, row: RowResult) -> dict[str, str]:
    """A method's command, run folders and whole configuration."""
    file = Path(row.runs[0], "config.json")
    return {
        "name": f"{group.title}: {row.label}" if len(result.groups) > 1 else row.label,
        "command": row.command,
        "runs": ", ".join(row.runs),
        "config": file.read_text(errors="replace") if file.is_file() else "not run",
    }
