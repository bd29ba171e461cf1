"""`nst runs`: all runs so far as tables, JSON or CSV."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.tables.frame import as_text, other_contents, rate, read_frame, weights_text
from nst.tables.statistics import sample

FIELDS = (
    "data", "teacher", "model", "loss", "seed", "epochs", "state", "last", "best", "best_epoch", "collapsed", "seconds",
    "folder",
)  # fmt: skip
ALWAYS_SHOWN = ("optim.lr", "schedule._target_", "trainer.epochs")  # in columns of their own
CHOICES = {"each": ("false", "true"), "format": ("table", "json", "csv"), "sort": FIELDS}

Record = dict[str, Any]


def list_runs(arguments: Sequence[str]) -> None:
    """Print the selected runs; damaged runs are named, on stderr if the output is for programs.

    Raises:
        ValueError: an argument that is no `key=value`, an unknown field, or a value out of range.
    """
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    outputs, options = Path(given.pop("outputs", "outputs")), {"each": "false", "format": "table", "sort": "last"}
    options |= {key: given.pop(key) for key in options if key in given}
    for key, value in options.items():
        if value not in CHOICES[key]:
            raise ValueError(f"{key}={value}: one of {', '.join(CHOICES[key])} is needed")
    for key in given:
        if key not in FIELDS:
            raise ValueError(f"{key}: runs have no such field; there are {', '.join(FIELDS)}, as field=value")
    damaged: list[str] = []
    runs = read_frame((file.parent for file in sorted(outputs.glob("*/*/*/*/config.json"))), damaged)
    for kind, same in [*other_contents(runs)]:  # of one name, but not the same: a setting in which runs differ
        for settings, digest in zip(same["settings"], same[f"{kind}_sha256"], strict=True):
            settings[f"{kind}.sha256"] = digest[:16]
    runs["folder"] = [str(Path(folder).relative_to(outputs)) for folder in runs["folder"]]
    for key, patterns in given.items():
        runs = runs.loc[[any(fnmatchcase(str(v), p) for p in patterns.split(",")) for v in runs[key]]]
    each, by, table = options["each"] == "true", options["sort"], options["format"] == "table"
    runs = runs.sort_values(by, ascending=by not in ("last", "best"), kind="stable", na_position="last")
    sections = [_section(same, each, by) for _, same in runs.groupby(["data", "teacher", "model"])]
    if not table:
        _print_for_programs([record for section in sections for record in section], options["format"], each)
    elif sections:
        _print(sections, f"{len(runs)} run{'s' * (len(runs) != 1)} in {outputs}, by {by}; accuracies: top-1 in %", each)
    else:
        print(f"0 runs match in {outputs}" if given else f"0 runs yet in {outputs}; nst train makes one")
    for line in damaged:
        print(line, file=sys.stdout if table else sys.stderr)


def _section(runs: Any, each: bool, by: str) -> list[Record]:
    """Runs of one data set, teacher and student: each with the settings in which they differ, or a record for each group of seeds.

    The weights of the loss are shown beside it; of a term's other options those that differ between the runs that have it.
    """
    differing = []
    for key in dict.fromkeys(key for settings in runs["settings"] for key in settings):
        term = ".".join(key.split(".")[:2]) + "." if key.startswith("loss.") else ""
        having = [settings for settings in runs["settings"] if any(k.startswith(term) for k in settings)]
        texts = {json.dumps(settings.get(key), sort_keys=True) for settings in having}
        if len(texts) > 1 and key not in ALWAYS_SHOWN and not (term and key.endswith(".weight")):
            differing.append((key, term))
    records: list[Record] = []
    for run in runs.to_dict("records"):
        own: Record = run["settings"]
        shown = {key: own.get(key) for key, term in differing if any(k.startswith(term) for k in own)}
        numbers = {key: None if run[key] != run[key] else run[key] for key in ("last", "best", "best_epoch", "seconds")}
        records.append({**run, **numbers, "rate": rate(own), "differs": shown})
    if each:
        return records
    same: dict[str, list[Record]] = {}
    for record in records:
        same.setdefault(json.dumps(record["settings"], sort_keys=True), []).append(record)
    groups = [_group(members) for members in same.values()]
    if by in ("last", "best"):
        groups.sort(key=lambda group: -group[by].mean if group[by] else 0.0)
    return groups


def _group(runs: list[Record]) -> Record:
    """Runs that differ in their seed only: what they share, and statistics over the finished ones."""
    done, states = [run for run in runs if run["state"] == "finished"], sorted(run["state"] for run in runs)
    seconds = sample([run["seconds"] for run in done])
    return {
        **{key: runs[0][key] for key in ("data", "teacher", "model", "loss", "weights", "rate", "epochs", "differs")},
        "seeds": sorted(run["seed"] for run in runs), "n": len(done),
        **{key: sample([run[key] for run in done]) for key in ("last", "best")},
        "collapsed": sum(run["collapsed"] for run in runs), "seconds": seconds and seconds.mean,
        "states": {state: states.count(state) for state in states}, "folders": sorted(run["folder"] for run in runs),
    }  # fmt: skip


def _print(sections: list[list[Record]], title: str, each: bool) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(Text(title))
    for records in sections:
        rows, (data, teacher, model) = [_cells(record, each) for record in records], map(records[0].get, FIELDS[:3])
        pair = f"{teacher} → {model}" if teacher != "none" else f"{model}, no teacher"
        grid = Table(title=Text(f"{data}: {pair}"), title_justify="left")
        names = [name for name in rows[0] if any(row[name] for row in rows)]  # columns without a value are left out
        for name in names:
            is_text = name in ("loss", "differs in", "runs", "state", "run")
            grid.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for row in rows:
            printable = ("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in row[n]) for n in names)
            grid.add_row(*map(Text, printable))
        console.print(grid)


def _cells(record: Record, each: bool) -> dict[str, str]:
    """A run, or a group of equal runs, as text by column."""

    def text(key: str, form: str) -> str:
        return "" if record[key] is None else format(record[key], form)

    cells = {
        "loss": weights_text(record["weights"]) or record["loss"],
        "rate": record["rate"] or "",
        "epochs": str(record["epochs"]),
        "differs in": " ".join(f"{key}={as_text(value)}" for key, value in record["differs"].items()),
    }
    if each:
        numbers = {key: text(key, ".2f") for key in ("last", "best", "seconds")}
        cells |= {
            "seed": str(record["seed"]),
            "state": record["state"],
            **numbers,
            "best epoch": text("best_epoch", "g"),
        }
        return cells | {"collapsed": "yes" if record["collapsed"] else "", "run": record["folder"]}
    return cells | {
        "last": str(record["last"] or ""),
        "median": f"{record['last'].median:.2f}" if record["last"] else "",
        "best": str(record["best"] or ""),
        "collapsed": str(record["collapsed"] or ""),
        "seconds": text("seconds", ".1f"),
        "runs": ", ".join(f"{count} {state}" for state, count in record["states"].items()),
    }


def _print_for_programs(records: list[Record], form: str, each: bool) -> None:
    """JSON, or CSV with one line a run or group: numbers unrounded, settings as JSON."""
    fields = ["data", "teacher", "model", "loss", "weights", "rate", "epochs", "differs"]
    fields += [name for name in FIELDS if name not in fields] if each else ["seeds", "n", "last", "best", "collapsed", "seconds", "states", "folders"]  # fmt: skip
    records = [{key: record[key] for key in fields} for record in records]
    for record in records if not each else ():
        record |= {key: record[key] and asdict(record[key]) for key in ("last", "best")}
    if form == "json":
        print(json.dumps(records, indent=1, ensure_ascii=False))
        return
    for record in records:
        for key in () if each else ("last", "best"):
            statistics = record.pop(key) or {}
            record |= {f"{key}_{name}": statistics.get(name) for name in ("mean", "std", "median")}
        record |= {key: json.dumps(value) for key, value in record.items() if isinstance(value, dict | list)}
    pd.DataFrame(records).to_csv(sys.stdout, index=False)
