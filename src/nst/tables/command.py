"""`nst reproduce`: its arguments, and the way from them to the page."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, OmegaConf

from nst.config import CONFIGS, UNNAMED, RunConfig, check_ranges, setting
from nst.tables.file import nearest, result_name

if TYPE_CHECKING:
    from nst.tables.plan import Plan

TABLES = sorted(
    path.relative_to(CONFIGS / "table").with_suffix("").as_posix() for path in (CONFIGS / "table").rglob("*.yaml")
)
USAGE = f"""Reproduce a table: plan its runs, run what is missing, write tables and one page.

  nst reproduce table=NAME [seeds=N] [epochs=FRACTION] [plan=true | page=true] [outputs=FOLDER] [key=value ...]

  table=quick/digits    one of {", ".join(TABLES)}
  table=mine            a table of your own in ./configs/table/mine.yaml, or table=path/to/mine.yaml
  seeds=3               students of every method: seeds 0, 1, 2 (the teacher is one network, trained or given once)
  epochs=0.1            a tenth of every run's epochs, the teacher's included: the result is labelled reduced
  plan=true             show the plan, with the measured time of finished runs; run nothing
  page=true             write the result of the finished runs, run nothing
  key=value             any override of `nst train`, for every run: data.root=FOLDER data.limit=2000 teacher.weights=FILE

The same command again continues an interrupted table. Started several times at once, on all GPUs or machines that see the
outputs folder, each process takes runs that no other has."""

OF_THE_TABLE = {  # keys of a run that a row cannot have
    "seed": "a table runs seeds 0 to N-1; pass seeds=N",
    "outputs": "pass outputs=FOLDER to nst reproduce alone",
    "dry_run": "plan=true shows the plan of a table",
}


@dataclass
class Request:
    """A table, with the arguments of the command line."""

    table: str = MISSING
    seeds: int | None = setting(None, least=1)  # null: the table's own
    epochs: float = setting(1.0, above=0, most=1)  # fraction of each run's length; trainer.epochs=N is a number
    plan: bool = False
    page: bool = False
    outputs: str = "outputs"
    overrides: list[str] = field(default_factory=list)  # of every run

    @property
    def folder(self) -> Path:
        """The folder of the result: named by the arguments, except for the number of seeds."""
        parts = [f"epochs={self.epochs:g}"] if self.epochs != 1 else []
        parts += sorted(o for o in self.overrides if o.split("=")[0] not in UNNAMED)
        parts = [re.sub(r"=.*/", "=", text) for text in parts]  # only the last component of a path
        name = ",".join(re.sub(r"[^\w.=+-]+", "-", text) for text in parts)
        if len(name) > 120:  # file systems have limits
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return Path(self.outputs, "tables", result_name(self.table), name or "full")

    @property
    def command(self) -> str:
        """The command line of this request."""
        arguments = [f"table={self.table}", *([f"seeds={self.seeds}"] if self.seeds else [])]
        arguments += [f"epochs={self.epochs:g}"] if self.epochs != 1 else []
        return " ".join(["nst reproduce", *map(quote, [*arguments, *self.overrides])])


def parse(arguments: Sequence[str]) -> Request:
    """Read `key=value` arguments.

    Raises:
        ValueError: an argument that is no `key=value`, or a value out of range.
        OmegaConfBaseException: a value of another type, or no table.
    """
    given: dict[str, str] = {}
    overrides: list[str] = []
    keys = [f.name for f in fields(Request) if f.name != "overrides"]
    keys_of_runs = {f.name for f in fields(RunConfig)}  # `optim=adamw` is no misspelt key of a table
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r}: key=value is needed; nst reproduce --help lists the keys")
        if key == "seed":
            raise ValueError(f"{argument}: {OF_THE_TABLE[key]}")
        if key in keys:
            given[key] = value
        elif key not in keys_of_runs and "." not in key and (hint := nearest(key, keys)):
            raise ValueError(f"{argument}: unknown key; {hint.strip()}")
        else:
            overrides.append(argument)
    content = {**given, "overrides": overrides}
    request: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Request), content))
    check_ranges(request, "")
    result_name(request.table)
    if request.plan and request.page:
        raise ValueError("plan=true page=true: one of them is needed")
    return request


def reproduce(request: Request) -> None:
    """Plan a table, run what is missing, evaluate the networks, write and print the result.

    Raises:
        ValueError: an unknown table, settings that no run can have, or teacher weights that do not fit.
        Interrupted: stopped by a signal, saved; the same request continues.
    """
    from nst.dist import join
    from nst.report.page import write_result
    from nst.tables.execute import Outcome, check_teachers, execute
    from nst.tables.plan import make_plan

    plan = make_plan(request)
    if not request.page:
        check_teachers(plan)
    with join(plan.cells[0].runs[0].trainer.device) as here:
        if here.main and not request.page:
            show(plan)
        if request.plan:
            return
        outcome = Outcome() if request.page else execute(plan, here)
        if not here.main:
            return
        if outcome.elsewhere:
            print(f"not finished, run by other processes: {'; '.join(outcome.elsewhere)}")
            print("the last process writes the page; page=true writes one of the finished runs")
        else:
            write_result(plan, here.device)
    for reason in outcome.failed.values():
        print(f"failed: {reason}")


def show(plan: "Plan") -> None:
    """Print what is finished, with its measured time, and what is missing."""
    from rich.console import Console
    from rich.table import Table

    from nst.tables.frame import read_frame
    from nst.tables.plan import finished, folder_of
    from nst.tables.statistics import sample

    several = len(plan.table.groups) > 1
    lines = [(f"teacher {run.model['name']}", [run]) for run in plan.teachers]
    lines += [(f"{c.group.title}: {c.row.label}" if several else c.row.label, [*c.runs]) for c in plan.cells]
    missing = sum(not finished(run) for _, runs in lines for run in runs)
    grid = Table(title=f"{plan.table.title}: {sum(len(runs) for _, runs in lines)} runs, {missing} to do")
    for column in ("run", "epochs", "runs", "finished", "measured, s a run"):
        grid.add_column(column, justify="left" if column == "run" else "right")
    for name, runs in lines:
        done = [folder_of(run) for run in runs if finished(run)]
        seconds = sample(read_frame(done)["seconds"])
        grid.add_row(
            name, str(runs[0].trainer.epochs), str(len(runs)), str(len(done)), f"{seconds.mean:.0f}" if seconds else ""
        )
    console = Console()
    console.print(grid)
    if changes := list(dict.fromkeys(change for cell in plan.cells for change in cell.changes)):
        kind = "the table's settings, except for"
        if not all(cell.comparable for cell in plan.cells):
            kind = "REDUCED" if any(cell.reduced for cell in plan.cells) else "CHANGED"
            kind += ", not comparable with published figures:"
        few = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
        console.print(f"{kind} {few}", highlight=False, markup=False)
    console.print(f"result: {plan.request.folder}", highlight=False, soft_wrap=True)
