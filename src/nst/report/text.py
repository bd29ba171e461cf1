"""A table's result as text: grids, sentences, notes; as Markdown, CSV and JSON. The package's Jinja templates, which escape.

HTML escapes whatever it is given; in Markdown the filters `plain` and `code` do.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict
from html import escape

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from nst.tables.file import Group
from nst.tables.frame import Record, weights_text
from nst.tables.plan import LABELS, folder_of
from nst.tables.result import Method, Result
from nst.tables.statistics import GAIN, Frame, gains, lost_text, sample

BASELINE = "Δ vs. baseline"
PUBLISHED = "Δ vs. published"
NOT_TUNED = "†"
DEFAULT = f"{NOT_TUNED} default weight, not tuned for these networks and data (or the weight in the row's label)."
WORDS = ("method", "λ", "verdict")  # columns of text; the others are numbers

Grid = list[list[str]]
"""A table as text: the header, then the rows."""


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is: on one line, with every character of their syntax neutralised."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def code(text: str) -> str:
    """A code span of Markdown that its text cannot end; pipes are neutralised, for tables."""
    text = " ".join(text.split()).replace("|", r"\|")
    longest = max(re.findall("`+", text), default="")
    space = " " if longest else ""
    return f"`{longest}{space}{text}{space}{longest}`"


def number(value: float) -> str:
    """A value of an axis: 50,000."""
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def rendered(template: str, **content: object) -> str:
    """One of `nst/report/templates`; a page of HTML is one file that fetches nothing, and its policy forbids scripts."""
    templates = Environment(
        loader=PackageLoader("nst.report"), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"plain": plain, "code": code}
    if template.endswith(".html"):
        style = templates.get_template("style.css").render()
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
        content |= {"style": Markup(style), "policy": policy}  # the package's own file
    return templates.get_template(template).render(**content)


def content(result: Result) -> Record:
    """What the page and table.md show as text."""
    plan, lower, along = result.plan, result.plan.table.metric == "error", None
    if plan.table.along is not None and len(result.frame):
        axis = "training images" if plan.table.along == "data.limit" else plan.table.along
        grid, added = gain_grids(result.frame, lower, axis)
        along = {"axis": axis, "grid": grid, "added": added}
    methods = [method for _, own, _ in result.groups for method in own]
    missing = {m.row.label: len(m.cell.runs) - m.diverged - (m.last.n if m.last else 0) for m in methods}
    notes = rendered(
        "notes.txt", methods=methods, lower=lower, baseline=BASELINE, compared=PUBLISHED, default=DEFAULT,
        splits=sorted({name for method in methods for name in method.evaluated_on}),
        missing=", ".join(f"{label} {count}" for label, count in missing.items() if count),
    )  # fmt: skip
    return {
        "title": f"{plan.table.title} ({plan.label})" if plan.label in LABELS[2:] else plan.table.title,
        "banner": plan.banner, "table": plan.table, "command": plan.request.command, "origin": result.origin,
        "along": along, "gain": GAIN, "notes": [line for line in notes.splitlines() if line], "words": WORDS,
        "default": DEFAULT, "groups": [_group(*group) for group in result.groups],
    }  # fmt: skip


def _group(group: Group, methods: list[Method], teacher: Record | None) -> Record:
    """A group: its grid, without columns that say nothing, and the settings that all rows share."""
    rows = []
    pairs = dict.fromkeys(item for method in methods for item in method.settings.items())
    counts = Counter(key for key, _ in pairs)  # values of each setting; rows without a finished run lack some
    shared = {key: text for key, text in pairs if counts[key] == 1}
    if seeds := dict.fromkeys(str(seed) for method in methods for seed in method.by_seed):
        shared["seeds"] = ", ".join(seeds)
    compared = any(method.row.published is not None for method in methods)
    lost = [name for name in ("collapsed", "diverged") if any(getattr(method, name) for method in methods)]
    for method in methods:
        row, last, top5, theirs = method.row, method.last, "", ""
        if row.published_top5 is not None:
            top5, theirs = f" / {method.top5.mean:.2f}" if method.top5 else "", f" / {row.published_top5:.2f}"
        cells = {
            "method": row.label, BASELINE: method.paired.signed if method.paired else "",
            "last epoch": f"{last}{top5}" if last else "", "median": f"{last.median:.2f}" if last else "",
            "λ": f"{weights_text(method.weights)}{'' if row.tuned else f' {NOT_TUNED}'}" if method.weights else "",
            **{key: method.settings.get(key, "") for key in counts if key not in shared},
            "95 % interval": last.interval if last else "", "best epoch": str(method.best or ""),
            **{name: f"{getattr(method, name)} of {len(method.cell.runs)}" for name in lost},
        }  # fmt: skip
        if compared:
            about, which = ", ".join(filter(None, (row.epoch, row.by))), "best" if row.epoch == "best" else "last"
            cells |= {
                "published": "" if row.published is None else f"{row.published:.2f}{theirs} ({about})",
                PUBLISHED: "" if method.difference is None else f"{method.difference:+.2f} ({which})",
                "rank (published)": f"{method.rank or '–'}{f' ({method.published_rank})' if method.published_rank else ''}",
                "verdict": method.verdict,
            }  # fmt: skip
        rows.append(cells if compared else cells | {"rank": str(method.rank or "")})
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    return {
        "title": group.title, "about": group, "methods": methods, "teacher": teacher,
        "best": next((method for method in methods if method.rank == 1), None),
        "settings": "; ".join(f"{key} {text}" for key, text in shared.items()),
        "grid": [names, *([row[name] or "–" for name in names] for row in rows)],
    }  # fmt: skip


def gain_grids(runs: Frame, lower_is_better: bool, axis: str) -> tuple[Grid, Grid]:
    """The baseline along an axis, each method's gain over it, and the lost runs; what NST adds, with the mean along the axis.

    The runs are as `nst.tables.statistics.gains` has them.
    """
    places, base = sorted(runs["at"].unique()), ["baseline, %"]
    for at in places:
        here = runs[runs["at"] == at]
        own = here[here["method"] == here["method"].iloc[0]]
        values = sample(own["value"].dropna())
        median = f" [{values.median:.2f}] (" if values and values.n > 1 else " ("
        base.append((str(values).replace(" (", median) if values else "–") + lost_text(own))
    header = [axis, *map(number, places)]
    grid, added = [header, base], [[*header, "mean"]]
    for gain in gains(runs, lower_is_better):
        texts = [(gain.points[at].gain if at in gain.points else "–") + gain.lost.get(at, "") for at in places]
        grid.append([gain.label, *texts])
    for gain in gains(runs, lower_is_better, of_nst=True):
        points = [*(gain.points.get(at) for at in places), gain.overall]
        added.append([gain.label, *(point.gain if point else "–" for point in points)])
    return grid, added


def files(result: Result, content: Record) -> dict[str, str]:
    """The table by file name: as Markdown, as JSON with all figures unrounded, and as CSV, a line a method, without lists."""
    plan, groups, lines = result.plan, [], []
    whole = {"table": plan.request.table, "metric": plan.table.metric}
    for group, methods, teacher in result.groups:
        rows = []
        for method in methods:
            found, cell = asdict(method), method.cell
            row = {key: value for key, value in found.pop("row").items() if key not in ("name", "groups")}
            del found["cell"]
            about = {"command": cell.command, "changes": cell.changes, "reduced": cell.label == "reduced"}
            about |= {"comparable": cell.label not in LABELS[2:], "runs": [str(folder_of(run)) for run in cell.runs]}
            rows.append({"method": method.row.name, **row, **found, **about})
            lines.append({**whole, "group": group.name, **rows[-1], "weights": weights_text(method.weights)})
        about = {"name": group.name, "title": group.title, "at": plan.along.get(group.name), "teacher": teacher}
        groups.append({**about, "published": asdict(group.teacher), "layers": asdict(group.layers), "rows": rows})
    whole |= {"command": plan.request.command, "title": plan.table.title, "source": plan.table.source}
    whole |= {"along": plan.table.along, "origin": result.origin, "groups": groups}
    lists = ["overrides", "by_seed", "evaluated_on", "settings", "curve", "changes", "runs"]
    flat = [{key: value for key, value in line.items() if value is not None and key not in lists} for line in lines]
    return {
        "table.md": rendered("table.md", **content),
        "table.json": json.dumps(whole, indent=1, ensure_ascii=False, default=float) + "\n",
        "table.csv": pd.json_normalize(flat, sep="_").to_csv(index=False),
    }
