"""`nst reproduce`: its arguments, and the way from them to the page."""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from shlex import quote
from typing import Any

from omegaconf import MISSING, OmegaConf

from nst.config import CONFIGS, UNNAMED, RunConfig, check_ranges, setting
from nst.tables.file import check_known, read_table

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
        parts += sorted(o for o in self.overrides if o.split("=")[0] not in UNNAMED)  # of a path the last component
        name = ",".join(re.sub(r"[^\w.=+-]+", "-", re.sub(r"=.*/", "=", text)) for text in parts)
        table = Path(self.table).stem if self.table.endswith((".yaml", ".yml")) else self.table
        if len(name) > 120:  # file systems have limits
            name = f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return Path(self.outputs, "tables", table, name or "full")

    @property
    def command(self) -> str:
        """The command line of this request."""
        arguments = [f"table={self.table}", *([f"seeds={self.seeds}"] if self.seeds else [])]
        arguments += [f"epochs={self.epochs:g}"] if self.epochs != 1 else []
        return " ".join(["nst reproduce", *map(quote, [*arguments, *self.overrides])])


def parse(arguments: Sequence[str]) -> Request:
    """Read `key=value` arguments. Raises ValueError, OmegaConfBaseException for a value of another type."""
    given: dict[str, Any] = {"overrides": []}
    keys, of_runs = ([f.name for f in fields(schema)] for schema in (Request, RunConfig))
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r}: key=value is needed; nst reproduce --help lists the keys")
        if key == "seed":
            raise ValueError(f"{argument}: a table runs seeds 0 to N-1; pass seeds=N")
        if key not in of_runs and "." not in key and difflib.get_close_matches(key, keys):
            check_known(argument, key, keys)
        given |= {key: value} if key in keys else {"overrides": [*given["overrides"], argument]}
    request: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Request), given))
    check_ranges(request, "")
    read_table(request.table)  # a misspelt name fails at once
    if request.plan and request.page:
        raise ValueError("plan=true page=true: one of them is needed")
    return request


def reproduce(request: Request) -> None:
    """Plan a table and print what is finished and missing; run that, evaluate the networks, write and print the result.

    Raises ValueError for settings that no run can have or teacher weights that do not fit; Interrupted once all is saved.
    """
    from rich.console import Console
    from rich.table import Table

    from nst.dist import join
    from nst.report.page import write_result
    from nst.tables.frame import read_frame
    from nst.tables.plan import check_teachers, execute, finished, folder_of, make_plan

    plan, failed, elsewhere = make_plan(request), [], []
    if not request.page:
        check_teachers(plan)
    with join(plan.cells[0].runs[0].trainer.device) as here:
        if here.main and not request.page:
            lines = [(f"teacher {run.model['name']}", (run,)) for run in plan.teachers]
            lines += [(plan.name_of(cell), cell.runs) for cell in plan.cells]
            missing = sum(not finished(run) for _, runs in lines for run in runs)
            table = Table(
                "run", title=f"{plan.table.title}: {sum(len(runs) for _, runs in lines)} runs, {missing} to do"
            )
            for column in ("epochs", "runs", "finished", "measured, s a run"):
                table.add_column(column, justify="right")
            for name, runs in lines:
                seconds = read_frame(folder_of(run) for run in runs if finished(run))["seconds"]
                cells = runs[0].trainer.epochs, len(runs), len(seconds), f"{seconds.mean():.0f}" if len(seconds) else ""
                table.add_row(name, *map(str, cells))
            Console().print(table)
            print(f"{plan.banner}\nresult: {request.folder}".strip())
        if request.plan:
            return
        if not request.page:
            failed, elsewhere = execute(plan, here)
        if not here.main:
            return
        if elsewhere:
            print(f"not finished, run by other processes, the last of which writes the page: {'; '.join(elsewhere)}")
        else:
            write_result(plan, here.device)
    for reason in failed:
        print(f"failed: {reason}")
