"""What a table holds: `configs/table/**/*.yaml`, read into typed objects."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, OmegaConf

from nst.yaml_files import check_yaml


@dataclass
class Taps:
    """Where MMD and the figures look, whatever a method itself taps."""

    teacher: str = "last"
    student: str = "last"


@dataclass
class Published:
    """A published figure in percent, top-1 and top-5; null where there is none."""

    published: float | None = None
    published_top5: float | None = None


@dataclass
class Row(Published):
    """One method: the overrides of `train.py` that make it, and what was published."""

    name: str = MISSING
    label: str = MISSING
    run: list[str] = MISSING


@dataclass
class Group:
    """Rows that share teacher and student. The first row is the baseline: the student alone."""

    name: str = MISSING
    title: str = MISSING
    teacher: Published = field(default_factory=Published)
    taps: Taps = field(default_factory=Taps)
    rows: list[Row] = MISSING


@dataclass
class Table:
    """A table of experiments."""

    title: str = MISSING
    source: str = MISSING
    metric: str = MISSING  # error | accuracy, in percent
    images: list[int] = MISSING  # training and test images, for the estimate
    seeds: int = MISSING  # unless asked otherwise
    overrides: list[str] = field(default_factory=list)  # of every run
    groups: list[Group] = MISSING


def read_table(name: str, configs: Path) -> Table:
    """The table called `name`, such as "paper/cifar10".

    Raises:
        ValueError: there is none of this name (the nearest are named), or its file is wrong.
    """
    folder = configs / "table"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"table={name}: no such table; {hint}there are {', '.join(known)}")
    check_yaml(path)
    table = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Table), OmegaConf.load(path)))
    assert isinstance(table, Table)
    if table.metric not in ("error", "accuracy"):
        raise ValueError(f"{path}: metric is {table.metric!r}; error or accuracy is needed")
    return table
