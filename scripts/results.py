"""Keep what was measured in results/, and write it into the pages.

python scripts/results.py add outputs/cifar10 results/cifar10.jsonl    # one line for each run that finished or diverged
python scripts/results.py pages                                        # README.md and docs/measured.md

Runs of several machines and days gather in one file: a run that is in it already stays as it is.
A page holds `<!-- results: FILE SPLIT [of METHODS] -->` and `<!-- end of results -->`; what lies between them is written from the runs of
results/FILE that were evaluated on that split ("test" or "val"), if given those of the baseline and of some methods, such as
`kd kd+nst_poly`. So it is between `<!-- gains: FILE SPLIT -->` and `<!-- end of gains -->`: the gain over the baseline by the number of
training images, and its figure in docs/images/. No line names a folder of the machine it was measured on: of a path only its last part is kept.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nst.report.along import CELL, Method, cell, gain_rows, gains, nst_gains, nst_rows
from nst.report.gain_figure import gain_figure
from nst.report.listing import DEFAULTS, comparable
from nst.report.page import gain_file
from nst.report.runs import chance, diverged, fell_back, read_events
from nst.report.settings import as_typed, taps_text, weights
from nst.report.stats import paired, sample
from nst.report.text import markdown_row, signed, spread, text_table

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md")
IMAGES = ROOT / "docs" / "images"
SECTION = re.compile(
    r"(<!-- (?P<kind>results|gains): (?P<file>\S+) (?P<split>test|val)(?: of (?P<methods>[\w+ ]+))? -->\n).*?(<!-- end of (?P=kind) -->)",
    re.S,
)
FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")
SETTINGS = (
    "loss",
    "seed",
    "data",
    "student",
    "teacher",
    "knowledge",
    "optim",
    "clip",
    "epochs",
    "precision",
)  # what a run is
SHOWN = (
    "trainer.epochs",
    "trainer.precision",
    "trainer.clip_grad_norm",
    "data.name",
    "data.limit",
    "data.validation",
)  # of a run's configuration, that SETTINGS has
BASELINE, CONTROL = "baseline", "baseline on the cached views"
NEGLIGIBLE = 1e-6  # a weight that only has the run read the store, so that it sees the same views
NAMES = {
    "kd": "KD",
    "fitnet": "FitNet",
    "at": "AT",
    "nst_linear": "NST (linear)",
    "nst_poly": "NST (poly)",
    "nst_gaussian": "NST (Gaussian)",
    "review": "ReviewKD",
}  # in the order of rows; others follow, in capitals

Record = dict[str, Any]


def add(folder: Path, target: Path) -> None:
    """Add to `target` the runs below `folder` that are over and not in it.

    Raises:
        ValueError: a run differs from one in `target` only in what tables do not show, such as the batch size.
    """
    kept = [json.loads(line) for line in target.read_text().splitlines()] if target.is_file() else []
    runs = {what(run): run for run in kept}
    for file in sorted(folder.rglob("config.json")):
        if (file.parent / "summary.json").is_file() or diverged(file.parent):
            run = json.loads(FOLDERS.sub("", json.dumps(one_run(file.parent))))
            known = runs.setdefault(what(run), run)
            if "others" in known and (mixed := hidden_differences([known, run])):  # earlier lines lack them
                raise ValueError(
                    f"{file.parent}: {target.name} has a run that differs in {mixed} alone; use another file"
                )
    target.write_text("".join(json.dumps(run) + "\n" for run in runs.values()))


def what(run: Record) -> str:
    """Equal for equal runs."""
    return json.dumps([run.get(key) for key in SETTINGS], sort_keys=True)


def one_run(folder: Path) -> Record:
    """Settings, accuracies by epoch, cost and origin of a run that finished or diverged."""
    config, file = json.loads((folder / "config.json").read_text()), folder / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    taught, epochs = config["teacher"]["model"] is not None, config["trainer"]["epochs"]
    crops = [event["top1"] for event in read_events(folder, "train") if event["epoch"] > epochs - 1]
    origin = ("compiled", "steps", "skipped_steps", "seconds", "commit", "versions", "hardware")
    return {
        "loss": {name: {k: v for k, v in node.items() if k != "_target_"} for name, node in config["loss"].items()},
        "seed": config["seed"],
        "data": {key: config["data"][key] for key in ("name", "limit", "validation")},
        "student": config["model"]["name"],
        "teacher": config["teacher"]["model"]["name"] if taught else None,
        "knowledge": config["knowledge"] if taught else None,
        "optim": optimizer(config),
        "clip": config["trainer"].get("clip_grad_norm"),
        "epochs": epochs,
        "precision": config["trainer"]["precision"],
        "others": others(config),
        "chance": chance(config),
        "evaluated_on": "val" if config["data"]["validation"] else "test",
        "diverged": None if summary else diverged(folder),
        "crops_top1": round(sum(crops) / len(crops), 2) if crops else None,  # training images, over the last epoch
        "test_top1": summary["test"]["top1"] if summary else None,
        "top1_by_epoch": {event["epoch"]: event["top1"] for event in read_events(folder, "eval")},
        **{key: summary.get(key) for key in origin},
    }


def others(config: Record) -> Record:
    """Settings of data, student and trainer that `SETTINGS` lacks, by dotted key, without the trainer's defaults."""
    prefix = ("trainer.", "data.", "model.")
    return {
        key.replace("model.", f"model.{config['model']['name']}."): setting
        for key, setting in comparable(config).items()
        if key.startswith(prefix) and key not in SHOWN and setting != DEFAULTS.get(key)
    }


