"""The runs that a table needs, as settings, and their execution by one process or several, each taking runs that no other has."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from nst import build
from nst.cli.compose import composed, explain
from nst.config import UNNAMED, CacheConfig, RunConfig
from nst.data.dataset import Dataset
from nst.dist import Dist
from nst.files import flat
from nst.models.weights import load_weights
from nst.run import execute as execute_run, write_teacher_cache
from nst.storage.folder import DIVERGED, PATIENCE, STUDENT, SUMMARY, RunFolder, RunLockedError, run_folder
from nst.tables.command import Request
from nst.tables.file import Group, Row, Table, check_known, read_table
from nst.tables.frame import as_text
from nst.teacher import why_live

# Settings that change how a result is computed but not its meaning: stated, but they do not prevent a comparison.
HOW = ("trainer.precision", "teacher.precision", "trainer.compile", "trainer.channels_last", "trainer.sync_bn", "cache.", "teacher.weights")  # fmt: skip
UNSTATED = (*UNNAMED, "seed", "teacher.mean", "teacher.std", "teacher.min_accuracy")
LABELS = ("", "computed otherwise", "changed", "reduced")  # the last two cannot be compared with published figures


@dataclass(frozen=True)
class Cell:
    """One row of the table with its runs, one a seed."""

    group: Group
    row: Row
    command: str  # of its first seed
    runs: tuple[RunConfig, ...]
    changes: tuple[str, ...]  # "key: new (table: old)"
    label: str  # one of `LABELS`


@dataclass(frozen=True)
class Plan:
    """All runs of a table."""

    request: Request
    table: Table
    cells: tuple[Cell, ...]
    along: dict[str, float]  # group → its value of the setting `table.along`
    label: str  # one of `LABELS`, for all cells
    banner: str  # what differs from the table's settings, in a sentence or two; "" if nothing does
    teachers: list[RunConfig]  # the runs that train teachers, each once
    caches: list[RunConfig]  # one run per teacher cache, with all targets that the table's students need

    def name_of(self, cell: Cell) -> str:
        """A row's name for readers: its label, with that of its group where there are several."""
        return f"{cell.group.title}: {cell.row.label}" if len(self.table.groups) > 1 else cell.row.label


def folder_of(run: RunConfig) -> Path:
    """The folder of a run."""
    return run_folder(asdict(run))


def finished(run: RunConfig) -> bool:
    """Whether the run is finished."""
    return (folder_of(run) / SUMMARY).is_file()


def make_plan(request: Request) -> Plan:
    """Compose every run of the table; no data is read. Titles name the data and networks that are run.

    Raises ValueError for a row that no run can have, groups that lack a baseline, mix networks or are no values of the axis.
    """

    def networks(run: RunConfig) -> list[str]:
        return [model["name"] for model in (run.teacher.model, run.model) if model is not None]

    def changed(cells: Sequence[Cell], *keys: str) -> bool:
        return any(change.partition(":")[0] in keys for cell in cells for change in cell.changes)

    table = read_table(request.table)
    cells = tuple(_cell(request, table, group, row) for group in table.groups for row in group.rows)
    if any(cell.label == "reduced" for cell in cells) or changed(cells, "data.name"):
        data = dict.fromkeys(cell.runs[0].data["name"] for cell in cells)
        table.title = f"{', '.join(data)}, test {table.metric}"  # the table's own may tell images and epochs
    for group in table.groups:
        first, *others = own = [cell for cell in cells if cell.group is group]
        place = f"table={request.table}: groups: {group.name}: rows"
        if first.runs[0].teacher.model is not None:
            raise ValueError(f"{place}: {first.row.name}: the first row is the baseline, without a teacher (loss=ce)")
        known: dict[str, str] = {}
        for cell in own:
            run = cell.runs[0]
            used = {"student": run.model["name"]}
            if run.teacher.model is not None:
                used["teacher"] = json.dumps([run.teacher.model, run.teacher.weights, run.teacher.seed])
            for part, network in used.items():
                if known.setdefault(part, network) != network:
                    name = networks(run)[-1 if part == "student" else 0]
                    raise ValueError(f"{place}: {cell.row.name} has another {part}, {name}; a group has one of each")
        if changed(own, "model.name", "teacher.model.name"):
            group.title = ", ".join(dict.fromkeys(" → ".join(networks(cell.runs[0])) for cell in others or own))
    along: dict[str, float] = {}
    if (axis := table.along) is not None:
        pairs = []
        for cell in cells:
            settings = flat(asdict(cell.runs[0]))
            check_known(f"along: {axis}", axis, settings)
            pairs.append((cell.group.name, settings[axis]))
        along = dict(pairs)
        numbers = all(type(value) in (int, float) and value > 0 for _, value in pairs)
        if not numbers or not 1 < len(along) == len({*pairs}) == len({*along.values()}):
            found = "; ".join(dict.fromkeys(f"{group}: {as_text(value)}" for group, value in pairs))
            raise ValueError(f"along: {axis}: one number above 0 a group is needed, each another; found {found}")
    label = max((cell.label for cell in cells), key=LABELS.index)
    changes = dict.fromkeys(change for cell in cells for change in cell.changes)
    apart = " Not comparable with published figures." if label in LABELS[2:] else ""
    banner = f"{label.capitalize()}: {'; '.join(changes)}.{apart}" if changes else ""
    firsts = [cell.runs[0] for cell in cells]  # the teacher is one network for all seeds
    needed = [build.teacher_run(run) for run in firsts if run.teacher.model is not None and run.teacher.weights is None]
    teachers = list({folder_of(run): run for run in needed}.values())
    caches: dict[str, RunConfig] = {}
    for run in (run for run in firsts if run.cache.views):
        key = json.dumps([run.data, run.model, asdict(run.teacher), asdict(run.cache)], sort_keys=True)
        cached = caches.get(key, run)
        new = [node for node in run.loss.values() if node not in cached.loss.values()]
        caches[key] = replace(cached, loss=cached.loss | {f"term{len(cached.loss) + i}": n for i, n in enumerate(new)})
    return Plan(request, table, cells, along, label, banner, teachers, list(caches.values()))


