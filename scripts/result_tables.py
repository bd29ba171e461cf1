"""The tables of README.md and docs/measured.md, from the lines of results/."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nst.report.along import CELL, Method, cell, gain_rows, nst_gains, nst_rows
from nst.report.runs import fell_back
from nst.report.settings import as_typed, taps_text, weights
from nst.report.stats import paired, sample
from nst.report.text import markdown_row, signed, spread, text_table
from nst.reproduce.table import Table
from run_lines import Record, hidden_differences

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
    values = by_images(runs)
    constant = one_setting(runs, ("training images", "epochs"))
    lines = [f"![The gain over the baseline of each method, by the number of training images]({link})", ""]
    lines += [f"Gain over the baseline of the same images, in percentage points: {CELL}.", ""]
    lines += text_table(gain_rows(values, False, "data.limit"))
    lines += [
        "",
        "What NST adds, alone and in sums; the last column is the mean of the others, seed by seed:",
        "",
        *text_table(nst_rows(values, False, "data.limit")),
    ]
    return "\n".join([*lines, "", about(constant, runs)])


def one_setting(runs: Sequence[Record], varying: Sequence[str] = ()) -> dict[str, str]:
    """The settings that all runs share, without those that may vary. Raises ValueError if the runs differ in any of them."""
    settings = [shown(run) for run in runs]
    constant = {key: text for key, text in settings[0].items() if key not in varying}
    if mixed := [key for key in constant if len({s[key] for s in settings}) > 1]:
        raise ValueError(f"runs of one setting are needed, these differ in {', '.join(mixed)}")
    return constant


def published_section(runs: Sequence[Record], table: Table) -> str:
    """The published figures of a table's group beside the measured accuracies of the best and of the last epoch.

    The best epoch is chosen on the images that measure it. A row's runs are those with the term of its name, or with none for `student`.

    Raises:
        ValueError: a table of errors, or runs of several settings.
    """
    check_comparable(runs)
    constant, (group,) = one_setting(runs), table.groups
    if table.metric != "accuracy":
        raise ValueError(f"{table.title}: its published figures are errors, those of the runs are accuracies")
    names = ["method", f"published, {table.epoch} epoch", "best epoch", "last epoch", "Δ of the last vs. baseline"]
    lines = [markdown_row(names), markdown_row(["---", *["---:"] * 4])]
    rows: dict[str, list[Record]] = {}
    for run in runs:
        rows.setdefault("+".join(terms(run)) or "student", []).append(run)
    for row in group.rows:
        own = rows.get(row.name, [])
        if len(labels := {method(run, runs) for run in own}) > 1:
            raise ValueError(f"a row of {row.name} has runs of several settings: {', '.join(sorted(labels))}")
        best = [max(run["top1_by_epoch"].values()) for run in own if not run["diverged"]]
        cells = [spread(asdict(sample(best))) if best else "–", accuracy(own) if own else "not run to the end"]
        cells.append(difference(own, rows.get("student", [])))
        lines.append(markdown_row([row.label, f"{row.published:.2f}", *cells]))
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
