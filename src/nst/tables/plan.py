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
from nst.cli.compose import composed
from nst.cli.errors import explain
from nst.config import UNNAMED, CacheConfig, RunConfig
from nst.storage.folder import SUMMARY, run_folder
from nst.tables.file import Group, Row, Table, nearest, read_table
from nst.tables.frame import flat
from nst.tables.request import OF_THE_TABLE, Request
from nst.tables.settings import as_text
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


def folder_of(run: RunConfig) -> Path:
    """The folder of a run."""
    return run_folder(asdict(run))


def finished(run: RunConfig) -> bool:
    """Whether the run is finished."""
    return (folder_of(run) / SUMMARY).is_file()


def make_plan(request: Request) -> Plan:
    """Compose every run of the table; no data is read. Titles describe the actual runs.

    Raises:
        ValueError: an unknown table, settings that no run can have (the row is named), groups that are no values of the
            table's axis, or that lack a baseline or mix networks.
    """
    table = read_table(request.table)
    cells = tuple(_cell(request, table, group, row) for group in table.groups for row in group.rows)
    _check_groups(request.table, cells)
    changed = [cell.runs[0] for cell in cells if _extent(cell.runs[0]) != _extent(cell.original)]
    if changed:  # the table's title no longer says what was run
        extents = [_extent(cell.runs[0]) for cell in cells]
        names, limits, lengths = ([*dict.fromkeys(column)] for column in zip(*extents, strict=True))
        parts = [
            ", ".join(map(str, names)),
            *(f"{limit:,} training images" for limit in limits if limit and len(limits) == 1),
        ]
        parts += [f"{length} epoch{'s' * (length != 1)}" for length in lengths if len(lengths) == 1]
        table.title = ", ".join([*parts, f"test {table.metric}"])
    for group in table.groups:
        pairs = [(_networks(cell.original), _networks(cell.runs[0])) for cell in cells if cell.group is group]
        if any(original != actual for original, actual in pairs):
            taught = dict.fromkeys(f"{teacher} → {student}" for _, (teacher, student) in pairs if teacher is not None)
            group.title = ", ".join(taught) or pairs[0][1][1]
    return Plan(request, table, cells, _along(table.along, request.table, cells) if table.along else {})


def _extent(run: RunConfig) -> tuple[str, int | None, int]:
    """Data set, limit of training images, epochs."""
    return run.data["name"], run.data.get("limit"), run.trainer.epochs


def _networks(run: RunConfig) -> tuple[str | None, str]:
    """The names of teacher and student."""
    return (run.teacher.model or {}).get("name"), run.model["name"]


def _cell(request: Request, table: Table, group: Group, row: Row) -> Cell:
    own = [*table.overrides, *row.run]
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
        reasons = [
            why_live(spec, networks.teacher_shapes[spec.layer], run.cache.large)
            for spec in networks.distiller.target_specs
        ]
        if None not in reasons:
            return [o for o in overrides if not o.startswith("cache.")], replace(run, cache=CacheConfig())
    return overrides, run


def _views_shown(run: RunConfig) -> float:
    """How many views of an image a run may show at most; fewer than its epochs means less augmentation."""
    stored = run.cache.views and run.cache.views != "all"
    return int(run.cache.views) if stored else math.inf


def _short(value: Any) -> str:
    """A value as it is typed; of an absolute path the last part, since a page may be shared."""
    return Path(value).name if isinstance(value, str) and value.startswith("/") else as_text(value)


def _check_groups(table: str, cells: Sequence[Cell]) -> None:
    """Raises ValueError for a group without a baseline, or of several students or teachers: one is measured and compared."""
    first: dict[str, tuple[str, str, Any]] = {}
    for cell in cells:
        run, place = cell.runs[0], f"table={table}: groups: {cell.group.name}: rows: {cell.row.name}"
        teacher = run.teacher.model
        if cell.row is cell.group.rows[0] and teacher is not None:
            raise ValueError(
                f"{place} has the teacher {teacher['name']}; the first row is the baseline, trained without one (loss=ce)"
            )
        parts = {"student": (run.model["name"], run.model["name"])}
        if teacher is not None:
            parts["teacher"] = (teacher["name"], [teacher, run.teacher.weights, run.teacher.seed])
        for part, (name, identity) in parts.items():
            row, other, known = first.setdefault(f"{cell.group.name} {part}", (cell.row.name, name, identity))
            if identity != known:
                raise ValueError(
                    f"{place} has another {part} ({name}) than {row} ({other}); a group has one of each: make two groups"
                )


def _along(key: str, table: str, cells: Sequence[Cell]) -> dict[str, float]:
    """The value of a setting in each group. Raises ValueError where it is no axis: not one number above 0 a group, not one group a number."""
    source = f"table={table}: along: {key}"
    values: dict[str, float] = {}
    for cell in cells:
        settings, group = flat(asdict(cell.runs[0])), cell.group.name
        if key not in settings:
            hint = nearest(key, settings) or "a key such as data.limit is needed"
            raise ValueError(f"{source}: runs have no such setting; {hint.strip()}")
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(
                f"{source}: it is {as_text(value)} in group {group}; a number above 0 is needed, the axis is logarithmic"
            )
        if values.setdefault(group, value) != value:
            raise ValueError(
                f"{source}: it is {values[group]} and {value} in group {group}; all rows of a group need the same"
            )
    for value in values.values():
        if len(same := [other for other in values if values[other] == value]) > 1:
            raise ValueError(
                f"{source}: it is {value} in groups {' and '.join(same)}; each needs a value of its own, so an override cannot "
                "set it for all of them"
            )
    if len(values) < 2:
        raise ValueError(f"{source}: there is one group; an axis needs two at least")
    return values
