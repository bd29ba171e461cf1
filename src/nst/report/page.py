"""One self-contained page per table: no network access, no scripts, all figures inline.

Templates escape every value from files; the page itself forbids scripts and network access, so that it is safe to view a
folder from somebody else.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nst.report import along, figures
from nst.report.gain_figure import GainFigure, gain_figure
from nst.report.runs import read_json
from nst.report.sections import (
    Grid,
    configurations,
    cost,
    curve_panels,
    mmd,
    neuron_pictures,
    origin,
    result_rows,
    result_table,
    tsne_panels,
)
from nst.report.text import DEFAULT, NOT_TUNED, label, notes, settings_text, teacher_text, title, untuned

Record = dict[str, Any]

COARSE = 0.1  # percentage points of one test image, from which the headline states them

PLOT = {
    "width": figures.WIDTH,
    "height": figures.HEIGHT,
    "left": figures.LEFT,
    "right": figures.WIDTH - figures.RIGHT,
}


def page(result: Record, folder: Path, outputs: Path) -> str:
    """The whole page as HTML.

    Args:
        result: from `read_table`.
        folder: the table's own; `evidence/` lies there.
        outputs: the folder of all runs, for their curves.

    Raises:
        ValueError: a damaged file of the evidence or of a run.
    """
    templates = environment()
    style = templates.get_template("style.css").render()
    return templates.get_template("page.html").render(
        title=title(result),
        policy=policy(style),
        style=Markup(style),  # the package's own file
        about=about(result),
        banner=label(result),
        along=_along(result),
        groups=[_group(result, group, folder, outputs) for group in result["groups"]],
        notes=notes(result),
        command=result["command"],
        origin=origin(result),
        configurations=configurations(result, outputs),
        plot=PLOT,
        scatter_size=figures.SIZE,
    )


def environment() -> Environment:
    """The package's templates; whatever they are given is escaped."""
    return Environment(
        loader=PackageLoader("nst.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip


def gain_file(figure: GainFigure) -> str:
    """The figure as an SVG file of its own, with the page's style."""
    templates = environment()
    style = templates.get_template("style.css").render()
    return templates.get_template("gains.html").render(figure=figure, style=Markup(style)).strip() + "\n"


def _along(result: Record) -> Record | None:
    """What the page shows of a table whose groups are values of one setting."""
    values, key, lower = along.from_result(result), result["along"], result["metric"] == "error"
    if not values:
        return None
    header, *rows = along.gain_rows(values, lower, key)
    nst_header, *nst = along.nst_rows(values, lower, key)
    return {
        "heading": f"Gain over the baseline, by {along.axis_name(key)}",
        "note": f"Gain over the baseline of the same {along.axis_name(key)} in percentage points: {along.CELL}.",
        "figure": gain_figure(along.gains(values, lower), key),
        "gains": Grid(header, rows),
        "nst": Grid(nst_header, nst),
    }


def policy(style: str) -> str:
    """The content-security policy: this one style, pictures inside of the page, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def about(result: Record) -> str:
    """One line: the metric and the source of the published figures."""
    metric = "Top-1 error in percent" if result["metric"] == "error" else "Top-1 accuracy in percent"
    source = result["source"]
    return (
        f"{metric}. Published figures: {source}."
        if source != "nothing published"
        else f"{metric}. No published figures exist."
    )


def _group(result: Record, group: Record, folder: Path, outputs: Path) -> Record:
    """The content of the page for a group."""
    file = folder / "evidence" / f"{group['name']}.json"
    evidence = read_json(file) if file.exists() else {"mmd": {}, "tsne": {}, "images": 0}
    rows = group["rows"]
    return {
        "title": group["title"],
        "headline": headline(group, result["metric"]),
        "settings": settings_text(group),
        "teacher": f"{teacher_text(group['teacher'])} %." if group["teacher"] else "",
        "table": result_table(group),
        "footnote": f"{NOT_TUNED} {DEFAULT}." if untuned(rows) else "",
        "metric": result["metric"],
        "results": result_rows(group),
        "published": any(row["published"] is not None for row in rows),
        "curves": curve_panels(group, outputs),
        "split": "/".join(sorted({name for row in rows for name in row["evaluated_on"]})) or "test",
        "mmd": mmd(group, evidence),
        "layers": group["layers"],
        "images": evidence["images"],
        "neurons": neuron_pictures(group, folder),
        "tsne": tsne_panels(group, evidence),
        "cost": cost(group),
    }


def headline(group: Record, metric: str) -> str:
    """The result in a sentence or two."""
    rows = [row for row in group["rows"] if row["last"]]
    if not rows:
        return "No run of this group is finished."
    best, first = min(rows, key=lambda row: row["rank"]), group["rows"][0]
    text = f"Best mean at the last epoch: {best['label']}, {best['last']['mean']:.2f} % {metric}"
    if best is not first and first["last"]:
        text += f"; baseline {first['last']['mean']:.2f} %"
        if (best["paired"] or {}).get("half_width") is not None:
            text += f". {_against_baseline(best)}"
    return f"{text}."


def _against_baseline(row: Record) -> str:
    """The paired difference of a row of two seeds or more, beside the variation between seeds and one test image."""
    pair, images = row["paired"], row["test_images"]
    sure = "more" if abs(pair["mean"]) > pair["half_width"] else "no more"
    text = f"Over the same {pair['n']} seeds that is {pair['mean']:+.2f} ± {pair['half_width']:.2f} points: {sure} than the variation between seeds explains"
    if images and 100 / images >= COARSE:
        count = abs(pair["mean"]) * images / 100
        text += f", and {count:.1f} of the {images:,} test images"
    return text
