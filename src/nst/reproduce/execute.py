"""Run what is missing from a plan: teachers, then teacher caches, then students, all rows of one seed after another.

Several processes can run one plan, on all GPUs or machines that see the folder: each takes a run that no other has.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nst import build
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.models.weights import load_weights
from nst.report.runs import diverged
from nst.reproduce.plan import Plan, finished
from nst.run import execute as execute_run
from nst.run import write_teacher_cache
from nst.runs.folder import PATIENCE, STUDENT, RunFolder, RunLockedError, run_folder


@dataclass(frozen=True)
class NamedRun:
    """A run of the plan."""

    name: str
    run: RunConfig

    @property
    def folder(self) -> Path:
        """Its folder."""
        return run_folder(asdict(self.run))


@dataclass
class Outcome:
    """The runs that this process did not finish."""

    failed: dict[Path, str] = field(default_factory=dict)  # diverged, now or earlier: folder → name and reason
    elsewhere: list[str] = field(default_factory=list)  # not finished: another process has locked them


def check_teachers(plan: Plan) -> None:
    """Load given teacher weights into their networks, since the baselines, which come first, do not read them.

    Raises:
        ValueError: a run that is not finished names weights that are missing, or of another architecture.
    """
    runs = [run for cell in plan.cells for run in cell.runs if run.teacher.weights is not None and not finished(run)]
    checked = {json.dumps([run.teacher.model, run.teacher.weights], sort_keys=True): run.teacher for run in runs}
    for teacher in checked.values():
        assert teacher.weights is not None
        if not Path(teacher.weights).is_file():
            raise ValueError(f"teacher.weights={teacher.weights}: no such file")
        load_weights(build.network("teacher.model", teacher.model, teacher.seed), teacher.weights)


def execute(plan: Plan, ranks: Dist) -> Outcome:
    """Run or continue everything that is not finished and that no other process runs.

    Raises:
        ValueError: a run that cannot be made, or is finished on other data or with other teacher weights.
        Interrupted: stopped by a signal, saved.
    """
    sets: dict[str, Dataset] = {}
    outcome = Outcome()
    teachers = [NamedRun(f"teacher {run.model['name']}", run) for run in plan.teachers]
    several = len(plan.table.groups) > 1
    students = [
        NamedRun(f"{f'{cell.group.title}: ' if several else ''}{cell.row.label}, seed {run.seed}", run)
        for cell in plan.cells
        for run in cell.runs
    ]
    students.sort(key=lambda student: student.run.seed)
    check_finished(students, outcome, ranks, sets)
    run_all(teachers, outcome, ranks, sets)
    for teacher in teachers:  # wait for those of other processes
        attempt(teacher, outcome, ranks, sets, wait=True)
    if ranks.max(int(any(not finished(student.run) for student in students))) == [1]:
        for run in plan.caches:
            cache = NamedRun(f"teacher cache of {run.teacher.model['name']}", run)
            attempt(cache, outcome, ranks, sets, do=write_teacher_cache)
    run_all(students, outcome, ranks, sets)
    for student in students:
        if reason := diverged(student.folder):
            outcome.failed.setdefault(student.folder, f"{student.name}: {reason}")
    outcome.elsewhere = [s.name for s in students if s.folder not in outcome.failed and not finished(s.run)]
    return outcome


def check_finished(students: list[NamedRun], outcome: Outcome, ranks: Dist, sets: dict[str, Dataset]) -> None:
    """If runs are to be added to finished ones, check that those had the same data and teacher weights.

    Raises:
        ValueError: they had others; names the run.
    """
    complete = [finished(s.run) and (s.folder / STUDENT).is_file() for s in students]
    incomplete = not all(map(_done, students))
    chosen = ranks.max(*(int(ranks.main and incomplete and one) for one in complete))  # rank 0 decides for all
    for student, check in zip(students, chosen, strict=True):
        if check:
            attempt(student, outcome, ranks, sets)  # of a finished run, that is all it does


def run_all(runs: list[NamedRun], outcome: Outcome, ranks: Dist, sets: dict[str, Dataset]) -> None:
    """Do the runs one after the other: each time the first that is neither finished nor locked."""
    while (run := _next(runs, outcome, ranks)) is not None:
        if ranks.main:
            remaining = sum(not _done(other) for other in runs)
            print(f"{run.name} ({remaining} of {len(runs)} left)", flush=True)
        attempt(run, outcome, ranks, sets)


def attempt(
    named: NamedRun,
    outcome: Outcome,
    ranks: Dist,
    sets: dict[str, Dataset],
    do: Callable[..., object] = execute_run,
    **options: Any,
) -> None:
    """Do a run, unless another process has taken it; report it if it diverges."""
    try:
        do(named.run, ranks, dataset(named.run, sets), **options)
    except RunLockedError:
        return
    except FloatingPointError as error:
        outcome.failed[named.folder] = f"{named.name}: {error}"
        if ranks.main:
            print(f"failed: {error}", flush=True)


def _next(runs: list[NamedRun], outcome: Outcome, ranks: Dist) -> NamedRun | None:
    """Rank 0 chooses for all."""
    choice = len(runs)
    if ranks.main:
        remaining = [i for i, run in enumerate(runs) if run.folder not in outcome.failed and not _done(run)]
        for moment in (0.0, PATIENCE):  # the lock of a killed process is released a little later
            time.sleep(moment if remaining else 0)
            free = [i for i in remaining if not RunFolder(runs[i].folder).is_locked()]
            if free:
                choice = free[0]
                break
    (choice,) = ranks.max(choice if ranks.main else 0)
    return runs[choice] if choice < len(runs) else None


def _done(named: NamedRun) -> bool:
    """Whether the run is finished, or has diverged and would again."""
    return finished(named.run) or (diverged(named.folder) is not None)


def dataset(run: RunConfig, sets: dict[str, Dataset]) -> Dataset:
    """The run's data, read once for all runs that share it."""
    key = json.dumps(run.data, sort_keys=True, default=_plain)
    if key not in sets:
        sets[key] = build.dataset(run)
    return sets[key]


def _plain(value: Any) -> str:
    return str(value)
