"""The table that an export prints."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nst.export.finished import FinishedRun

NAMES = {
    "teacher": "teacher (memory)",
    "student": "student (memory)",
    "safetensors": "safetensors + JSON",
    "torch": "torch.export",
    "onnx": "ONNX",
}


def cost_rows(run: FinishedRun, report: dict[str, Any]) -> list[list[str]]:
    """Header, then a row a network or file: name, size, accuracy, difference, latencies."""
    rows = [["", "size", "top-1", "max. diff.", *(f"batch {b}" for b in report["latency"])]]
    about = {"student": report["student"], **report["files"]}
    if report["teacher"] is not None:
        about = {"teacher": {**report["teacher"], "top1": run.summary["teacher"]["top1"]}, **about}
    for name, measured in about.items():
        difference = f"{measured['max_difference']:.1e}" if "max_difference" in measured else ""
        times = [f"{at[name]['milliseconds']:.2f} ms" if name in at else "" for at in report["latency"].values()]
        rows.append([NAMES[name], size(measured["bytes"]), f"{measured['top1']:.2f} %", difference, *times])
    return rows


def footnote(run: FinishedRun, report: dict[str, Any]) -> str:
    """The images and hardware of the measurements."""
    hardware, text = report["hardware"], f"Top-1 on {report['images']:,} test images"
    if report["teacher"] is not None:
        teacher = run.summary["teacher"]
        text += f" (teacher: on {teacher['images']:,} {teacher['evaluated_on']} images, when the student was trained)"
    calls = min(latency["calls"] for at in report["latency"].values() for latency in at.values())
    return f"{text}; latency: median of {calls} calls or more, {hardware['device']}, {hardware['threads']} thread(s)."


def size(count: int) -> str:
    """Bytes as text."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def counts(report: dict[str, Any], who: str) -> str:
    """Parameters and FLOPs of teacher or student as text."""
    about = report[who]
    return f"{about['parameters']:,} parameters, {about['flops'] / 1e6:,.1f} MFLOP an image"


def print_table(run: FinishedRun, report: dict[str, Any], folder: Path) -> None:
    """Print the comparison and the folder of the files."""
    header, *rows = cost_rows(run, report)
    table = Table(title=f"{run.settings.model['name']}, verified on {report['images']:,} test images")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for who in ("teacher", "student"):
        if report[who] is not None:
            console.print(f"{who}: {counts(report, who)}", highlight=False)
    console.print(footnote(run, report), highlight=False)
    if "onnx" not in report["files"]:
        console.print(
            "no ONNX file: formats=[onnx] writes one (pip install 'nst[onnx]')", highlight=False, markup=False
        )
    console.print(f"written to {folder}", highlight=False, soft_wrap=True)
