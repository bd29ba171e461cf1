"""The command that lists runs as a table, JSON or CSV."""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.report.listing import FIELDS, grouped, read_runs, sections, select
from nst.report.settings import as_typed, number, taps_text
from nst.report.text import spread

Record = dict[str, Any]

USAGE = """List runs, by data set, teacher and student: their differences, and mean ± std (n)
and median over seeds.

  nst runs [field=value ...] [each=true] [sort=FIELD] [format=table|json|csv] [outputs=FOLDER]

  fields: data teacher model loss seed epochs state last best best_epoch fell_back seconds folder
  values: several separated by commas; * matches anything: 'loss=*nst*,kd' seed=0 state=finished
  last:   top-1 on the test images; of a run that is not finished, with data.validation, on the held-out ones
  each:   true lists single runs, with their folders
  sort:   last (default), best: highest first; other fields: lowest first
  format: table (default), json, csv"""

FORMATS = ("table", "json", "csv")


@dataclass(frozen=True)
class Request:
    """Filters and output format."""

    outputs: Path = Path("outputs")
    filters: dict[str, str] = field(default_factory=dict)
    sort: str = "last"
    each: bool = False
    format: str = "table"


def parse(arguments: Sequence[str]) -> Request:
    """Read `key=value` arguments.

    Raises:
        ValueError: an argument that is no `key=value`, or a value out of range.
    """
    settings = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r}: key=value is needed\n\n{USAGE}")
        settings[key] = text
    each, form = settings.pop("each", "false"), settings.pop("format", "table")
    if each not in ("true", "false"):
        raise ValueError(f"each={each}: true or false is needed")
    if form not in FORMATS:
        raise ValueError(f"format={form}: one of {', '.join(FORMATS)} is needed")
    outputs, sort = Path(settings.pop("outputs", "outputs")), settings.pop("sort", "last")
    return Request(outputs, settings, sort, each == "true", form)


def list_runs(arguments: Sequence[str]) -> None:
    """Print the selected runs; damaged runs are named, on stderr if the output is for programs.

    Raises:
        ValueError: an invalid argument, an unknown field, or no such folder.
    """
    if any(argument in ("-h", "--help", "help") for argument in arguments):
        print(USAGE)
        return
    request = parse(arguments)
    runs, damaged = read_runs(request.outputs)
    runs = select(runs, request.filters, request.sort)
    by_section = {
        key: members if request.each else grouped(members, request.sort) for key, members in sections(runs).items()
    }
    records = [record for members in by_section.values() for record in members]
    if request.format == "json":
        print(json.dumps([{k: v for k, v in record.items() if k != "config"} for record in records], indent=1))
    elif request.format == "csv":
        _write_csv(records, request.each)
    else:
        _print_tables(by_section, request, len(runs))
    for line in damaged:
        print(line, file=sys.stdout if request.format == "table" else sys.stderr)


def _print_tables(by_section: dict[tuple[str, str, str], list[Record]], request: Request, count: int) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    summary = f"{count} run{'s' * (count != 1)} in {request.outputs}"
    if not by_section:
        console.print(
            Text(f"{summary} (<data>/<teacher>-<student>/<loss>/seed…) {'match' if request.filters else 'found'}")
        )
        return
    console.print(Text(f"{summary}, by {request.sort}; accuracies: top-1 in %"))
    for (data, teacher, model), records in by_section.items():
        pair = f"{teacher} → {model}" if teacher != "none" else f"{model}, no teacher"
        rows = [run_cells(record) if request.each else group_cells(record) for record in records]
        names = [name for name in rows[0] if any(row[name] for row in rows)]  # columns without a value are left out
        grid = Table(title=Text(f"{data}: {pair}"), title_justify="left")
        for name in names:
            is_text = name in ("loss", "differs in", "runs", "state", "run")
            grid.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for row in rows:
            grid.add_row(*(Text(printable(row[name])) for name in names))
        console.print(grid)


def settings_cells(record: Record) -> dict[str, str]:
    """The settings that distinguish a run from the others of its section."""
    terms = " + ".join(f"{name} {number(weight)}" for name, weight in record["weights"].items())
    rate = "" if record["rate"] is None else number(record["rate"])
    settings = " ".join(f"{key}={shown(setting)}" for key, setting in record["settings"].items())
    return {
        "loss": terms or record["loss"],
        "rate": f"{rate} ({record['schedule']})" if record["schedule"] else rate,
        "epochs": str(record["epochs"]),
        "differs in": settings,
    }


def group_cells(record: Record) -> dict[str, str]:
    """A group of equal runs as text, by column."""
    states = ", ".join(f"{count} {state}" for state, count in record["states"].items())
    return {
        **settings_cells(record),
        "last": "" if record["last"] is None else spread(record["last"]),
        "median": "" if record["last"] is None else f"{record['last']['median']:.2f}",
        "best": "" if record["best"] is None else spread(record["best"]),
        "fell back": str(record["fell_back"] or ""),
        "seconds": "" if record["seconds"] is None else f"{record['seconds']:.1f}",
        "runs": states,
    }


def run_cells(record: Record) -> dict[str, str]:
    """A run as text, by column."""
    keys = ("seed", "state", "last", "best", "best_epoch", "seconds")
    return {
        **settings_cells(record),
        **{key.replace("_", " "): shown(record[key]) if record[key] is not None else "" for key in keys},
        "fell back": "yes" if record["fell_back"] else "",
        "run": record["folder"],
    }


def shown(value: Any) -> str:
    """A value as text; of layers the layers' names, the teacher's first where they differ."""
    if isinstance(value, list) and all(isinstance(v, dict) and {"teacher", "student"} <= v.keys() for v in value):
        return taps_text(value)
    if value is None or isinstance(value, bool):
        return as_typed(value)
    return f"{value:.2f}" if isinstance(value, float) and value >= 10 else number(value)


def printable(text: str) -> str:
    """Text without control characters of a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _write_csv(records: Sequence[Record], each: bool) -> None:
    """One line a run or group; numbers unrounded, settings as JSON."""
    settings = ["data", "teacher", "model", "loss", "weights", "rate", "schedule", "epochs", "settings"]
    run_fields = [name for name in FIELDS if name not in settings]
    statistics = [f"{key}_{statistic}" for key in ("last", "best") for statistic in ("mean", "std", "median")]
    names = run_fields if each else ["seeds", "n", *statistics, "fell_back", "seconds", "states", "folders"]
    writer = csv.DictWriter(sys.stdout, [*settings, *names], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for record in records:
        row = dict(record)
        for key in () if each else ("last", "best"):
            row |= {f"{key}_{statistic}": (record[key] or {}).get(statistic) for statistic in ("mean", "std", "median")}
        writer.writerow({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()})
