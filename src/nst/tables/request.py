"""The command line of `nst reproduce`."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote

from nst.config import CONFIGS, UNNAMED, RunConfig
from nst.tables.file import nearest, result_name

TABLES = sorted(
    str(path.relative_to(CONFIGS / "table").with_suffix("")) for path in (CONFIGS / "table").rglob("*.yaml")
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

KEYS = ("table", "seeds", "epochs", "plan", "page", "outputs")
OF_THE_TABLE = {  # keys of a run that a row cannot have
    "seed": "a table runs seeds 0 to N-1; pass seeds=N",
    "outputs": "pass outputs=FOLDER to nst reproduce alone",
    "dry_run": "plan=true shows the plan of a table",
}


@dataclass(frozen=True)
class Request:
    """A table, with the arguments of the command line."""

    table: str
    seeds: int | None = None  # None: the table's own
    epochs: float = 1.0  # fraction of each run's length
    plan: bool = False
    page: bool = False
    outputs: str = "outputs"
    overrides: tuple[str, ...] = ()  # of every run

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
    """
    given: dict[str, str] = {}
    overrides: list[str] = []
    keys_of_runs = {field.name for field in fields(RunConfig)}  # `optim=adamw` is no misspelt key of a table
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r}: key=value is needed; nst reproduce --help lists the keys")
        if key == "seed":
            raise ValueError(f"{argument}: {OF_THE_TABLE[key]}")
        if key in KEYS:
            given[key] = value
        elif key not in keys_of_runs and "." not in key and (hint := nearest(key, KEYS)):
            raise ValueError(f"{argument}: unknown key; {hint.strip()}")
        else:
            overrides.append(argument)
    if "table" not in given:
        raise ValueError("which table? table=quick/digits for example; nst reproduce --help lists them")
    result_name(given["table"])
    seeds, epochs = given.get("seeds"), given.get("epochs", "1")
    if seeds is not None and (not seeds.isdecimal() or int(seeds) < 1):
        raise ValueError(f"seeds={seeds}: how many seeds, a whole number from 1, is needed")
    if not re.fullmatch(r"\d*\.?\d+", epochs) or not 0 < float(epochs) <= 1:
        raise ValueError(
            f"epochs={epochs}: a fraction of each run's length, above 0 and up to 1, is needed; "
            "trainer.epochs=N sets a number for the students"
        )
    for key in ("plan", "page"):
        if given.get(key, "false") not in ("true", "false"):
            raise ValueError(f"{key}={given[key]}: true or false is needed")
    if given.get("plan") == given.get("page") == "true":
        raise ValueError("plan=true page=true: one of them is needed")
    return Request(
        given["table"], int(seeds) if seeds else None, float(epochs), given.get("plan") == "true", given.get("page") == "true",
        given.get("outputs", "outputs"), tuple(overrides),
    )  # fmt: skip
