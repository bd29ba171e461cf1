"""The file of a table, `configs/table/**/*.yaml` or a user's, as typed objects."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nst.cli.compose import user_folders
from nst.config import CONFIGS

EPOCHS = ("last", "best", "unknown")


@dataclass
class Layers:
    """The layers for MMD and heat maps, independent of the layers of a method."""

    teacher: str = "last"
    student: str = "last"


@dataclass
class Published:
    """A published figure in percent, top-1 and top-5, of which epoch it is and whose; null where there is none."""

    published: float | None = None
    published_top5: float | None = None
    epoch: str | None = None  # last | best | unknown; null: the table's own
    by: str | None = (
        None  # in a word or two: authors (of the method), third party, …; ", unverified" where its source was not read
    )


@dataclass
class Row(Published):
    """One method: its overrides of `nst train`, and its published figure."""

    name: str = MISSING
    label: str = MISSING
    run: list[str] = MISSING
    tuned: bool = False  # whether the loss's weight was tuned for these networks and data


@dataclass
class Group:
    """Rows that share teacher and student. The first row is the baseline: the student trained without a teacher."""

    name: str = MISSING
    title: str = MISSING
    teacher: Published = field(default_factory=Published)
    layers: Layers = field(default_factory=Layers)
    rows: list[Row] = MISSING


@dataclass
class Pair:
    """A group whose rows are the table's methods."""

    name: str = MISSING
    title: str = MISSING
    overrides: list[str] = MISSING
    teacher: Published = field(default_factory=Published)
    layers: Layers = field(default_factory=Layers)


@dataclass
class Method:
    """A row of every pair, or of the pairs that are named."""

    name: str = MISSING
    label: str = MISSING
    overrides: list[str] = MISSING
    pairs: list[str] | None = None
    tuned: bool = False
    by: str | None = None  # whose its published figures are, unless one says otherwise


@dataclass
class Table:
    """A table of experiments: groups with their rows, or pairs of networks times methods."""

    title: str = MISSING
    source: str = MISSING
    metric: str = MISSING  # error | accuracy, in percent
    seeds: int = MISSING  # default
    epoch: str = "unknown"  # of which the published figures are: last | best | unknown
    along: str | None = None  # the setting whose values the groups are, such as data.limit: gains are drawn along it
    overrides: list[str] = field(default_factory=list)  # of every run
    groups: list[Group] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)
    published: dict[str, dict[str, Any]] = field(default_factory=dict)  # pair → method → figure, or a Published


KINDS: dict[Any, str] = {
    Row: "a row", Group: "a group", Pair: "a pair", Method: "a method", Published: "a teacher", Layers: "layers", Table: "",
}  # fmt: skip


def read_table(name: str) -> Table:
    """A table: `paper/cifar10` of the project, `mine` of `./configs/table`, or the path of a .yaml file.

    Raises:
        ValueError: unknown name (the nearest are named), or an error in its file (the key is named).
    """
    path = find_table(name)
    try:
        content = OmegaConf.create(yaml.safe_load(path.read_text("utf-8-sig")) or [])
        if not OmegaConf.is_dict(content):
            raise ValueError(f"{path}: keys are needed (title, source, metric, …), found a list or nothing")
        table: Table = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Table), content))  # pyright: ignore[reportAssignmentType]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: invalid YAML: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {_readable(error)}") from error
    if table.pairs or table.methods:
        table.groups = _pairs_times_methods(table, path)
    _check(table, path)
    for group in table.groups:
        for figure in (group.teacher, *group.rows):
            figure.epoch = figure.epoch or table.epoch
    return table


