"""Which runs a table needs, as settings and as the file that the report reads."""

import json
import math
from collections.abc import Callable, Sequence
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
from nst.files import write_whole
from nst.report.settings import as_typed
from nst.reproduce.axis import axis_values
from nst.reproduce.headings import group_title, table_title
from nst.reproduce.request import Request
from nst.reproduce.table import Group, Row, Table, read_table
from nst.runs.folder import SUMMARY, run_folder
from nst.teacher import why_live

# Settings that change how a result is computed but not its meaning: stated, but they do not prevent a comparison.
HOW = (
    "trainer.precision",
    "teacher.precision",
    "trainer.compile",
    "trainer.channels_last",
    "trainer.sync_bn",
    "cache.",
    "teacher.weights",
)
UNSTATED = (*UNNAMED, "seed", "teacher.mean", "teacher.std", "teacher.min_accuracy")
SHORTER = ("trainer.epochs", "teacher.recipe.trainer.epochs")


@dataclass(frozen=True)
class Cell:
    """One row of the table with its runs, one a seed."""

    group: Group
    row: Row
    meant: RunConfig  # the table's settings, without the request's overrides
    command: str  # of its first seed
    runs: tuple[RunConfig, ...]
    changes: tuple[str, ...]  # "key: new (table: old)"
    reduced: bool  # shorter, or on fewer images
    comparable: bool  # with published figures: the table's own settings, except for how they are computed


@dataclass(frozen=True)
class Plan:
    """All runs of a table, and the folder of its result."""

    request: Request
    table: Table
    cells: tuple[Cell, ...]
    along: dict[str, float] = field(default_factory=dict)  # group → its value of the setting `table.along`

    @property
    def folder(self) -> Path:
        """The table's own folder."""
        return Path(self.request.outputs) / "tables" / self.request.folder

    @property
    def teachers(self) -> list[RunConfig]:
        """The runs that train teachers, each once."""
        students = [run for cell in self.cells for run in cell.runs]
        needed = [teacher_run(s) for s in students if s.teacher.model is not None and s.teacher.weights is None]
        return list({run_folder(asdict(run)): run for run in needed}.values())

    @property
    def caches(self) -> list[RunConfig]:
        """One run per teacher cache, with all summaries that the table's students need."""
        runs: dict[str, RunConfig] = {}
        for run in (cell.runs[0] for cell in self.cells if cell.runs[0].cache.views):
            key = cache_key(run)
            merged = runs.get(key, run)
            new = [node for node in run.loss.values() if node not in merged.loss.values()]
            runs[key] = replace(
                merged, loss=merged.loss | {f"term{len(merged.loss) + i}": n for i, n in enumerate(new)}
            )
        return list(runs.values())


def cache_key(run: RunConfig) -> str:
    """Equal for runs that share a teacher cache."""
    return json.dumps([run.data, run.model, asdict(run.teacher), asdict(run.cache)], sort_keys=True)


def finished(run: RunConfig) -> bool:
    """Whether the run is finished."""
    return (run_folder(asdict(run)) / SUMMARY).is_file()


def make_plan(request: Request, configs: Path) -> Plan:
    """Compose every run of the table; no data is read. Titles describe the actual runs.

    Raises:
        ValueError: an unknown table, settings that no run can have (the row is named), groups that are no values of the table's axis, or that
            lack a baseline or mix networks.
    """
    table = read_table(request.table, configs)
    seeds = range(request.seeds or table.seeds)
    cells = tuple(_cell(request, table, group, row, seeds, _settings) for group in table.groups for row in group.rows)
    _check_groups(request.table, cells)
    table.title = table_title(table, [(cell.meant, cell.runs[0]) for cell in cells])
    for group in table.groups:
        group.title = group_title(group, [(cell.meant, cell.runs[0]) for cell in cells if cell.group is group])
    runs = [(cell.group.name, flat(asdict(cell.runs[0]))) for cell in cells]
    return Plan(request, table, cells, axis_values(table.along, request.table, runs) if table.along else {})


def _cell(
    request: Request,
    table: Table,
    group: Group,
    row: Row,
    seeds: range,
    settings: Callable[[list[str]], RunConfig],
) -> Cell:
    table_overrides = [*table.overrides, *row.run]
    data_root = [o for o in request.overrides if o.startswith("data.root=")]  # depends on the machine: no table has it
    place = f"table={request.table}: groups: {group.name}: rows: {row.name}"
    try:
        overrides, original = _without_unused_cache([*table_overrides, *data_root], settings)
        actual = original
        if request.overrides:
            overrides, actual = _without_unused_cache([*table_overrides, *request.overrides], settings)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{place}: {explain(error)}") from error
    if request.epochs < 1:
        overrides.append(f"trainer.epochs={max(1, round(request.epochs * actual.trainer.epochs))}")
        if actual.teacher.model is not None and actual.teacher.weights is None:
            teacher = max(1, round(request.epochs * actual.teacher.recipe.trainer.epochs))
            overrides.append(f"teacher.recipe.trainer.epochs={teacher}")
        overrides, actual = _without_unused_cache(overrides, settings)
    _check_row(place, actual)
    actual = replace(actual, outputs=request.outputs)
    changed = _changes(flat(asdict(original)), flat(asdict(actual)))
    reduced = any(key in SHORTER and new < old for key, old, new in changed) or actual.data.get(
        "limit"
    ) != original.data.get("limit")
    return Cell(
        group, row, original, " ".join(["nst train", *map(quote, overrides), "seed=0"]),
        tuple(replace(actual, seed=seed) for seed in seeds),
        tuple(f"{key}: {short(new)} (table: {short(old)})" for key, old, new in changed), reduced,
        all(key.startswith(HOW) for key, _, _ in changed) and views_shown(actual) >= min(
            views_shown(original), actual.trainer.epochs
        ),
    )  # fmt: skip


