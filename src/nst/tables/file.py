"""The file of a table, `configs/table/**/*.yaml` or a user's, as typed objects."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nst.cli.compose import user_folders
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
    by: str | None = (
        None  # whose: authors (of the method), third party, …; ", unverified" where its source was not read
    )


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


KINDS: dict[Any, str] = {
    Row: "a row", Group: "a group", Published: "a published figure", Layers: "layers", Table: "the table",
}  # fmt: skip


def read_table(name: str) -> Table:
    """A table: `paper/cifar10` of the project, `mine` of `./configs/table`, or the path of a .yaml file.

    Returns:
        The table with the overrides of each row complete but for the table's own, and the epoch of every figure.

    Raises:
        ValueError: unknown name (the nearest are named), or an error in its file (the key is named).
    """
    path = find_table(name)
    try:
        content = yaml.safe_load(path.read_text("utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError(f"{path}: keys are needed (title, source, metric, …), found a list or nothing")
        table = _typed(Table, content)
        check_ranges(table, f"{path}: ")
        _check_names(f"{path}: groups", [group.name for group in table.groups], at_least="a group with rows")
        _check_names(f"{path}: methods", [method.name for method in table.methods])
        groups = [group.name for group in table.groups]
        _check_known(f"{path}: published", table.published, groups)
        for method in table.methods:
            _check_known(f"{path}: methods: {method.name}: groups", method.groups or [], groups)
        for group in table.groups:
            _complete(group, table, f"{path}: groups: {group.name}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_readable(error)}") from error
    return table


def _typed(schema: Any, content: Any) -> Any:
    """An object of a schema. Raises OmegaConf's errors for what does not fit it."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), content))


def _complete(group: Group, table: Table, place: str) -> None:
    """Give a group the rows of the table's methods, and its rows the group's overrides and the epoch of their figures."""
    figures = table.published.get(group.name, {})
    methods = [method for method in table.methods if method.groups is None or group.name in method.groups]
    _check_known(f"{place}: published", figures, [method.name for method in methods])
    for i, method in enumerate(methods):
        value = figures.get(method.name)
        figure = _typed(Published, value if isinstance(value, dict) else {"published": value})
        methods[i] = replace(method, **{key: given for key, given in vars(figure).items() if given is not None})
    group.rows = [replace(row, overrides=[*group.overrides, *row.overrides]) for row in (*methods, *group.rows)]
    names, labels = [row.name for row in group.rows], [row.label for row in group.rows]
    _check_names(f"{place}: rows", names, at_least="the baseline")
    if table.along is not None and (same := {label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{place}: rows: two have the label {min(same)!r}, by which lines along an axis are known")
    if "teacher" in names:  # pictures of the networks are named by their rows, and teacher
        raise ValueError(f"{place}: rows: a row cannot be called teacher")
    for name, figure in (("teacher", group.teacher), *zip(names, group.rows, strict=True)):
        figure.epoch = figure.epoch or table.epoch
        check_ranges(figure, f"{place}: {name}: ")


def result_name(name: str) -> str:
    """The folder of a table's results below `tables/`: its name, or that of its file.

    Raises:
        ValueError: a name that could lead out of the folder.
    """
    if name.endswith((".yaml", ".yml")):
        name = Path(name).stem
    if not all(map(_is_plain, name.split("/"))):
        raise ValueError(f"table={name}: a name such as quick/digits is needed, or the path of a .yaml file")
    return name


def find_table(name: str) -> Path:
    """The file of a table.

    Raises:
        ValueError: there is none, or there are two of this name.
    """
    result_name(name)
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ValueError(f"table={name}: no such file")
        return Path(name)
    folders = [folder / "table" for folder in (CONFIGS, *user_folders())]
    found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    if len(found) > 1:
        raise ValueError(f"table={name}: both {found[0]} and {found[1]} are so named; pass the path: table={found[1]}")
    if not found:
        known = sorted(p.relative_to(f).with_suffix("").as_posix() for f in folders for p in f.rglob("*.yaml"))
        raise ValueError(
            f"table={name}: no such table; {nearest(name, known)}there are {', '.join(known)}; the path of a .yaml file works too"
        )
    return found[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint at the nearest names: "did you mean seeds? ", "" where none is near."""
    found = difflib.get_close_matches(name, [*known], n=2)
    return f"did you mean {' or '.join(found)}? " if found else ""


def _is_plain(name: str) -> bool:
    """Whether a name can be part of a file's name, and nothing else."""
    return re.fullmatch(r"[\w.+-]+", name) is not None and name not in (".", "..")


def _readable(error: OmegaConfBaseException) -> str:
    """A configuration error with its key, and the nearest keys to a misspelt one."""
    text, place, kind = str(error).splitlines()[0], str(error.full_key or error.key or ""), error.object_type
    where = f"{place} of {KINDS[kind]}" if kind in KINDS and "." not in place else place
    if "missing mandatory value" in text:
        return f"{where} is missing"
    if kind in KINDS and " not in " in text:
        keys = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
        return f"{where}: no such key; {nearest(str(error.key), keys)}there are {', '.join(keys)}"
    return f"{where}: {'a list is needed' if 'is not a ListConfig' in text else text}"


def _check_known(place: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            hint = nearest(str(name), known)
            raise ValueError(f"{place}: {name} is not among them; {hint}there are {', '.join(known)}")


def _check_names(place: str, names: list[str], at_least: str = "") -> None:
    if at_least and not names:
        raise ValueError(f"{place}: at least {at_least} is needed")
    for name in names:
        if not _is_plain(name):
            raise ValueError(f"{place}: the name {name!r} becomes part of file names: letters, digits, _ . + - only")
        if names.count(name) > 1:
            raise ValueError(f"{place}: {name} occurs {names.count(name)} times; names must be unique")
