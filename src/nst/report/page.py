"""Self-contained pages, of a table and of a run: no network access, no scripts, all figures inline.

Templates escape every value from files; the page itself forbids scripts and network access, so that it is safe to view a
folder from somebody else.
"""

import json
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from markupsafe import Markup

from nst.files import write_whole
from nst.report import figures, text
from nst.report.evidence import gather
from nst.report.render import html_page
from nst.tables.plan import Plan, folder_of
from nst.tables.result import GroupResult, Method, Result, read_result
from nst.tables.statistics import GAIN

KERNELS = {"linear": "linear", "polynomial": "polynomial (xᵀy)²", "gaussian": "Gaussian"}
MOST_CLASSES = 100  # of a confusion matrix that is drawn

Record = dict[str, Any]


def write_result(plan: Plan, device: torch.device) -> None:
    """Evaluate the networks of a table, write its files and its page, and print the result."""
    folder = plan.request.folder
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # one process at a time, so that each sees all runs finished before
        gather(plan, device)
        result = read_result(plan)
        for name, content in (("json", text.as_json), ("csv", text.as_csv), ("md", text.as_markdown)):
            write_whole(folder / f"table.{name}", content(result).encode())
        write_whole(folder / "page.html", page(result, folder).encode())
    text.print_result(result)
    print(f"written: {folder}/page.html, table.md, table.csv, table.json")


def page(result: Result, folder: Path) -> str:
    """The page of a table as HTML.

    Args:
        folder: the table's own; `evidence/` lies there.

    Raises:
        ValueError: a damaged file of the evidence.
    """
    gains = text.along(result)
    lines = [gain for gain in gains["gains"] if gain.points] if gains else []
    several = len(result.groups) > 1
    return html_page(
        "page.html", title=text.title(result), table=result.plan.table, command=result.plan.request.command, origin=result.origin,
        banner=text.banner(result), along=gains, gain=GAIN, notes=text.notes(result),
        gain_figure=Markup(figures.gain_lines(lines, gains["axis"])) if gains and lines else None,
        groups=[_group(result, group, folder) for group in result.groups],
        configurations=[
            _configuration(f"{group.group.title}: {method.row.label}" if several else method.row.label, method)
            for group in result.groups
            for method in group.methods
        ],
    )  # fmt: skip


def _group(result: Result, group: GroupResult, folder: Path) -> Record:
    """The content of the page for a group."""
    methods, file, metric = group.methods, folder / "evidence" / f"{group.group.name}.json", result.plan.table.metric
    try:
        evidence = (
            json.loads(file.read_bytes()) if file.exists() else {"mmd": {}, "tsne": {}, "neurons": {}, "images": 0}
        )
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    shown, names = text.grid(group), {"teacher": "Teacher", **{method.row.name: method.row.label for method in methods}}
    return {
        "title": group.group.title, "headline": text.headline(group, metric), "settings": text.settings_text(group),
        "teacher": text.teacher_text(group), "layers": group.group.layers, "images": evidence["images"],
        "grid": shown, "words": shown[0][-1] == "verdict",
        "best": next((i for i, method in enumerate(methods) if method.rank == 1), None),
        "footnote": text.DEFAULT if any(method.weights and not method.row.tuned for method in methods) else "",
        "kinds": [*dict.fromkeys(method.kind for method in methods)],
        "published": any(method.row.published is not None for method in methods),
        "points": _points(methods, metric), "curves": _curves(methods),
        "split": "/".join(sorted({name for method in methods for name in method.evaluated_on})) or "test",
        "mmd": _mmd(methods, evidence["mmd"]), "neurons": [(names[name], picture) for name, picture in evidence["neurons"].items() if name in names],
        "tsne": [(m.row.label, _tsne(m, evidence["tsne"][m.row.name])) for m in methods if m.row.name in evidence["tsne"]],
        "confusion": _confusions(methods), "cost": _cost(methods),
    }  # fmt: skip


def _points(methods: list[Method], metric: str) -> Markup | None:
    """The figure of results; None where nothing is finished and nothing published."""
    if not any(method.last or method.row.published is not None for method in methods):
        return None
    texts = [f"{m.row.label}: {f'mean {m.last.mean:.2f}' if m.last else 'not run'}" for m in methods]
    lines = [figures.Point(m.row.label, m.kind, m.by_seed.values(), m.last, m.row.published) for m in methods]
    return Markup(figures.points(lines, f"{metric} in percent: {'; '.join(texts)}"))


def _curves(methods: list[Method]) -> list[tuple[str, Markup]]:
    """Training curves: a panel a method, all of one extent, each beside the baseline's."""
    drawn = [method for method in methods if method.curve]
    errors = [value for method in drawn for values in method.curve.values() for value in values]
    panels = []
    for method in drawn:
        extent = (max(max(m.curve) for m in drawn), min(errors), max(errors))
        lines = {one.kind: one.curve for one in (methods[0], method) if one.curve}
        panels.append(
            (method.row.label, Markup(figures.curves(lines, extent, f"{method.row.label}: error over epochs")))
        )
    return panels


