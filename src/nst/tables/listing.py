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

from nst.tables.frame import COLUMNS, other_contents, read_run
from nst.tables.settings import as_text, rate, weights_text
from nst.tables.statistics import Frame, sample

FIELDS = (
    "data", "teacher", "model", "loss", "seed", "epochs", "state", "last", "best", "best_epoch", "collapsed", "seconds",
    "folder",
)  # fmt: skip
ALWAYS_SHOWN = ("optim.lr", "schedule._target_", "trainer.epochs")  # in columns of their own
CHOICES = {"each": ("false", "true"), "format": ("table", "json", "csv"), "sort": FIELDS}


def list_runs(arguments: Sequence[str]) -> None:
    """Print the selected runs; damaged runs are named, on stderr if the output is for programs.

    Raises:
        ValueError: an argument that is no `key=value`, an unknown field, or a value out of range.
    """
    given: dict[str, str] = {key: value for key, equals, value in (a.partition("=") for a in arguments) if equals}
    if len(given) < len(arguments):
        raise ValueError(
            f"{next(a for a in arguments if '=' not in a)!r}: key=value is needed; nst runs --help lists the keys"
        )
    outputs, options = Path(given.pop("outputs", "outputs")), {"each": "false", "format": "table", "sort": "last"}
    options |= {key: given.pop(key) for key in options if key in given}
    for key, value in options.items():
        if value not in CHOICES[key]:
            raise ValueError(f"{key}={value}: one of {', '.join(CHOICES[key])} is needed")
    for key in given:
        if key not in FIELDS:
            raise ValueError(f"{key}: runs have no such field; there are {', '.join(FIELDS)}")
    runs, damaged = read_all(outputs)
    for key, patterns in given.items():
        runs = runs.loc[[any(fnmatchcase(str(v), p) for p in patterns.split(",")) for v in runs[key]]]
    each, by = options["each"] == "true", options["sort"]
    runs = runs.sort_values(by, ascending=by not in ("last", "best"), kind="stable", na_position="last")
    sections = {key: section(same, each, by) for key, same in runs.groupby(["data", "teacher", "model"])}
    if options["format"] == "table":
        _print(sections, outputs, each, by, f"{len(runs)} run{'s' * (len(runs) != 1)}", bool(given))
    else:
        _print_for_programs(sections, options["format"], each)
    for line in damaged:
        print(line, file=sys.stdout if options["format"] == "table" else sys.stderr)


def read_all(outputs: Path) -> tuple[Frame, list[str]]:
    """Every run below `outputs`, by folder; and one line for each that is damaged."""
    runs, damaged = [], []
    for file in sorted(outputs.glob("*/*/*/*/config.json")):
        try:
            runs.append(read_run(file.parent))
        except ValueError as error:
            damaged.append(str(error))
    frame: Frame = pd.DataFrame(runs, columns=COLUMNS)
    for kind, same in [*other_contents(frame)]:  # of one name, but not the same: a setting in which runs differ
        for settings, digest in zip(same["settings"], same[f"{kind}_sha256"], strict=True):
            settings[f"{kind}.sha256"] = digest[:16]
    frame["folder"] = [str(Path(folder).relative_to(outputs)) for folder in frame["folder"]]
    return frame, damaged


def section(runs: Frame, each: bool, by: str) -> list[dict[str, Any]]:
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
    records = []
    for run in runs.to_dict("records"):
        own: dict[str, Any] = run["settings"]
        shown = {key: own.get(key) for key, term in differing if any(k.startswith(term) for k in own)}
        records.append({**run, "rate": rate(own), "differs": shown, "same": json.dumps(own, sort_keys=True)})
    if each or not records:
        return records
    made: Frame = pd.DataFrame(records)
    groups = [_group(same) for _, same in made.groupby("same", sort=False)]
    if by in ("last", "best"):
        groups.sort(key=lambda group: -group[by].mean if group[by] else 0.0)
    return groups