def optimizer(config: Record) -> Record:
    """The optimizer's settings with the schedule's name and settings."""
    own = {key: value for key, value in config["optim"].items() if key not in ("_target_", "no_decay")}
    schedule = config.get("schedule")
    if schedule is None:
        return own
    name = schedule["_target_"].rpartition(".")[2].lower()
    return own | {"schedule": name} | {key: value for key, value in schedule.items() if key != "_target_"}


def section(runs: Sequence[Record], short: bool = False) -> str:
    """A table of the runs: a row for equal settings, a column for each setting in which they differ.

    Args:
        short: without the median, which else stands where a row has several seeds, and without the number of runs that
            fell back, which else stands where there are any.
    """
    check_comparable(runs)
    settings = [shown(run) for run in runs]
    constant = {k: values[0] for k in settings[0] if len(values := list(dict.fromkeys(s[k] for s in settings))) == 1}
    varying = [key for key in settings[0] if key not in constant]
    rows: dict[tuple[str, ...], list[Record]] = {}
    for run in sorted(runs, key=lambda run: (place(run), [shown(run)[key] for key in varying])):
        rows.setdefault((method(run, runs), *(shown(run)[key] for key in varying)), []).append(run)
    compared = [BASELINE, CONTROL] if any(key[0] == CONTROL for key in rows) else [BASELINE]
    held_out = runs[0]["evaluated_on"] == "val"
    counted, several = (not short and shows for shows in (bool(fallen(runs)), any(len(m) > 1 for m in rows.values())))
    names = ["method, λ", *varying, "last epoch", *(["median"] if several else []), *(["fell back"] if counted else [])]
    names += [*(f"Δ vs. {name}" for name in compared), "training accuracy"]
    names += ["test accuracy"] if held_out else []
    lines = [markdown_row(names), markdown_row(["---", *("---:" for _ in names[1:])])]
    for key, members in rows.items():
        differences = [difference(members, rows.get((name, *key[1:]), [])) for name in compared]
        tests = [mean(members, "test_top1", 2)] if held_out else []
        robust = [median(members)] if several else []
        robust += [f"{len(fallen(members))} of {len(members)}"] if counted else []
        lines.append(
            markdown_row([*key, accuracy(members), *robust, *differences, mean(members, "crops_top1", 1), *tests])
        )
    added = [] if short or varying else nst_adds({key[0]: members for key, members in rows.items()})
    return "\n".join([*lines, *added, "", about(constant, runs)])


