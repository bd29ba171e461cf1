"""Run what a plan misses: teachers first, then the knowledge stores, then students by row and seed."""

import json
from pathlib import Path
from typing import Any

from nst import build
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.reproduce.plan import Plan, finished
from nst.run import distil
from nst.teaching import teaching
from nst.trainer.distributed import Ranks
from nst.trainer.folder import STUDENT


def execute(plan: Plan, here: Ranks) -> list[str]:
    """Run or continue everything that is not finished.

    Returns:
        What failed by diverging, one line a run; the others went on.

    Raises:
        ValueError: a run that cannot be made.
        Interrupted: stopped by a signal, saved.
    """
    sets: dict[str, Dataset] = {}
    teachers = [(f"teacher {run.model['name']}", run) for run in plan.teachers]
    students = [(f"{cell.row.label}, seed {run.seed}", run) for cell in plan.cells for run in cell.runs]
    failed = run_missing(teachers, here, sets)
    if not all(finished(run) for _, run in students):
        for run in plan.stores:
            fill_store(run, here, dataset(run, sets))
    return failed + run_missing(students, here, sets)


def run_missing(runs: list[tuple[str, RunConfig]], here: Ranks, sets: dict[str, Dataset]) -> list[str]:
    """Run the unfinished ones of (name, run); returns what diverged."""
    failed: list[str] = []
    missing = [(name, run) for name, run in runs if not finished(run)]
    for number, (name, run) in enumerate(missing, 1):
        if here.main:
            print(f"run {number} of {len(missing)}: {name}", flush=True)
        try:
            distil(run, here, dataset(run, sets))
        except FloatingPointError as error:
            failed.append(f"{name}: {error}")
    return failed


def fill_store(run: RunConfig, here: Ranks, data: Dataset) -> None:
    """Fill the store that students like this one read: one pass of the teacher for all their losses."""

    def weights(teacher: RunConfig) -> str:
        return str(Path(distil(teacher, here, data)["folder"]) / STUDENT)

    teaching(run, build.networks(run), here, data, weights)


def dataset(run: RunConfig, sets: dict[str, Dataset]) -> Dataset:
    """The run's data, read once for all runs that share it."""
    key = json.dumps(run.data, sort_keys=True, default=_plain)
    if key not in sets:
        sets[key] = build.dataset(run)
    return sets[key]


def _plain(value: Any) -> str:
    return str(value)
