"""Run folders and a plan as real runs leave them, written by hand with known numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROWS: dict[str, tuple[str, float | None, dict[int, list[float]]]] = {
    # name: label, published error, seed → test accuracy by epoch
    "student": ("Baseline", 5.80, {0: [90.0, 94.0], 1: [89.0, 95.0], 2: [88.0, 93.0]}),
    "kd": ("KD", 4.47, {0: [93.0, 95.0], 1: [92.0, 96.0], 2: [97.0, 94.0]}),
    "nst_poly": ("NST <poly>", 4.39, {0: [93.0, 95.5], 1: [92.0, 95.6]}),
}


def write_run(outputs: Path, name: str, seed: int, accuracies: list[float], finished: bool = True) -> str:
    """A run folder; returns its place below `outputs`."""
    folder = outputs / "digits" / "big-small" / name / f"seed{seed}-00000000"
    folder.mkdir(parents=True)
    config = {
        "data": {"name": "digits", "limit": None, "validation": 0.0, "num_classes": 10}, "teacher": {"model": None if name == "student" else {"name": "big"}},
        "model": {"name": "small"}, "seed": seed, "trainer": {"epochs": 2, "batch_size": 128, "precision": "fp32"},
        "loss": {"ce": {"weight": 1.0}} | ({} if name == "student" else {name: {"weight": 50.0}}),
        "optim": {"lr": 0.1, "schedule": "cosine", "weight_decay": 1e-4}, "knowledge": {"mode": "live", "views": 16},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"kind": "eval", "step": 10 * e, "epoch": e, "top1": a} for e, a in enumerate(accuracies, 1)]
    for epoch, top1 in ((0.5, 50.0), (1.5, 65.0), (2.0, 75.0))[: 3 if finished else 1]:
        lines.append(
            {"kind": "train", "step": 10 * epoch, "epoch": epoch, "top1": top1, "timing": {"seconds": 3 * epoch}}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')
    best = max(range(len(accuracies)), key=lambda i: accuracies[i])
    summary: dict[str, Any] = {
        "test": {"top1": accuracies[-1], "top5": 99.0, "images": 360}, "best": {"top1": accuracies[best], "epoch": best + 1},
        "evaluated_on": "test", "seconds": 12.0 + seed, "steps": 20, "skipped_steps": 0,
        "student": {"name": "small", "parameters": 7}, "commit": "abc", "versions": {"torch": "2"},
        "hardware": {"device": "cpu", "threads": 1}, "compiled": False, "config": config,
        "teacher": None if name == "student" else {
            "name": "big", "top1": 96.0, "top5": 99.9, "parameters": 70, "weights": "w", "sha256": "0",
        },
    }  # fmt: skip
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder.relative_to(outputs))


def write_table(outputs: Path, reduced: bool = False, metric: str = "error") -> Path:
    """All runs of ROWS and their plan; returns the table's folder."""
    rows = []
    for name, (label, published, seeds) in ROWS.items():
        runs = [{"seed": seed, "folder": write_run(outputs, name, seed, values)} for seed, values in seeds.items()]
        if name == "nst_poly":
            runs.append({"seed": 2, "folder": write_run(outputs, name, 2, [91.0], finished=False)})
        rows.append({
            "name": name, "label": label, "published": published, "published_top5": None, "runs": runs,
            "command": f"nst train experiment=x/{name} seed=0", "reduced": reduced, "comparable": not reduced,
            "changes": ["trainer.epochs: 2 (table: 400)"] if reduced else [],
        })  # fmt: skip
    group = {
        "name": "small", "title": "big → small", "teacher": {"published": 4.04, "published_top5": None},
        "layers": {"teacher": "last", "student": "last"}, "rows": rows,
    }  # fmt: skip
    folder = outputs / "tables" / "test" / "full"
    folder.mkdir(parents=True)
    plan = {
        "table": "test", "command": "nst reproduce table=test", "title": "A test", "source": "a paper",
        "metric": metric, "groups": [group],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def write_evidence(folder: Path) -> None:
    """What looking into the networks leaves in a table's folder."""
    evidence = folder / "evidence"
    evidence.mkdir()
    values = {kernel: {"before": [0.2, 0.3], "after": [0.01, 0.02]} for kernel in ("linear", "polynomial", "gaussian")}
    points = np.random.default_rng(0).normal(size=(12, 2)).round(2).tolist()
    content = {
        "runs": ["a run"], "images": 256, "mmd": {"student": values, "nst_poly": values},
        "tsne": {name: {"teacher": points, "student": points} for name in ("student", "nst_poly")},
    }  # fmt: skip
    (evidence / "small.json").write_text(json.dumps(content))
    for name in ("teacher", "nst_poly"):
        Image.new("RGB", (40, 30), "red").save(evidence / f"small-{name}.png")
