"""The file of a table, `configs/table/**/*.yaml` or a user's, as typed objects."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from nst.cli.compose import nearest, user_folders
from nst.config import CONFIGS, check_ranges, setting

EPOCHS = ("last", "best", "unknown")


@dataclass
class Layers:
    """The layers for MMD and heat maps, independent of the layers of a method."""

    teacher: str = "last"
    student: str = "last"


@dataclass
class Published:
    """A published figure in percent, top-1 and top-5; null where there is none."""

    published: float | None = None
    published_top5: float | None = None
    epoch: str | None = setting(None, one_of=EPOCHS)  # of which the figure is; null: the table's own
    by: str | None = None  # authors (of the method), third party, …; ", unverified" where its source was not read


@dataclass
class Row(Published):
    """One method: its overrides of `nst train`, and its published figure."""

    name: str = MISSING
    label: str = MISSING
    overrides: list[str] = MISSING
    tuned: bool = False  # whether the loss's weight was tuned for these networks and data
    groups: list[str] | None = None  # of one of `methods`: the groups that have it; null: all


@dataclass
class Group:
    """Rows that share teacher and student. The first row is the baseline: the student trained without a teacher."""

    name: str = MISSING
    title: str = MISSING
    overrides: list[str] = field(default_factory=list)  # of every row
    teacher: Published = field(default_factory=Published)
    layers: Layers = field(default_factory=Layers)
    rows: list[Row] = field(default_factory=list)


@dataclass
class Table:
    """A table of experiments: groups with their rows, the methods before those of their own."""

    title: str = MISSING
    source: str = MISSING
    metric: str = setting(MISSING, one_of=("error", "accuracy"))  # in percent
    seeds: int = setting(MISSING, least=1)  # default
    epoch: str = setting("unknown", one_of=EPOCHS)  # of which the published figures are
    along: str | None = None  # the setting whose values the groups are, such as data.limit: gains are drawn along it
    overrides: list[str] = field(default_factory=list)  # of every run
    groups: list[Group] = MISSING
    methods: list[Row] = field(default_factory=list)  # rows of every group, or of those that they name
    published: dict[str, dict[str, Any]] = field(default_factory=dict)  # group → method → a number, or a `Published`


def read_table(name: str) -> Table:
    """A table: `paper/cifar10` of the project, `mine` of `./configs/table`, or the path of a .yaml file.

    The overrides of its rows are complete but for the table's own, and every figure has its epoch. Raises ValueError for an
    unknown name, with the nearest, and an error in the file, with its key.
    """
    path = find_table(name)
    try:
        content = yaml.safe_load(path.read_text("utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("keys are needed (title, source, metric, …), found a list or nothing")
        table = _typed(Table, content)
        check_ranges(table, "")
        groups = [group.name for group in table.groups]
        _check_names("groups", groups)
        for name in [*table.published, *(name for method in table.methods for name in method.groups or ())]:
            check_known("groups", name, groups)
        for group in table.groups:
            _complete(group, table)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return table


def _typed(schema: Any, content: Any, place: str = "") -> Any:
    """An object of a schema. Raises ValueError, which names the key, for what does not fit it."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), content))
    except OmegaConfBaseException as error:
        kind, key = error.object_type, f"{place}{error.full_key or error.key or ''}"
        if isinstance(error, ConfigKeyError) and is_dataclass(kind):
            check_known(key, str(error.key), [f.name for f in fields(kind)])
        raise ValueError(f"{key}: {str(error).splitlines()[0]}") from error


def _complete(group: Group, table: Table) -> None:
    """Give a group the rows of the table's methods, and its rows the group's overrides and the epoch of their figures."""
    figures, place = table.published.get(group.name, {}), f"groups: {group.name}"
    methods = [method for method in table.methods if method.groups is None or group.name in method.groups]
    for name in figures:
        check_known(f"{place}: published", name, [method.name for method in methods])
    for i, method in enumerate(methods):
        value = figures.get(method.name)
        figure = value if isinstance(value, dict) else {"published": value}
        figure = _typed(Published, figure, f"{place}: {method.name}: ")
        methods[i] = replace(method, **{key: given for key, given in vars(figure).items() if given is not None})
    group.rows = [replace(row, overrides=[*group.overrides, *row.overrides]) for row in (*methods, *group.rows)]
    names, labels = [row.name for row in group.rows], {row.label for row in group.rows}
    _check_names(f"{place}: rows", names)
    if table.along is not None and len(labels) < len(names):
        raise ValueError(f"{place}: rows: two have one label, by which lines along an axis are known")
    for name, figure in (("teacher", group.teacher), *zip(names, group.rows, strict=True)):
        figure.epoch = figure.epoch or table.epoch
        check_ranges(figure, f"{place}: {name}: ")


def _check_names(place: str, names: list[str]) -> None:
    """Raises ValueError unless there is a name, each is another and can be part of a file's name."""
    if not names:
        raise ValueError(f"{place}: at least one is needed")
    for name in names:
        if not re.fullmatch(r"[\w.+-]+", name) or name in (".", "..", "teacher") or names.count(name) > 1:
            raise ValueError(f"{place}: {name!r}: letters, digits, _ . + - only, each name once, none of them teacher")


def check_known(place: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError, with the nearest names, for a name that is not among those that are known."""
    if name not in (known := [*known]):
        raise ValueError(f"{place}: there is no {name}; {nearest(name, known)}")


def find_table(name: str) -> Path:
    """The file of a table. Raises ValueError if there is none, or if there are two of this name."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ValueError(f"table={name}: no such file")
        return Path(name)
    folders = [folder / "table" for folder in (CONFIGS, *user_folders())]
    files = [(p.relative_to(f).with_suffix("").as_posix(), p) for f in folders for p in sorted(f.rglob("*.yaml"))]
    check_known(f"table={name}", name, [known for known, _ in files])
    first, *others = [file for known, file in files if known == name]
    if others:
        raise ValueError(f"table={name}: both {first} and {others[0]} are so named; pass the path: table={others[0]}")
    return first
