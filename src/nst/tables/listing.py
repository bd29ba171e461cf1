"""`nst runs`: all runs so far as tables, JSON or CSV."""

import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.storage.folder import MEASURES
from nst.tables.file import check_known
from nst.tables.frame import as_text, other_contents, rate, read_frame, weights_text
from nst.tables.statistics import Frame, sample

FIELDS = (
    "data", "teacher", "model", "loss", "seed", "epochs", "state", "last", "best", "best_epoch", "collapsed", "seconds",
    "folder",
)  # fmt: skip
ALWAYS_SHOWN = ("optim.lr", "schedule._target_", "trainer.epochs")  # in columns of their own
OPTIONS = {"each": ("false", "true"), "format": ("table", "json", "csv"), "sort": ("last", *FIELDS)}  # defaults first
WORDS = ("loss", "differs in", "runs", "state", "run")  # columns of text; the others are numbers


def list_runs(arguments: Sequence[str]) -> None:
    """Print the selected runs, and the damaged ones, on stderr if the output is for programs. Raises ValueError, naming the key."""
    if wrong := [argument for argument in arguments if "=" not in argument]:
        raise ValueError(f"{wrong[0]!r}: key=value is needed; nst runs --help lists the keys")
    given = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    outputs = Path(given.pop("outputs", "outputs"))
    options = {key: given.pop(key, choices[0]) for key, choices in OPTIONS.items()}
    for key, value in options.items():
        check_known(f"{key}={value}", value, OPTIONS[key])
    for key, value in given.items():
        check_known(f"{key}={value}", key, FIELDS)
    damaged: list[str] = []
    runs = read_frame((file.parent for file in sorted(outputs.glob("*/*/*/*/config.json"))), damaged)
    for kind, same in [*other_contents(runs)]:  # of one name, but not the same: a setting in which runs differ
        for settings, digest in zip(same["settings"], same[f"{kind}_sha256"], strict=True):
            settings[f"{kind}.sha256"] = digest[:16]
    runs["folder"] = [str(Path(folder).relative_to(outputs)) for folder in runs["folder"]]
    for key, patterns in given.items():
        runs = runs.loc[[any(fnmatchcase(str(v), p) for p in patterns.split(",")) for v in runs[key]]]
    by, form = options["sort"], options["format"]
    runs = runs.sort_values(by, ascending=by not in ("last", "best"), kind="stable", na_position="last")
    shown = runs[[*FIELDS, "measure", "weights", "settings"]]
    if form == "json":
        print(shown.to_json(orient="records", indent=1, double_precision=15))
    elif form == "csv":
        texts = {name: [json.dumps(value) for value in shown[name]] for name in ("weights", "settings")}
        shown.assign(**texts).to_csv(sys.stdout, index=False)
    else:
        text = f"{len(runs)} run{'s' * (len(runs) != 1)} in {outputs}, by {by}; accuracies: top-1 in %"
        if not len(runs):
            text = f"0 runs {'match' if given else f'yet in {outputs}; nst train makes one'}"
        console = Console()
        console = console if console.is_terminal else Console(width=160)
        console.print(Text(text), soft_wrap=True)
        for names, section in runs.groupby(["data", "teacher", "model", "measure"]):
            console.print(_table(names, section, options["each"] == "true", by))
    for line in damaged:
        print(line, file=sys.stdout if form == "table" else sys.stderr)


def _table(names: tuple[str, ...], runs: Frame, each: bool, by: str) -> Table:
    """Runs of one data set, teacher, student and measure: a line for each, or for each group that differ in the seed only."""
    data, teacher, model, measure = names
    # the settings in which runs differ, of a term's options (loss.kd.…) those that differ between the runs that have it
    differing = []
    for key in dict.fromkeys(key for own in runs["settings"] for key in own):
        term = ".".join(key.split(".")[:2]) + "." if key.startswith("loss.") else ""
        having = [own for own in runs["settings"] if any(k.startswith(term) for k in own)]
        several = len({json.dumps(own.get(key), sort_keys=True) for own in having}) > 1
        if several and key not in ALWAYS_SHOWN and not (term and key.endswith(".weight")):
            differing.append((key, term))
    same = runs["settings"].map(lambda settings: json.dumps(settings, sort_keys=True))
    groups = [group for _, group in runs.groupby([same, "folder"] if each else same, sort=False)]
    if by in ("last", "best") and not each:
        means = [group[group["state"] == "finished"][by].astype(float).fillna(0).mean() for group in groups]
        order = pd.Series(means).sort_values(ascending=measure == "loss", kind="stable").index  # unfinished ones last
        groups = [groups[i] for i in order]
    rows, form = [], "{:.4g}" if measure == "loss" else "{:.2f}"
    for group in groups:
        run, done, own = group.iloc[0], group[group["state"] == "finished"], group["settings"].iloc[0]
        shown = {key: own.get(key) for key, term in differing if any(name.startswith(term) for name in own)}
        row = {"loss": weights_text(run["weights"]) or run["loss"], "rate": rate(own) or ""}
        row["epochs"] = str(run["epochs"])
        row["differs in"] = " ".join(f"{key}={as_text(value)}" for key, value in shown.items())
        if each:
            row |= {"seed": str(run["seed"]), "state": run["state"]}
            for key, digits in (("last", form), ("best", form), ("seconds", "{:.2f}"), ("best_epoch", "{:g}")):
                row[key.replace("_", " ")] = "" if pd.isna(run[key]) else digits.format(run[key])
            row |= {"collapsed": "yes" if run["collapsed"] else "", "run": run["folder"]}
        else:
            last, best, seconds = (sample(done[name]) for name in ("last", "best", "seconds"))
            states = group["state"].value_counts().sort_index().items()
            row |= {
                "last": str(last or ""), "median": f"{last.median:.2f}" if last else "", "best": str(best or ""),
                "collapsed": str(group["collapsed"].sum() or ""), "seconds": f"{seconds.mean:.1f}" if seconds else "",
                "runs": ", ".join(f"{count} {state}" for state, count in states),
            }  # fmt: skip
        rows.append(row)
    pair = f"{teacher} → {model}" if teacher != "none" else f"{model}, no teacher"
    judged = "" if measure == "top1" else f", features alone, by {MEASURES[measure]}"
    table = Table(title=Text(f"{data}: {pair}{judged}"), title_justify="left")
    columns = [name for name in rows[0] if any(row[name] for row in rows)]  # columns without a value are left out
    for name in columns:
        table.add_column(name, justify="left" if name in WORDS else "right", overflow="fold")
    for row in rows:
        printable = ("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in row[n]) for n in columns)
        table.add_row(*map(Text, printable))
    return table
