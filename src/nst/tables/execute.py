"""Run what is missing from a plan: teachers, then teacher caches, then students, all rows of one seed after another.

Several processes can run one plan, on all GPUs or machines that see the folder: each takes a run that no other has.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nst import build
from nst.config import RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.models.weights import load_weights
from nst.run import execute as execute_run
from nst.run import write_teacher_cache
from nst.storage.folder import DIVERGED, PATIENCE, STUDENT, RunFolder, RunLockedError
from nst.tables.plan import Plan, finished, folder_of


@dataclass
class Outcome:
    """The runs that this process did not finish."""

    failed: dict[Path, str] = field(default_factory=dict)  # diverged, now or earlier: folder → name and reason
    elsewhere: list[str] = field(default_factory=list)  # not finished: another process has locked them
    sets: dict[str, Dataset] = field(default_factory=dict)  # data, read once for all runs that share it


def check_teachers(plan: Plan) -> None:
    """Load given teacher weights into their networks, since the baselines, which come first, do not read them.

    Raises:
        ValueError: a run that is not finished names weights that are missing, or of another architecture.
    """
    runs = [run for cell in plan.cells for run in cell.runs if run.teacher.weights is not None and not finished(run)]
    for teacher in {json.dumps([r.teacher.model, r.teacher.weights], sort_keys=True): r.teacher for r in runs}.values():
        assert teacher.weights is not None
        if not Path(teacher.weights).is_file():
            raise ValueError(f"teacher.weights={teacher.weights}: no such file")
        model = build.network("teacher.model", teacher.model, teacher.seed)
        load_weights(model, teacher.weights, teacher.weights_key)


def execute(plan: Plan, dist: Dist) -> Outcome:
    """Run or continue everything that is not finished and that no other process runs.

    Raises:
        ValueError: a run that cannot be made, or is finished on other data or with other teacher weights.
        Interrupted: stopped by a signal, saved.
    """
    outcome, students = Outcome(), plan.named_runs()
    teachers = {f"teacher {run.model['name']}": run for run in plan.teachers}
    # runs are added to finished ones only if those had the same data and teacher weights: rank 0 decides for all
    adding = dist.main and not all(map(_over, students.values()))
    complete = [adding and finished(run) and (folder_of(run) / STUDENT).is_file() for run in students.values()]
    for (name, run), check in zip(students.items(), dist.max(*map(int, complete)), strict=True):
        if check:
            _attempt(name, run, outcome, dist)  # of a finished run, the check is all it does
    _run_all(teachers, outcome, dist)
    for name, run in teachers.items():  # wait for those of other processes
        _attempt(name, run, outcome, dist, lambda *args: execute_run(*args, wait=True))
    if dist.max(int(not all(map(finished, students.values())))) == [1]:
        for run in plan.caches:
            _attempt(f"teacher cache of {run.teacher.model['name']}", run, outcome, dist, write_teacher_cache)
    _run_all(students, outcome, dist)
    for name, run in students.items():
        if (stop := folder_of(run) / DIVERGED).exists():
            outcome.failed.setdefault(stop.parent, f"{name}: {json.loads(stop.read_text())['reason']}")
    outcome.elsewhere = [name for name, run in students.items() if not _over(run)]
    return outcome


def _over(run: RunConfig) -> bool:
    """Whether the run is finished, or has diverged and would again."""
    return finished(run) or (folder_of(run) / DIVERGED).exists()


def _run_all(runs: Mapping[str, RunConfig], outcome: Outcome, dist: Dist) -> None:
    """Do the runs one after the other: each time the first that is neither over nor locked, as rank 0 says for all."""
    names = [*runs]
    while True:
        choice = len(names)
        remaining = [n for n in names if not _over(runs[n]) and folder_of(runs[n]) not in outcome.failed]
        for moment in (0.0, PATIENCE) if dist.main and remaining else ():  # a killed process's lock ends a little later
            time.sleep(moment)
            free = [name for name in remaining if not RunFolder(folder_of(runs[name])).is_locked()]
            if free:
                choice = names.index(free[0])
                print(f"{free[0]} ({len(remaining)} of {len(names)} left)", flush=True)
                break
        (choice,) = dist.max(choice if dist.main else 0)
        if choice == len(names):
            return
        _attempt(names[choice], runs[names[choice]], outcome, dist)


def _attempt(name: str, run: RunConfig, outcome: Outcome, dist: Dist, do: Callable[..., object] = execute_run) -> None:
    """Do a run, unless another process has taken it; report it if it diverges."""
    key = json.dumps(run.data, sort_keys=True, default=str)
    if key not in outcome.sets:
        outcome.sets[key] = build.dataset(run)
    try:
        do(run, dist, outcome.sets[key])
    except RunLockedError:
        return
    except FloatingPointError as error:
        outcome.failed[folder_of(run)] = f"{name}: {error}"
        if dist.main:
            print(f"failed: {error}", flush=True)
