"""Run what a plan misses: teachers first, then the knowledge stores, then students, all rows of one seed after another.

Several processes can be at one plan, on as many GPUs or machines as see the folder: each takes what no other is at.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nst import build
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.reproduce.plan import Plan, finished
from nst.run import distil
from nst.teaching import teaching
from nst.trainer.distributed import Ranks
from nst.trainer.folder import STUDENT, HeldError, RunFolder, run_folder


@dataclass
class Outcome:
    """What became of the runs that were missing and are not finished by this process."""

    failed: dict[str, str] = field(default_factory=dict)  # diverged: name → reason
    elsewhere: list[str] = field(default_factory=list)  # under way in another process


def execute(plan: Plan, here: Ranks) -> Outcome:
    """Run or continue everything that is not finished and that no other process is at.

    Raises:
        ValueError: a run that cannot be made.
        Interrupted: stopped by a signal, saved.
    """
    sets: dict[str, Dataset] = {}
    outcome = Outcome()
    for teacher in plan.teachers:
        if not finished(teacher):
            _say(here, f"teacher {teacher.model['name']}")
            distil(teacher, here, dataset(teacher, sets), wait=True)
    if any(not finished(run) for cell in plan.cells for run in cell.runs):
        for run in plan.stores:
            fill_store(run, here, dataset(run, sets))
    students = [(f"{cell.row.label}, seed {run.seed}", run) for cell in plan.cells for run in cell.runs]
    students.sort(key=lambda student: student[1].seed)
    while (found := _next(students, outcome, here)) is not None:
        name, run = found
        _say(here, f"{name} ({sum(not finished(run) for _, run in students)} of {len(students)} runs left)")
        try:
            distil(run, here, dataset(run, sets))
        except HeldError:
            continue  # another process was quicker
        except FloatingPointError as error:
            outcome.failed[name] = str(error)
    outcome.elsewhere = [name for name, run in students if name not in outcome.failed and not finished(run)]
    return outcome


def _next(students: list[tuple[str, RunConfig]], outcome: Outcome, here: Ranks) -> tuple[str, RunConfig] | None:
    """The first run that is not finished and that no process is at; rank 0 chooses for all."""
    choice = len(students)
    if here.main:
        free = (i for i, (name, run) in enumerate(students) if name not in outcome.failed and _free(run))
        choice = next(free, choice)
    (choice,) = here.max(choice if here.main else 0)
    return students[choice] if choice < len(students) else None


def _free(run: RunConfig) -> bool:
    return not finished(run) and not RunFolder(run_folder(asdict(run))).held()


def _say(here: Ranks, text: str) -> None:
    if here.main:
        print(text, flush=True)


def fill_store(run: RunConfig, here: Ranks, data: Dataset) -> None:
    """Fill the store that students like this one read: one pass of the teacher for all their losses."""

    def weights(teacher: RunConfig) -> str:
        return str(Path(distil(teacher, here, data, wait=True)["folder"]) / STUDENT)

    teaching(run, build.networks(run), here, data, weights)


def dataset(run: RunConfig, sets: dict[str, Dataset]) -> Dataset:
    """The run's data, read once for all runs that share it."""
    key = json.dumps(run.data, sort_keys=True, default=_plain)
    if key not in sets:
        sets[key] = build.dataset(run)
    return sets[key]


def _plain(value: Any) -> str:
    return str(value)
