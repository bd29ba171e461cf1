"""The runs that a table needs, as settings."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from nst import build
from nst.build import teacher_run
from nst.cli.compose import composed, explain
from nst.config import UNNAMED, CacheConfig, RunConfig
from nst.storage.folder import SUMMARY, run_folder
from nst.tables.command import OF_THE_TABLE, Request
from nst.tables.file import Group, Row, Table, nearest, read_table
from nst.tables.frame import as_text, flat
from nst.teacher import why_live

# Settings that change how a result is computed but not its meaning: stated, but they do not prevent a comparison.
HOW = ("trainer.precision", "teacher.precision", "trainer.compile", "trainer.channels_last", "trainer.sync_bn", "cache.", "teacher.weights")  # fmt: skip
UNSTATED = (*UNNAMED, "seed", "teacher.mean", "teacher.std", "teacher.min_accuracy")
SHORTER = ("trainer.epochs", "teacher.train.epochs")


@dataclass(frozen=True)
class Cell:
    """One row of the table with its runs, one a seed."""

    group: Group
    row: Row
    original: RunConfig  # the table's settings, without the request's overrides
    command: str  # of its first seed
    runs: tuple[RunConfig, ...]
    changes: tuple[str, ...]  # "key: new (table: old)"
    reduced: bool  # shorter, or on fewer images
    comparable: bool  # with published figures: the table's own settings, except for how they are computed


@dataclass(frozen=True)
class Plan:
    """All runs of a table."""

    request: Request
    table: Table
    cells: tuple[Cell, ...]
    along: dict[str, float] = field(default_factory=dict)  # group → its value of the setting `table.along`

    @property
    def teachers(self) -> list[RunConfig]:
        """The runs that train teachers, each once."""
        students = [run for cell in self.cells for run in cell.runs]
        needed = [teacher_run(s) for s in students if s.teacher.model is not None and s.teacher.weights is None]
        return list({folder_of(run): run for run in needed}.values())

    @property
    def caches(self) -> list[RunConfig]:
        """One run per teacher cache, with all targets that the table's students need."""
        runs: dict[str, RunConfig] = {}
        for run in (cell.runs[0] for cell in self.cells if cell.runs[0].cache.views):
            key = json.dumps([run.data, run.model, asdict(run.teacher), asdict(run.cache)], sort_keys=True)
            known = runs.get(key, run)
            new = [node for node in run.loss.values() if node not in known.loss.values()]
            runs[key] = replace(known, loss=known.loss | {f"term{len(known.loss) + i}": n for i, n in enumerate(new)})
        return list(runs.values())

    def named_runs(self) -> dict[str, RunConfig]:
        """The students by name, for messages: all rows of the first seed, then of the next."""
        several = len(self.table.groups) > 1
        named = [
            (f"{c.group.title}: {c.row.label}" if several else c.row.label, run) for c in self.cells for run in c.runs
        ]
        return {f"{name}, seed {run.seed}": run for name, run in sorted(named, key=lambda pair: pair[1].seed)}


def folder_of(run: RunConfig) -> Path:
    """The folder of a run."""
    return run_folder(asdict(run))


def finished(run: RunConfig) -> bool:
    """Whether the run is finished."""
    return (folder_of(run) / SUMMARY).is_file()


def make_plan(request: Request) -> Plan:
    """Compose every run of the table; no data is read. Titles name the data and networks that are run.

    Raises:
        ValueError: an unknown table, settings that no run can have (the row is named), groups that are no values of the
            table's axis, or that lack a baseline or mix networks.
    """
    table, place = read_table(request.table), f"table={request.table}"
    cells = tuple(_cell(request, table, group, row) for group in table.groups for row in group.rows)
    if any(cell.reduced or cell.original.data["name"] != cell.runs[0].data["name"] for cell in cells):
        names = dict.fromkeys(
            cell.runs[0].data["name"] for cell in cells
        )  # the table's title may tell images and epochs
        table.title = f"{', '.join(names)}, test {table.metric}"
    for group in table.groups:
        own = [cell for cell in cells if cell.group is group]
        _check_group(own, f"{place}: groups: {group.name}")
        if any(_networks(cell.original) != _networks(cell.runs[0]) for cell in own):
            taught = dict.fromkeys(" → ".join(_networks(cell.runs[0])) for cell in own[1:] or own)
            group.title = ", ".join(taught)
    return Plan(
        request, table, cells, _along(table.along, f"{place}: along: {table.along}", cells) if table.along else {}
    )


def _networks(run: RunConfig) -> list[str]:
    """The names of teacher, if there is one, and student."""
    return [model["name"] for model in (run.teacher.model, run.model) if model is not None]