def views_shown(run: RunConfig) -> float:
    """How many views of an image a run may show at most; fewer than its epochs means less augmentation."""
    stored = run.cache.views and run.cache.views != "all"
    return int(run.cache.views) if stored else math.inf


def _check_row(place: str, run: RunConfig) -> None:
    """Raises ValueError for settings of a run that belong to the whole table, which would ignore them, or end with them."""
    usual = RunConfig()
    for key, remedy in (
        ("seed", "a table runs seeds 0 to N-1; pass seeds=N"),
        ("outputs", "pass outputs=FOLDER to nst reproduce alone"),
        ("dry_run", "plan=true shows the plan of a table"),
    ):
        if getattr(run, key) != getattr(usual, key):
            raise ValueError(f"{place}: {key}={as_typed(getattr(run, key))}: {remedy}")


def _check_groups(table: str, cells: Sequence[Cell]) -> None:
    """Raises ValueError for a group without a baseline, or of several students or teachers: one is measured and compared."""
    first: dict[str, tuple[str, str, Any]] = {}
    for cell in cells:
        run, place = cell.runs[0], f"table={table}: groups: {cell.group.name}: rows: {cell.row.name}"
        if cell.row is cell.group.rows[0] and run.teacher.model is not None:
            raise ValueError(
                f"{place} has the teacher {run.teacher.model['name']}; the first row is the baseline, trained without one (loss=ce)"
            )
        parts = {"student": (run.model["name"], run.model["name"])}
        if run.teacher.model is not None:
            parts["teacher"] = (run.teacher.model["name"], [run.teacher.model, run.teacher.weights, run.teacher.seed])
        for part, (name, identity) in parts.items():
            row, other, known = first.setdefault(f"{cell.group.name} {part}", (cell.row.name, name, identity))
            if identity != known:
                raise ValueError(
                    f"{place} has another {part} ({name}) than {row} ({other}); a group has one of each: make two groups"
                )


def _without_unused_cache(
    overrides: list[str], settings: Callable[[list[str]], RunConfig]
) -> tuple[list[str], RunConfig]:
    """A run and its overrides, without those of a teacher cache that would cache none of its summaries: it stays live."""
    run = settings(overrides)
    if run.cache.views == 0 or cacheable(run):
        return overrides, run
    return [override for override in overrides if not override.startswith("cache.")], replace(run, cache=CacheConfig())


def cacheable(run: RunConfig) -> bool:
    """Whether a teacher cache has any target that the run needs."""
    networks = build.networks(run)
    shapes = networks.teacher_shapes
    return any(why_live(spec, shapes[spec.layer], run.cache.large) is None for spec in networks.distiller.target_specs)


def _settings(overrides: list[str]) -> RunConfig:
    return build.settings(composed(overrides))


def short(value: Any) -> str:
    """A value as it is typed; of an absolute path the last part, since a page may be shared."""
    return Path(value).name if isinstance(value, str) and value.startswith("/") else as_typed(value)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"dotted.key": value}`."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = [k for k in dict.fromkeys([*old, *new]) if not k.startswith(UNSTATED)]
    if new.get("teacher.weights") is not None:
        keys = [k for k in keys if not k.startswith("teacher.recipe.")]
    return [(k, old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]


def write_plan(plan: Plan) -> None:
    """Write `plan.json`: all that the report needs besides the run folders; paths are relative to `outputs`."""
    table, outputs = plan.table, Path(plan.request.outputs)
    groups: list[dict[str, Any]] = []
    for group in table.groups:
        cells = [cell for cell in plan.cells if cell.group is group]
        rows = [
            {
                "name": cell.row.name,
                "label": cell.row.label,
                "published": cell.row.published,
                "published_top5": cell.row.published_top5,
                "epoch": cell.row.epoch,
                "tuned": cell.row.tuned,
                "command": cell.command,
                "changes": list(cell.changes),
                "reduced": cell.reduced,
                "comparable": cell.comparable,
                "runs": [
                    {"seed": run.seed, "folder": str(run_folder(asdict(run)).relative_to(outputs))} for run in cell.runs
                ],
            }
            for cell in cells
        ]
        groups.append(
            {
                "name": group.name,
                "title": group.title,
                "at": plan.along.get(group.name),
                "teacher": asdict(group.teacher),
                "layers": asdict(group.layers),
                "rows": rows,
            }
        )
    content = {
        "table": plan.request.table,
        "command": plan.request.command,
        "title": table.title,
        "source": table.source,
        "metric": table.metric,
        "along": table.along,
        "groups": groups,
    }
    write_whole(plan.folder / "plan.json", json.dumps(content, indent=1, ensure_ascii=False).encode())
