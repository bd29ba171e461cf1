"""A table of known runs: their folders as real runs leave them, written by hand."""

import base64
import io
import json
import tempfile
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from nst.config import RunConfig
from nst.tables.command import Request
from nst.tables.plan import Plan, folder_of, make_plan

TEXT = """title: A test
source: a paper
metric: error
seeds: 3
overrides: [data=digits, model=resnet8, teacher=resnet20, trainer.epochs=2]
groups:
  - name: small
    title: big → small
    teacher: {published: 4.04}
    rows:
      - {name: student, label: Baseline, overrides: [loss=ce], published: 5.80}
      - {name: kd, label: KD, overrides: [loss=kd], published: 4.47}
      - {name: nst_poly, label: NST <poly>, overrides: [loss=nst_poly], published: 4.39}
"""
ACCURACIES: dict[str, list[list[float]]] = {  # of each seed by epoch; the last run of NST is not finished
    "student": [[90.0, 94.0], [89.0, 95.0], [88.0, 93.0]],
    "kd": [[93.0, 95.0], [92.0, 96.0], [97.0, 94.0]],
    "nst_poly": [[93.0, 95.5], [92.0, 95.6], [91.0]],
}


@cache
def planned(*overrides: str, epochs: float = 1.0) -> Plan:
    """The plan of a table of three methods."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "table.yaml")
        file.write_text(TEXT)
        return make_plan(Request(str(file), epochs=epochs, overrides=[*overrides]))


def write_table(folder: Path, *overrides: str) -> Plan:
    """Such a plan, and the folders of its runs."""
    plan = deepcopy(planned(*overrides))
    plan.request.outputs = str(folder / "outputs")
    for cell in plan.cells:
        for run, accuracies in zip(cell.runs, ACCURACIES[cell.row.name], strict=True):
            run.outputs = plan.request.outputs
            write_run(run, accuracies)
    return plan


def write_run(run: RunConfig, accuracies: list[float]) -> Path:
    """The folder of a run of two epochs; of fewer, it is not finished."""
    folder, finished = folder_of(run), len(accuracies) == 2
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(run)))
    lines: list[dict[str, Any]] = [{"kind": "eval", "epoch": e, "top1": a} for e, a in enumerate(accuracies, 1)]
    for epoch, top1 in ((0.5, 50.0), (1.5, 65.0), (2.0, 75.0))[: 3 if finished else 1]:
        lines.append({"kind": "train", "epoch": epoch, "top1": top1, "timing": {"seconds": 3 * epoch}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')
    best = max(range(len(accuracies)), key=lambda i: accuracies[i])
    teacher = {"name": "big", "top1": 96.0, "top5": 99.9, "parameters": 70, "weights": "w", "sha256": "0"}
    summary = {
        "test": {"top1": accuracies[-1], "top5": 99.0, "images": 360}, "best": {"top1": accuracies[best], "epoch": best + 1},
        "evaluated_on": "test", "seconds": 12.0 + run.seed, "steps": 20, "commit": "abc", "versions": {"torch": "2"},
        "hardware": {"device": "cpu", "threads": 1}, "data": {"sha256": "d"},
        "student": {"sha256": "s"}, "teacher": None if run.teacher.model is None else teacher,
    }  # fmt: skip
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def change(file: Path, key: str, value: Any) -> None:
    """Another value at a dotted key of a JSON file."""
    content = json.loads(file.read_text())
    *parents, last = key.split(".")
    node = content
    for parent in parents:
        node = node[parent]
    node[last] = value
    file.write_text(json.dumps(content))


def runs_of(plan: Plan, name: str) -> list[Path]:
    """The folders of a row."""
    return [folder_of(run) for cell in plan.cells if cell.row.name == name for run in cell.runs]


def write_evidence(folder: Path) -> None:
    """What looking into the networks leaves in a table's folder."""
    values = {kernel: {"before": [0.2, 0.3], "after": [0.01, 0.02]} for kernel in ("linear", "polynomial", "gaussian")}
    points, picture = [[x % 5, x % 3] for x in range(12)], io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "PNG")
    content = {
        "images": 256, "mmd": {"student": values, "nst_poly": values},
        "tsne": {name: {"teacher": points, "student": points} for name in ("student", "nst_poly")},
        "neurons": dict.fromkeys(("teacher", "nst_poly"), base64.b64encode(picture.getvalue()).decode()),
    }  # fmt: skip
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "small.json").write_text(json.dumps(content))