def _cell(request: Request, table: Table, group: Group, row: Row) -> Cell:
    """Compose a row's runs, as the table has them and as they are requested, and say how they differ."""
    own, data_root = [*table.overrides, *row.overrides], [o for o in request.overrides if o.startswith("data.root=")]
    try:
        overrides, original = _composed([*own, *data_root])  # which depends on the machine: no table has it
        actual = original
        if request.overrides:
            overrides, actual = _composed([*own, *request.overrides])
        if request.epochs < 1:
            lengths = {"trainer.epochs": actual.trainer.epochs}
            if actual.teacher.model is not None and actual.teacher.weights is None:
                lengths["teacher.train.epochs"] = actual.teacher.train.epochs
            shorter = [f"{key}={max(1, round(request.epochs * epochs))}" for key, epochs in lengths.items()]
            overrides, actual = _composed([*overrides, *shorter])
        if (actual.seed, actual.outputs, actual.dry_run) != (RunConfig.seed, RunConfig.outputs, RunConfig.dry_run):
            raise ValueError("no row has a seed, outputs or dry_run: pass seeds=N, outputs=FOLDER or plan=true")
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"table={request.table}: groups: {group.name}: rows: {row.name}: {explain(error)}") from error
    actual = replace(actual, outputs=request.outputs)
    old, new = flat(asdict(original)), flat(asdict(actual))
    keys = [key for key in dict.fromkeys([*old, *new]) if not key.startswith(UNSTATED) and old.get(key) != new.get(key)]
    if actual.teacher.weights is not None:
        keys = [key for key in keys if not key.startswith("teacher.train.")]
    label = "computed otherwise" if keys else ""
    views, before = (int(v) if v and v != "all" else math.inf for v in (actual.cache.views, original.cache.views))
    if views < min(before, actual.trainer.epochs) or not all(key.startswith(HOW) for key in keys):
        label = "changed"  # fewer views than epochs are less augmentation
    if "data.limit" in keys or any(new[k] < old[k] for k in keys if k in ("trainer.epochs", "teacher.train.epochs")):
        label = "reduced"
    texts = [[as_text(side.get(key)) for side in (new, old)] for key in keys]
    texts = [[Path(text).name if text.startswith("/") else text for text in pair] for pair in texts]  # of a shared page
    changes = tuple(f"{key}: {now} (table: {before})" for key, (now, before) in zip(keys, texts, strict=True))
    runs = tuple(replace(actual, seed=seed) for seed in range(request.seeds or table.seeds))
    return Cell(group, row, " ".join(["nst train", *map(quote, overrides), "seed=0"]), runs, changes, label)


