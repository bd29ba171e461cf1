"""Self-contained pages, of a table and of an evaluation, that are safe to view of a folder from somebody else.

Templates escape every value from files; all figures are inline, and the page itself forbids scripts and network access.
"""

from pathlib import Path

import torch
from filelock import FileLock
from markupsafe import Markup
from rich.console import Console
from rich.markdown import Markdown

from nst.files import write_whole
from nst.report import figures, text
from nst.report.evidence import KERNELS, gather
from nst.report.text import Record
from nst.storage.folder import SUMMARY, read_json
from nst.tables.frame import opened
from nst.tables.plan import Plan, folder_of
from nst.tables.result import Method, Result, read_result
from nst.tables.statistics import gains


def write_result(plan: Plan, device: torch.device) -> None:
    """Evaluate the networks of a table, write its files and its page, and print the result."""
    folder = plan.request.folder
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # one process at a time, so that each sees all runs finished before
        gather(plan, device)
        result = read_result(plan)
        files = text.files(result, text.content(result)) | {"page.html": page(result, folder)}
        for name, content in files.items():
            write_whole(folder / name, content.encode())
    console = Console()
    (console if console.is_terminal else Console(width=220)).print(Markdown(files["table.md"]))
    print(f"written: {folder}/page.html, table.md, table.csv, table.json")


def page(result: Result, folder: Path) -> str:
    """The page of a table as HTML; `evidence/` lies in the table's folder. Raises ValueError for a damaged file of it."""
    content, drawing, configurations = text.content(result), None, []
    if content["along"]:
        lines = [gain for gain in gains(result.frame, result.plan.table.metric == "error") if gain.points]
        drawing = Markup(figures.gain_lines(lines, content["along"]["axis"])) if lines else None
    for shown in content["groups"]:
        file = folder / "evidence" / f"{shown['about'].name}.json"
        shown |= _group(shown["methods"], file, result.plan.table.metric)
    for cell in result.plan.cells:
        folders = [folder_of(run) for run in cell.runs]
        about = {"name": result.plan.name_of(cell), "command": cell.command, "runs": ", ".join(map(str, folders))}
        config = folders[0] / "config.json"
        about["config"] = config.read_text(errors="replace") if config.is_file() else "not run"
        configurations.append(about)
    return text.rendered("page.html", **content, gain_figure=drawing, configurations=configurations)


def _group(methods: list[Method], file: Path, metric: str) -> Record:
    """What the page shows of a group besides its text: figures, the evidence of its networks in a file, cost."""
    evidence: Record = {"mmd": {}, "tsne": {}, "neurons": {}, "images": 0}
    if file.exists():
        with opened(file) as found:
            evidence |= found
    drawn = [method for method in methods if method.curve]
    errors = [value for method in drawn for values in method.curve.values() for value in values]
    curves, confusions, costs, changes, tsne, first = [], [], [], [], [], 0.0
    mmd = [["method", *(f"{name}: {when}" for name in KERNELS.values() for when in ("before", "after"))]]
    for method in methods:
        label, name = method.row.label, method.row.name
        if method.curve:  # all of one extent, each beside the baseline's
            extent = (max(max(m.curve) for m in drawn), min(errors), max(errors))
            lines = {one.kind: one.curve for one in (methods[0], method) if one.curve}
            curves.append((label, Markup(figures.curves(lines, extent, f"{label}: error over epochs"))))
        measured = evidence["mmd"].get(name, {})
        if measured.get("polynomial", {}).get("after"):
            pairs = [measured[kernel][when] for kernel in KERNELS for when in ("before", "after")]
            means = [sum(values) / len(values) for values in pairs]
            changes.append((label, method.kind, *means[2:4]))  # polynomial
            mmd.append([label, *(f"{value:.3g}" for value in means)])
        if name in evidence["tsne"]:
            places = {"published": evidence["tsne"][name]["teacher"], method.kind: evidence["tsne"][name]["student"]}
            tsne.append((label, Markup(figures.scatter(places, f"channels of {label}"))))
        if (drawing := _own_confusion(folder_of(method.cell.runs[0]))) is not None:
            confusions.append((label, drawing))
        if (cost := method.seconds) and method.steps:
            step = 1000 * cost.mean / method.steps
            first = first or step
            costs.append([label, f"{cost.mean:.1f}", f"{method.steps:,}", f"{step:.2f}"])
            costs[-1].append(f"{step / first:.2f}×" if first else "–")
    points = [(m.row.label, m.kind, m.by_seed.values(), m.last, m.row.published) for m in methods]
    texts = "; ".join(f"{m.row.label}: {f'mean {m.last.mean:.2f}' if m.last else 'not run'}" for m in methods)
    names = {"teacher": "Teacher", **{method.row.name: method.row.label for method in methods}}
    known = any(method.last or method.row.published is not None for method in methods)
    splits = sorted({name for method in methods for name in method.evaluated_on})
    return {
        "points": Markup(figures.points(points, f"{metric} in percent: {texts}")) if known else None,
        "images": evidence["images"], "curves": curves, "split": "/".join(splits) or "test",
        "mmd": {"figure": Markup(figures.changes(changes, "MMD² before and after training")), "grid": mmd} if changes else None,
        "neurons": [(names[name], picture) for name, picture in evidence["neurons"].items() if name in names],
        "tsne": tsne, "confusion": confusions,
        "cost": costs and [["method", "seconds a run", "steps", "ms a step", "of the first row"], *costs],
    }  # fmt: skip


def evaluation_page(report: Record) -> str:
    """The page of `nst evaluate`, from what it writes to `evaluation.json`: every class, and the confusion matrix."""
    rows = [[entry["class"], f"{entry['images']:,}", f"{entry['top1']:.2f}"] for entry in report["classes"]]
    about = {"title": f"Classes of {report['model']}", "classes": [["class", "images", "top-1, %"], *rows]}
    return text.rendered("evaluation.html", report=report, confusion=_confusion(report), **about)


def _own_confusion(folder: Path) -> Markup | None:
    """The confusion matrix of a run's last weights on its own test images, if `nst evaluate` has kept that."""
    if not (folder / "evaluation.json").is_file():
        return None
    report, summary = (read_json(folder / name, "delete it") for name in ("evaluation.json", SUMMARY))
    found = report.get("sha256"), report["data"]["split"], report["data"]["sha256"]
    same = found == (summary["student"]["sha256"], "test", summary["data"]["sha256"])
    return _confusion(report) if same else None


def _confusion(report: Record) -> Markup | None:
    """The confusion matrix of an evaluation, each row of the counts as shares; None of more than 100 classes, or of features alone."""
    counts = report.get("confusion", [])
    if not 0 < len(counts) <= 100:
        return None
    names = report["names"]
    shares = [[100 * count / sum(row) if count else None for count in row] for row in counts]
    return Markup(figures.matrix(shares, names, names, "confusion matrix", form="{:.0f}", extent=(0, 100)))