def _cell(request: Request, table: Table, group: Group, row: Row) -> Cell:
    own = [*table.overrides, *row.overrides]
    data_root = [o for o in request.overrides if o.startswith("data.root=")]  # depends on the machine: no table has it
    place = f"table={request.table}: groups: {group.name}: rows: {row.name}"
    try:
        overrides, original = _composed([*own, *data_root])
        actual = original
        if request.overrides:
            overrides, actual = _composed([*own, *request.overrides])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{place}: {explain(error)}") from error
    if request.epochs < 1:
        overrides.append(f"trainer.epochs={max(1, round(request.epochs * actual.trainer.epochs))}")
        if actual.teacher.model is not None and actual.teacher.weights is None:
            length = max(1, round(request.epochs * actual.teacher.train.epochs))
            overrides.append(f"teacher.train.epochs={length}")
        overrides, actual = _composed(overrides)
    for key, remedy in OF_THE_TABLE.items():
        if (value := getattr(actual, key)) != getattr(RunConfig(), key):
            raise ValueError(f"{place}: {key}={as_text(value)}: {remedy}")
    actual = replace(actual, outputs=request.outputs)
    old, new = flat(asdict(original)), flat(asdict(actual))
    keys = [key for key in dict.fromkeys([*old, *new]) if not key.startswith(UNSTATED) and old.get(key) != new.get(key)]
    if actual.teacher.weights is not None:
        keys = [key for key in keys if not key.startswith("teacher.train.")]
    shorter = any(key in SHORTER and new[key] < old[key] for key in keys)
    views, usual = _views_shown(actual), min(_views_shown(original), actual.trainer.epochs)
    return Cell(
        group, row, original, " ".join(["nst train", *map(quote, overrides), "seed=0"]),
        tuple(replace(actual, seed=seed) for seed in range(request.seeds or table.seeds)),
        tuple(f"{key}: {_short(new.get(key))} (table: {_short(old.get(key))})" for key in keys),
        reduced=shorter or actual.data.get("limit") != original.data.get("limit"),
        comparable=all(key.startswith(HOW) for key in keys) and views >= usual,
    )  # fmt: skip


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


def _views_shown(run: RunConfig) -> float:
    """How many views of an image a run may show at most; fewer than its epochs means less augmentation."""
    stored = run.cache.views and run.cache.views != "all"
    return int(run.cache.views) if stored else math.inf


def _short(value: Any) -> str:
    """A value as it is typed; of an absolute path the last part, since a page may be shared."""
    return Path(value).name if isinstance(value, str) and value.startswith("/") else as_text(value)


def _check_group(cells: Sequence[Cell], place: str) -> None:
    """Raises ValueError for a group without a baseline, or of several students or teachers: one is measured and compared."""
    if taught := cells[0].runs[0].teacher.model:
        raise ValueError(
            f"{place}: rows: {cells[0].row.name} has the teacher {taught['name']}; the first row is the baseline, trained "
            "without one (loss=ce)"
        )
    runs = {cell.row.name: cell.runs[0] for cell in cells}
    students = {name: (run.model["name"], "") for name, run in runs.items()}
    teachers = {
        name: (run.teacher.model["name"], json.dumps([run.teacher.model, run.teacher.weights, run.teacher.seed]))
        for name, run in runs.items()
        if run.teacher.model is not None
    }
    for part, known in (("student", students), ("teacher", teachers)):
        for name, network in known.items():
            first = next(iter(known))
            if network != known[first]:
                raise ValueError(
                    f"{place}: rows: {name} has another {part} ({network[0]}) than {first} ({known[first][0]}); a group has one "
                    "of each: make two groups"
                )


def _along(key: str, place: str, cells: Sequence[Cell]) -> dict[str, float]:
    """The value of a setting in each group. Raises ValueError where it is no axis: one number above 0 for each group, each another."""
    values: dict[str, dict[str, Any]] = {}
    for cell in cells:
        settings = flat(asdict(cell.runs[0]))
        if key not in settings:
            hint = nearest(key, settings) or "a key such as data.limit is needed"
            raise ValueError(f"{place}: runs have no such setting; {hint.strip()}")
        values.setdefault(cell.group.name, {})[as_text(settings[key])] = settings[key]
    each = [value for found in values.values() for value in found.values()]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in each)
    if not numbers or not 1 < len(values) == len(each) == len({*each}):
        found = "; ".join(f"{' and '.join(texts)} in group {group}" for group, texts in values.items())
        raise ValueError(
            f"{place}: it is {found}; an axis is one number above 0 in all rows of a group, another one in each of two or more "
            "groups, so that no override of the command line can set it"
        )
    return {group: value for group, found in values.items() for value in found.values()}