def _composed(overrides: list[str]) -> tuple[list[str], RunConfig]:
    """A run and its overrides, without those of a teacher cache that would cache none of its targets: it stays live."""
    run = build.settings(composed(overrides))
    build.optimization(run)  # whose values are checked where they are used
    if run.cache.views:
        networks = build.networks(run)
        shapes, specs = networks.teacher_shapes, networks.distiller.target_specs
        if all(why_live(spec, shapes[spec.layer], run.cache.large) is not None for spec in specs):
            return [o for o in overrides if not o.startswith("cache.")], replace(run, cache=CacheConfig())
    return overrides, run


def check_teachers(plan: Plan) -> None:
    """Raises ValueError for given teacher weights that are missing or of another architecture; baselines do not read them."""
    runs = [run for cell in plan.cells for run in cell.runs if run.teacher.weights is not None and not finished(run)]
    given = [(run.teacher.model, run.teacher.weights, run.teacher.weights_key) for run in runs]
    distinct = {json.dumps(key, sort_keys=True): run.teacher for key, run in zip(given, runs, strict=True)}
    for teacher in distinct.values():
        assert teacher.weights is not None
        if not Path(teacher.weights).is_file():
            raise ValueError(f"teacher.weights={teacher.weights}: no such file")
        load_weights(build.network("teacher.model", teacher.model, teacher.seed), teacher.weights, teacher.weights_key)


def execute(plan: Plan, dist: Dist) -> tuple[list[str], list[str]]:
    """Run or continue everything that is not finished and that no other process runs: teachers, then caches, then students.

    Returns the runs that diverged, now or earlier, with the reason, and names of runs that other processes have. Raises ValueError
    for a run that cannot be made, or is finished on other data or with other teacher weights; Interrupted once all is saved.
    """
    failed: dict[Path, str] = {}
    sets: dict[str, Dataset] = {}  # read once for all runs that share them

    def over(run: RunConfig) -> bool:
        return finished(run) or (folder_of(run) / DIVERGED).exists()

    def attempt(name: str, run: RunConfig, do: Callable[..., object] = execute_run) -> None:
        """Do a run, unless another process has taken it; report it if it diverges."""
        key = json.dumps(run.data, sort_keys=True, default=str)
        if key not in sets:
            sets[key] = build.dataset(run)
        try:
            do(run, dist, sets[key])
        except RunLockedError:
            return
        except FloatingPointError as error:
            failed[folder_of(run)] = f"{name}: {error}"
            if dist.main:
                print(f"failed: {error}", flush=True)

    def run_all(runs: Mapping[str, RunConfig]) -> None:
        """Do the runs one after the other: each time the first that is neither over nor locked, as rank 0 says for all."""
        names = [*runs]
        while True:
            choice = len(names)
            remaining = [n for n in names if not over(runs[n]) and folder_of(runs[n]) not in failed]
            for moment in (0.0, PATIENCE) if dist.main and remaining else ():  # a killed process's lock ends later
                time.sleep(moment)
                if free := [name for name in remaining if not RunFolder(folder_of(runs[name])).is_locked()]:
                    choice = names.index(free[0])
                    print(f"{free[0]} ({len(remaining)} of {len(names)} left)", flush=True)
                    break
            (choice,) = dist.max(choice if dist.main else 0)
            if choice == len(names):
                return
            attempt(names[choice], runs[names[choice]])

    named = [(plan.name_of(cell), run) for cell in plan.cells for run in cell.runs]
    students = {f"{name}, seed {run.seed}": run for name, run in sorted(named, key=lambda pair: pair[1].seed)}
    teachers = {f"teacher {run.model['name']}": run for run in plan.teachers}
    # runs are added to finished ones only if those had the same data and teacher weights: rank 0 decides for all
    adding = dist.main and not all(map(over, students.values()))
    complete = [adding and finished(run) and (folder_of(run) / STUDENT).is_file() for run in students.values()]
    for (name, run), check in zip(students.items(), dist.max(*map(int, complete)), strict=True):
        if check:
            attempt(name, run)  # of a finished run, the check is all it does
    run_all(teachers)
    for name, run in teachers.items():  # wait for those of other processes
        attempt(name, run, lambda *args: execute_run(*args, wait=True))
    if dist.max(int(not all(map(finished, students.values())))) == [1]:
        for run in plan.caches:
            attempt(f"teacher cache of {run.teacher.model['name']}", run, write_teacher_cache)
    run_all(students)
    for name, run in students.items():
        if (stop := folder_of(run) / DIVERGED).exists():
            failed.setdefault(stop.parent, f"{name}: {json.loads(stop.read_text())['reason']}")
    return [*failed.values()], [name for name, run in students.items() if not over(run)]
