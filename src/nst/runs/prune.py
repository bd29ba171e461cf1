"""Median pruning: stops runs of a search that are below the median of comparable runs."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from nst.files import write_whole
from nst.runs.folder import METRICS

PRUNED = "pruned.json"
MIN_OTHERS = 4  # comparable runs needed before one is stopped


class Pruned(Exception):
    """The run was stopped because it is below the median; without `trainer.prune_after` it continues."""

    def __init__(self, epoch: int, best: float, middle: float) -> None:
        """`best`: of the run up to `epoch`; `middle`: of the others at that epoch, both in percent."""
        super().__init__(
            f"pruned after epoch {epoch}: {best:.2f} % at best, below the median of comparable runs, {middle:.2f} %"
        )
        self.epoch, self.best, self.middle = epoch, best, middle

    def write(self, folder: Path) -> None:
        """Write the reason into the run's folder."""
        write_whole(folder / PRUNED, json.dumps(vars(self)).encode())


def read_pruned(folder: Path) -> Pruned | None:
    """Why the run in `folder` was pruned; None if it was not."""
    file = folder / PRUNED
    return Pruned(**json.loads(file.read_text())) if file.is_file() else None


def median_of_others(folder: Path, epoch: int) -> float | None:
    """The median accuracy, after `epoch` epochs, of the runs comparable to the one in `folder`.

    They share its data (with settings), teacher, student and number of epochs, running or finished; losses, weights, layers,
    learning rates and seeds may differ. This is the median stopping rule (Golovin et al., Google
    Vizier, 2017, in Optuna's form): a run stops when its best accuracy so far is below this.

    Returns:
        Percent; None if fewer than four of them have reached that epoch.
    """
    settings = _comparable(folder)
    others = [file.parent for file in folder.parents[1].glob("*/*/config.json") if file.parent != folder]
    accuracies = [_accuracy(other / METRICS, epoch) for other in others if _comparable(other) == settings]
    reached = [accuracy for accuracy in accuracies if accuracy is not None]
    return median(reached) if len(reached) >= MIN_OTHERS else None


def _comparable(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    data = {key: value for key, value in config["data"].items() if key not in ("root", "download")}
    return data, config["trainer"]["epochs"]


def _accuracy(metrics: Path, epoch: int) -> float | None:
    if not metrics.is_file():
        return None
    for line in metrics.read_bytes().splitlines(keepends=True):
        if b'"eval"' in line[:20] and line.endswith(b"\n") and (event := json.loads(line))["epoch"] == epoch:
            return event["top1"]
    return None
