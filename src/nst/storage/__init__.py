"""What a run keeps on disk: its folder, checkpoints, metrics and trackers."""

from collections.abc import Mapping
from typing import Any

LEAD = 5.0  # points above chance; losing half of less may be noise
MEASURES = {"top1": "top-1", "knn": "k-NN", "loss": "loss"}


def has_collapsed(top1: float, best: float, chance: float) -> bool:
    """Whether an evaluation lost more than half of the best accuracy above chance, if that was `LEAD` points or more.

    Args:
        top1: of this evaluation, in percent.
        best: of the evaluations before it.
        chance: chance-level accuracy.
    """
    gain = best - chance
    return gain >= LEAD and top1 - chance < gain / 2


def measure_of(values: Mapping[str, Any]) -> str:
    """By which of an evaluation's values the best epoch is chosen: "top1", else "knn", else "loss"."""
    return next((name for name in ("top1", "knn") if values.get(name) is not None), "loss")


def measured(measure: str, value: float) -> str:
    """Such a value with the name of its measure."""
    return f"loss {value:.4g}" if measure == "loss" else f"{MEASURES[measure]} {value:.2f} %"