def result_name(name: str) -> str:
    """The folder of a table's results below `tables/`: its name, or that of its file.

    Raises:
        ValueError: a name that could lead out of the folder.
    """
    if name.endswith((".yaml", ".yml")):
        name = Path(name).stem
    if not all(_is_plain(part) for part in name.split("/")):
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
    folders = [folder / "table" for folder in (CONFIGS, *user_folders()) if (folder / "table").is_dir()]
    found = [folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()]
    if len(found) > 1:
        raise ValueError(f"table={name}: both {found[0]} and {found[1]} are so named; pass the path: table={found[1]}")
    if not found:
        known = sorted(str(p.relative_to(f).with_suffix("")) for f in folders for p in f.rglob("*.yaml"))
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
    where = f"{place} of {KINDS[kind]}" if KINDS.get(kind) and "." not in place else place
    if "missing mandatory value" in text:
        return f"{where} is missing"
    if kind in KINDS and " not in " in text:
        keys = [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
        return f"{where}: no such key; {nearest(str(error.key), keys)}there are {', '.join(keys)}"
    return f"{where}: {'a list is needed' if 'is not a ListConfig' in text else text}"


def _pairs_times_methods(table: Table, path: Path) -> list[Group]:
    """Groups of rows, with the published figure of each cell: a number, or `{published: …, epoch: …, by: …}`."""
    if table.groups:
        raise ValueError(f"{path}: groups exclude pairs and methods; a table has either groups, or pairs and methods")
    if not table.pairs or not table.methods:
        raise ValueError(f"{path}: {'methods' if table.pairs else 'pairs'} is missing: pairs and methods go together")
    pairs = [pair.name for pair in table.pairs]
    _check_names(path, "methods", [method.name for method in table.methods])
    for method in table.methods:
        _check_known(path, f"methods: {method.name}: pairs", method.pairs or [], pairs)
    _check_known(path, "published", table.published, pairs)
    groups = []
    for pair in table.pairs:
        figures = table.published.get(pair.name, {})
        methods = [method for method in table.methods if method.pairs is None or pair.name in method.pairs]
        _check_known(path, f"published.{pair.name}", figures, [method.name for method in methods])
        rows = []
        for method in methods:
            value = figures.get(method.name)
            try:
                given = value if isinstance(value, dict) else {"published": value}
                figure: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Published), given))
            except OmegaConfBaseException as error:
                raise ValueError(
                    f"{path}: published.{pair.name}.{method.name}: a number or {{published: …, epoch: …, by: …}} is needed, found {value!r}"
                ) from error
            figure.by = figure.by or method.by
            overrides = [*pair.overrides, *method.overrides]
            rows.append(Row(**vars(figure), name=method.name, label=method.label, run=overrides, tuned=method.tuned))
        groups.append(Group(pair.name, pair.title, pair.teacher, pair.layers, rows))
    return groups


def _check_known(path: Path, key: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(
                f"{path}: {key}: {name} is not among them; {nearest(str(name), known)}there are {', '.join(known)}"
            )


def _check_names(path: Path, key: str, names: list[str]) -> None:
    for name in names:
        if not _is_plain(name):
            raise ValueError(
                f"{path}: {key}: the name {name!r} becomes part of file names: letters, digits, _ . + - only"
            )
        if names.count(name) > 1:
            raise ValueError(f"{path}: {key}: {name} occurs {names.count(name)} times; names must be unique")


def _check(table: Table, path: Path) -> None:
    """Checks that types cannot express."""
    if table.metric not in ("error", "accuracy"):
        raise ValueError(f"{path}: metric is {table.metric!r}; error or accuracy is needed")
    if table.seeds < 1:
        raise ValueError(f"{path}: seeds is {table.seeds}; at least 1 is needed")
    if not table.groups:
        raise ValueError(f"{path}: groups is missing: at least one group with rows is needed, or pairs and methods")
    _check_names(path, "groups", [group.name for group in table.groups])
    epochs = {"epoch": table.epoch}
    for group in table.groups:
        place = f"groups: {group.name}"
        if not group.rows:
            raise ValueError(f"{path}: {place}: rows is empty; at least the baseline is needed")
        names, labels = [row.name for row in group.rows], [row.label for row in group.rows]
        _check_names(path, f"{place}: rows", names)
        if table.along is not None and (same := [label for label in labels if labels.count(label) > 1]):
            raise ValueError(
                f"{path}: {place}: rows: two have the label {same[0]!r}"
            )  # lines are known by their labels
        if "teacher" in names:  # pictures of the networks are named by their rows, and teacher
            raise ValueError(f"{path}: {place}: rows: a row cannot be called teacher")
        for name, figure in (("teacher", group.teacher), *zip(names, group.rows, strict=True)):
            epochs[f"{place}: {name}: epoch"] = figure.epoch or table.epoch
    for key, epoch in epochs.items():
        if epoch not in EPOCHS:
            raise ValueError(f"{path}: {key} is {epoch!r}; one of {', '.join(EPOCHS)} is needed")