def nst_adds(rows: Mapping[str, Sequence[Record]]) -> list[str]:
    """A table of what NST adds to the baseline, and to sums without it whose summaries come from the same source.

    Args:
        rows: method → its runs. Without a baseline, or without NST, there is no table.
    """
    lines = []
    for origin in dict.fromkeys(source(runs[0]) for label, runs in rows.items() if label != BASELINE):
        methods = [
            one_method(label, runs) for label, runs in rows.items() if label == BASELINE or source(runs[0]) == origin
        ]
        if methods[0].label == BASELINE:
            lines += nst_gains({0.0: methods}, False)
    table = [[line.label, cell(line.points.get(0.0))] for line in lines]
    return ["", *text_table([["what NST adds", CELL], *table])] if table else []


def about(constant: dict[str, str], runs: Sequence[Record]) -> str:
    """Settings that all runs share, and where they come from."""
    origin = dict.fromkeys(made(run) for run in runs if run["commit"])
    return f"{'; '.join(f'{k}: {v}' for k, v in constant.items())}. Measured with {'; '.join(origin)}."


def by_images(runs: Sequence[Record]) -> dict[float, list[Method]]:
    """The methods of each number of training images that has a baseline, the baseline first.

    Raises:
        ValueError: runs that differ in more than that, their methods, their length and their seed.
    """
    found: dict[float, list[Method]] = {}
    for images in sorted({run["data"]["limit"] or 0 for run in runs}):
        here = sorted((run for run in runs if (run["data"]["limit"] or 0) == images), key=place)
        if not images or len({run["epochs"] for run in here}) > 1:
            raise ValueError(
                f"training images: {images or 'all'}: gains need data.limit, and one number of epochs for each"
            )
        methods: dict[str, list[Record]] = {}
        for run in here:
            methods.setdefault(method(run, runs, here), []).append(run)
        if BASELINE in methods:
            found[images] = [one_method(*item) for item in methods.items()]
    return found


def one_method(label: str, runs: Sequence[Record]) -> Method:
    """Equal runs as a method of the gains."""
    lost = sum(bool(run["diverged"]) for run in runs)
    return Method(label, weights(runs[0]), by_seed(runs), len(fallen(runs)), lost)


def gain_section(runs: Sequence[Record], link: str) -> str:
    """The figure, the gain over the baseline of the same number of images, and what NST adds.

    Args:
        link: to the figure, from the page.

    Raises:
        ValueError: no runs of one setting.
    """
    check_comparable(runs)
    values, settings = by_images(runs), [shown(run) for run in runs]
    varying = {"training images", "epochs"}
    mixed = [key for key in settings[0] if key not in varying and len({s[key] for s in settings}) > 1]
    if mixed:
        raise ValueError(f"gains compare runs of one setting, these differ in {', '.join(mixed)}")
    lines = [f"![The gain over the baseline of each method, by the number of training images]({link})", ""]
    lines += [f"Gain over the baseline of the same images, in percentage points: {CELL}.", ""]
    lines += text_table(gain_rows(values, False, "data.limit"))
    lines += [
        "",
        "What NST adds, alone and in sums; the last column is the mean of the others, seed by seed:",
        "",
        *text_table(nst_rows(values, False, "data.limit")),
    ]
    constant = {key: text for key, text in settings[0].items() if key not in varying}
    return "\n".join([*lines, "", about(constant, runs)])


def shown(run: Record) -> dict[str, str]:
    """The settings that a table tells, as text."""
    optim = run["optim"]
    return {
        "student": run["student"],
        "learning rate": f"{optim['lr']:g} ({optim['schedule']})",
        "weight decay": f"{optim['weight_decay']:g}",
        "gradient norm clipped at": "–" if run.get("clip") is None else f"{run['clip']:g}",
        "training images": f"{run['data']['limit'] or 'all'}",
        "epochs": str(run["epochs"]),
        "precision": run["precision"],
    }


