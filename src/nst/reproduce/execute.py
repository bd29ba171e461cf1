"""Run what a plan misses: teachers first, then students by row and seed."""

import json
from typing import Any

from nst import build
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.reproduce.plan import Plan, finished
from nst.run import distil
from nst.trainer.distributed import Ranks


def execute(plan: Plan, here: Ranks) -> list[str]:
    """Run or continue everything that is not finished.

    Returns:
        What failed by diverging, one line a run; the others went on.

    Raises:
        ValueError: a run that cannot be made.
        Interrupted: stopped by a signal, saved.
    """
    students = [(f"{cell.row.label}, seed {run.seed}", run) for cell in plan.cells for run in cell.runs]
    runs = [(f"teacher {run.model['name']}", run) for run in plan.teachers] + students
    missing = [(name, run) for name, run in runs if not finished(run)]
    failed: list[str] = []
    sets: dict[str, Dataset] = {}
    for number, (name, run) in enumerate(missing, 1):
        if here.main:
            print(f"run {number} of {len(missing)}: {name}", flush=True)
        try:
            distil(run, here, dataset(run, sets))
        except FloatingPointError as error:
            failed.append(f"{name}: {error}")
    return failed


def dataset(run: RunConfig, sets: dict[str, Dataset]) -> Dataset:
    """The run's data, read once for all runs that share it."""
    key = json.dumps(run.data, sort_keys=True, default=_plain)
    if key not in sets:
        sets[key] = build.dataset(run)
    return sets[key]


def _plain(value: Any) -> str:
    return str(value)