def _mmd(methods: list[Method], measured: Record) -> Record | None:
    """MMD² between teacher and student, before and after training: drawn, and as numbers for every kernel."""
    found = [method for method in methods if measured.get(method.row.name, {}).get("polynomial", {}).get("after")]
    if not found:
        return None
    lines, texts = [], []
    for method in found:
        means = {kernel: [sum(values) / len(values) for values in (pair["before"], pair["after"])] for kernel, pair in measured[method.row.name].items()}  # fmt: skip
        lines.append((method.row.label, method.kind, *means["polynomial"]))
        texts.append([method.row.label, *(f"{value:.3g}" for kernel in KERNELS for value in means[kernel])])
    header = ["method", *(f"{name}: {when}" for name in KERNELS.values() for when in ("before", "after"))]
    return {"figure": Markup(figures.changes(lines, "MMD² before and after training")), "grid": [header, *texts]}


def _tsne(method: Method, places: Record) -> Markup:
    """The paper's Figure 5: channels of teacher and student."""
    groups = {"published": places["teacher"], method.kind: places["student"]}
    return Markup(figures.scatter(groups, f"channels of {method.row.label}"))


def _confusions(methods: list[Method]) -> list[tuple[str, Markup]]:
    """The confusion matrices of the first runs that `nst evaluate` has measured."""
    found = []
    for method in methods:
        file = folder_of(method.cell.runs[0]) / "evaluation.json"
        if file.is_file() and (drawing := _confusion(json.loads(file.read_bytes()))):
            found.append((method.row.label, drawing))
    return found


def _cost(methods: list[Method]) -> list[list[str]] | None:
    """Seconds and steps of a run, measured."""
    lines, first = [], None
    for method in methods:
        if method.seconds and method.steps:
            step = method.seconds.mean / method.steps
            first = first or step
            ratio = f"{step / first:.2f}×" if first else "–"
            lines.append(
                [method.row.label, f"{method.seconds.mean:.1f}", f"{method.steps:,}", f"{1000 * step:.2f}", ratio]
            )
    return [["method", "seconds a run", "steps", "ms a step", "of the first row"], *lines] if lines else None


def _configuration(name: str, method: Method) -> dict[str, str]:
    """A method's command, run folders and whole configuration."""
    folders = [folder_of(run) for run in method.cell.runs]
    file = folders[0] / "config.json"
    config = file.read_text(errors="replace") if file.is_file() else "not run"
    return {"name": name, "command": method.cell.command, "runs": ", ".join(map(str, folders)), "config": config}


def evaluation_page(report: Record) -> str:
    """The page of `nst evaluate`, from what it writes to `evaluation.json`: every class, and the confusion matrix."""
    rows = [[entry["class"], f"{entry['images']:,}", f"{entry['top1']:.2f}"] for entry in report["classes"]]
    grid = [["class", "images", "top-1, %"], *rows]
    return html_page(
        "evaluation.html",
        title=f"Classes of {report['model']}",
        report=report,
        classes=grid,
        confusion=_confusion(report),
    )


def _confusion(report: Record) -> Markup | None:
    """The confusion matrix of an evaluation, each row of the counts as shares; None of more than 100 classes."""
    counts = report.get("confusion", [])
    if len(counts) > MOST_CLASSES:
        return None
    shares = [[100 * count / sum(row) if count else None for count in row] for row in counts]
    return Markup(
        figures.matrix(shares, report["names"], report["names"], "confusion matrix", form="{:.0f}", extent=(0, 100))
    )


def gradient_page(result: Record) -> str:
    """The page of a run's gradients: how long that of each term is, and the cosines between all of them.

    Args:
        result: run, about (lines of text) and measured: "before training" and so on → a record for each term with term, weight,
            value, relative_norm and cosines by term, as `TermGradient` has them.
    """
    sections = []
    for when, terms in result["measured"].items():
        names = [term["term"] for term in terms]
        drawing = figures.matrix(
            cosines(terms), names, names, "cosines between the gradients", "{:+.2f}", extent=(0, 1)
        )
        sections.append({"when": when, "norms": norms(terms), "cosines": Markup(drawing)})
    return html_page("gradients.html", title=f"Gradients of {result['run']}", **result | {"sections": sections})


def norms(terms: list[Record]) -> list[list[str]]:
    """Header, and a row a term: weight, value, the length of its weighted gradient, and its share of the sum of these lengths."""
    total = sum(term["relative_norm"] for term in terms) or 1.0
    rows = [
        [
            term["term"], f"{term['weight']:g}", f"{term['value']:.4g}", f"{term['relative_norm']:.3g}",
            f"{100 * term['relative_norm'] / total:.0f} %",
        ]
        for term in terms
    ]  # fmt: skip
    return [["term", "λ", "value", "λ · |gradient|", "of the sum"], *rows]


def cosines(terms: list[Record]) -> list[list[float]]:
    """The matrix: a row a term, its cosine to each term."""
    return [[term["cosines"][other["term"]] for other in terms] for term in terms]