def method(run: Record, runs: Sequence[Record], beside: Sequence[Record] | None = None) -> str:
    """The terms with their weights, and of a term's options those that differ from most runs that have it.

    Args:
        beside: the runs of which a different source of the summaries is named; None: all.
    """
    if not run["knowledge"]:
        return BASELINE
    texts = []
    for name in terms(run):
        node = run["loss"][name]
        others = [other["loss"][name] for other in runs if name in other["loss"]]
        options = [f"{key}={value(node[key])}" for key in node if key != "weight" and not usual(node, key, others)]
        texts.append(" ".join([NAMES.get(name, name.upper()), f"{node['weight']:g}", *options]))
    sources = {source(other) for other in (runs if beside is None else beside) if other["knowledge"]}
    return (" + ".join(texts) or CONTROL) + (f", {source(run)}" if len(sources) > 1 else "")


def terms(run: Record) -> list[str]:
    """Names of the terms beside the cross-entropy; none for the baseline on the cached views."""
    return [name for name, node in run["loss"].items() if name != "ce" and node["weight"] > NEGLIGIBLE]


def usual(node: Record, key: str, others: Sequence[Record]) -> bool:
    """Whether no other value of a term's option is as frequent among the terms of that name."""
    counts = Counter(json.dumps(other.get(key)) for other in others)
    return all(count < counts[json.dumps(node[key])] for text, count in counts.items() if text != json.dumps(node[key]))


def value(option: Any) -> str:
    """An option of a term as text."""
    return taps_text(option) if isinstance(option, list) else as_typed(option)


def source(run: Record) -> str:
    """Where the teacher's summaries came from."""
    knowledge = run["knowledge"]
    return f"cached, {knowledge['views']} views" if knowledge["mode"] == "stored" else "live"


def place(run: Record) -> tuple[Any, ...]:
    """Where a run stands: few terms first, in the order of METHODS, large weights first."""
    names = terms(run)
    return (
        len(names),
        bool(run["knowledge"]),
        [list(NAMES).index(name) if name in NAMES else len(NAMES) for name in names],
        [-run["loss"][name]["weight"] for name in names],
    )


def check_comparable(runs: Sequence[Record]) -> None:
    """Raises ValueError for runs of one table that differ in what neither a column nor the name of a row shows."""
    if mixed := hidden_differences(runs):
        raise ValueError(f"runs that differ in {mixed} do not belong in one table")


def hidden_differences(runs: Sequence[Record]) -> str:
    """The settings beside columns and names of rows in which runs differ, as text; "" if there are none.

    A component's setting that a run lacks is left out: the run is of a version without it, or the student is another one.
    """
    rest = [run["others"] for run in runs if "others" in run]
    keys = {key for one in rest for key in one if key.startswith("trainer.") or all(key in other for other in rest)}
    values = {key: [one.get(key, "the default") for one in rest] for key in keys}
    for key in set.intersection(*({*run["optim"]} for run in runs)) - {"lr", "schedule", "weight_decay"}:
        values[f"optim.{key}"] = [run["optim"][key] for run in runs]
    for key in ("name", "validation"):
        values[f"data.{key}"] = [run["data"][key] for run in runs]
    taught = [run for run in runs if run["knowledge"]]
    values["teacher"] = [run["teacher"] for run in taught]
    values["knowledge.dtype"] = [run["knowledge"].get("dtype") for run in taught]
    differing = {key: sorted({json.dumps(value) for value in several}) for key, several in values.items()}
    return "; ".join(f"{key}: {', '.join(texts)}" for key, texts in sorted(differing.items()) if len(texts) > 1)