def _group(runs: Frame) -> dict[str, Any]:
    """Runs that differ in their seed only: what they share, and statistics over the finished ones."""
    done, states = runs[runs["state"] == "finished"], runs["state"].value_counts(sort=False)
    return {
        **runs.iloc[0][["data", "teacher", "model", "loss", "weights", "rate", "epochs", "differs"]].to_dict(),
        "seeds": sorted(int(seed) for seed in runs["seed"]), "n": len(done), "last": sample(done["last"]), "best": sample(done["best"]),
        "collapsed": int(runs["collapsed"].sum()), "seconds": float(done["seconds"].mean()) if len(done) else None,
        "states": {state: int(states[state]) for state in sorted(states.index)}, "folders": sorted(runs["folder"]),
    }  # fmt: skip


def _print(sections: dict[Any, list[Any]], outputs: Path, each: bool, by: str, count: str, chosen: bool) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    if not sections:
        hint = "match" if chosen else f"yet in {outputs}/<data>/<teacher>-<student>/<loss>/; nst train makes one"
        console.print(Text(f"{count} {hint}"), soft_wrap=True)
        return
    console.print(Text(f"{count} in {outputs}, by {by}; accuracies: top-1 in %"))
    for (data, teacher, model), records in sections.items():
        rows = [_cells(record, each) for record in records]
        grid = Table(
            title=Text(f"{data}: {f'{teacher} → {model}' if teacher != 'none' else f'{model}, no teacher'}"),
            title_justify="left",
        )
        names = [name for name in rows[0] if any(row[name] for row in rows)]  # columns without a value are left out
        for name in names:
            is_text = name in ("loss", "differs in", "runs", "state", "run")
            grid.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for row in rows:
            grid.add_row(
                *(Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in row[n])) for n in names)
            )
        console.print(grid)


def _cells(record: dict[str, Any], each: bool) -> dict[str, str]:
    """A run, or a group of equal runs, as text by column."""
    cells = {
        "loss": weights_text(record["weights"]) or record["loss"],
        "rate": record["rate"] or "",
        "epochs": str(record["epochs"]),
        "differs in": " ".join(f"{key}={as_text(value)}" for key, value in record["differs"].items()),
    }
    if each:
        numbers = {key: "" if pd.isna(record[key]) else f"{record[key]:.2f}" for key in ("last", "best", "seconds")}
        best_epoch = "" if pd.isna(record["best_epoch"]) else f"{record['best_epoch']:g}"
        cells |= {"seed": str(record["seed"]), "state": record["state"], **numbers, "best epoch": best_epoch}
        return cells | {"collapsed": "yes" if record["collapsed"] else "", "run": record["folder"]}
    return cells | {
        "last": str(record["last"] or ""),
        "median": f"{record['last'].median:.2f}" if record["last"] else "",
        "best": str(record["best"] or ""),
        "collapsed": str(record["collapsed"] or ""),
        "seconds": "" if record["seconds"] is None else f"{record['seconds']:.1f}",
        "runs": ", ".join(f"{count} {state}" for state, count in record["states"].items()),
    }


def _print_for_programs(sections: dict[Any, list[Any]], form: str, each: bool) -> None:
    """JSON, or CSV with one line a run or group: numbers unrounded, settings as JSON."""
    fields = ["data", "teacher", "model", "loss", "weights", "rate", "epochs", "differs"]
    fields += (
        [name for name in FIELDS if name not in fields]
        if each
        else ["seeds", "n", "last", "best", "collapsed", "seconds", "states", "folders"]
    )
    records = [{key: record[key] for key in fields} for records in sections.values() for record in records]
    for record in records if not each else ():
        record |= {key: asdict(record[key]) if record[key] else None for key in ("last", "best")}
    if form == "json":
        frame: Frame = pd.DataFrame(records, columns=fields)
        print(
            json.dumps(
                json.loads(frame.to_json(orient="records", double_precision=15)),
                indent=1,
                ensure_ascii=False,
            )
        )
        return
    for record in records:
        for key in () if each else ("last", "best"):
            statistics = record.pop(key) or {}
            record |= {f"{key}_{name}": statistics.get(name) for name in ("mean", "std", "median")}
        record |= {key: json.dumps(value) for key, value in record.items() if isinstance(value, dict | list)}
    pd.DataFrame(records).to_csv(sys.stdout, index=False)