def by_seed(runs: Sequence[Record]) -> dict[int, float]:
    """Seed → accuracy of the last epoch, of the runs that reached it.

    Raises:
        ValueError: two runs of one seed, that no column distinguishes.
    """
    seeds = [run["seed"] for run in runs]
    if len({*seeds}) < len(seeds):
        raise ValueError(
            f"a row of {method(runs[0], runs)} has two runs of a seed: {sorted(seeds)}; no column distinguishes them"
        )
    return {run["seed"]: list(run["top1_by_epoch"].values())[-1] for run in runs if not run["diverged"]}


def fallen(runs: Sequence[Record]) -> list[Record]:
    """Runs in which an evaluation lost more than half of what was won over chance (10 % where a line does not say)."""
    return [
        run for run in runs
        if fell_back([{"top1": top1} for top1 in run["top1_by_epoch"].values()], run.get("chance") or 10.0)
    ]  # fmt: skip


def median(runs: Sequence[Record]) -> str:
    """Of the accuracies of the last epoch."""
    values = list(by_seed(runs).values())
    return f"{sample(values).median:.2f}" if values else "–"


def accuracy(runs: Sequence[Record]) -> str:
    """Mean ± standard deviation (seeds), and how many diverged."""
    values, lost = by_seed(runs), sum(bool(run["diverged"]) for run in runs)
    texts = [spread(asdict(sample(list(values.values()))))] if values else []
    return "; ".join(texts + ([f"diverged ({lost})"] if lost else []))


def difference(runs: Sequence[Record], baseline: Sequence[Record]) -> str:
    """To a baseline of the same settings, over the seeds that both have; with half its 95 % interval from two seeds on."""
    found = None if runs == baseline else paired(by_seed(runs), by_seed(baseline))
    return "–" if found is None else signed(asdict(found))


def mean(runs: Sequence[Record], field: str, digits: int) -> str:
    """Of a field, over the runs that have it."""
    values = [run[field] for run in runs if run[field] is not None]
    return f"{sample(values).mean:.{digits}f}" if values else "–"


def made(run: Record) -> str:
    """Where a figure comes from, in words."""
    dirty = " with changes" if run["commit"].endswith("+dirty") else ""
    machine = run["hardware"]
    return f"commit {run['commit'][:7]}{dirty} on {machine['device']}, threads: {machine['threads']}"


def chosen(found: re.Match[str]) -> list[Record]:
    """The runs that a page's comment names; none where their file is not there yet."""
    file = ROOT / "results" / found["file"]
    runs = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    methods = found["methods"] and found["methods"].split()
    return [
        run
        for run in runs
        if run["evaluated_on"] == found["split"]
        and (not methods or not run["knowledge"] or "+".join(terms(run)) in methods)
    ]


def figure_of(found: re.Match[str]) -> Path:
    """The file of a section's figure."""
    return IMAGES / f"{Path(found['file']).stem}.svg"


def written(page: Path) -> str:
    """The page with its sections made anew; the README's tables are the short ones."""

    def anew(found: re.Match[str]) -> str:
        runs = chosen(found)
        if not runs:
            text = "Not measured yet."
        elif found["kind"] == "gains":
            text = gain_section(runs, os.path.relpath(figure_of(found), page.parent))
        else:
            text = section(runs, short=page.name == "README.md")
        return f"{found[1]}{text}\n{found[6]}"

    return SECTION.sub(anew, page.read_text())


def drawn(page: Path) -> dict[Path, str]:
    """The figures of a page's sections, by file."""
    sections = [found for found in SECTION.finditer(page.read_text()) if found["kind"] == "gains" and chosen(found)]
    figures = {
        figure_of(found): gain_figure(gains(by_images(chosen(found)), False), "data.limit") for found in sections
    }
    return {file: gain_file(figure) for file, figure in figures.items() if figure is not None}


def main(words: list[str]) -> None:
    """Do what the words say."""
    match words:
        case ["add", folder, target]:
            add(Path(folder), Path(target))
        case ["pages"]:
            for page in PAGES:
                page.write_text(written(page))
                for file, figure in drawn(page).items():
                    file.write_text(figure)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
