"""Keep what was measured in results/, and write it into the pages.

python scripts/results.py add outputs/cifar10 results/cifar10.jsonl    # one line for each run that finished or diverged
python scripts/results.py pages                                        # README.md, docs/measured.md, docs/tables/, docs/images/

Runs of several machines and days gather in one file, a line for each row of the frame of runs; a run that is in it stays as it is.
A page holds `<!-- results: FILE SPLIT [of METHODS] -->` and `<!-- end of results -->`; what lies between is written from the runs of
results/FILE that were evaluated on that split ("test" or "val"), if given those of the baseline and of some methods, such as
`kd kd+nst_poly`. So it is with `gains: FILE SPLIT`, the gain over the baseline by the number of training images. The figures:
`result_figures.py`.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from nst.report.text import Grid, gain_grids, plain
from nst.tables.frame import as_text, rate, read_frame
from nst.tables.statistics import GAIN, Frame, Series, gains, paired, sample

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md", *sorted((ROOT / "docs" / "tables").glob("*.md")))
SECTION = re.compile(
    r"(<!-- (?P<kind>results|gains): (?P<file>\S+) (?P<split>test|val)(?: of (?P<of>[\w+ ]+))? -->\n).*?(<!-- end of (?P=kind) -->)",
    re.S,
)
FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+")  # of a path only the last part is kept
BASELINE, CONTROL = "baseline", "baseline on the cached views"
NEGLIGIBLE = 1e-6  # a weight that only has the run read the cache, so that it sees the same views
NAMES = {
    "kd": "KD", "fitnet": "FitNet", "at": "AT", "nst_linear": "NST (linear)", "nst_poly": "NST (poly)",
    "nst_gaussian": "NST (Gaussian)", "review": "ReviewKD", "cat_kd": "CAT-KD", "wkd_f": "WKD-F", "wkd_l": "WKD-L", "ofa": "OFA-KD",
}  # in the order of rows; others follow, in capitals  # fmt: skip
SHOWN = (  # settings that columns show; those of losses and the views of the cache are in the names of rows
    "model.name", "optim.lr", "schedule._target_", "optim.weight_decay", "trainer.clip_grad_norm", "data.limit",
    "trainer.epochs", "trainer.precision", "loss.", "cache.views", "cache.large", "cache.path", "trainer.compile",
)  # fmt: skip
Row = Any  # of the frame


def add(folder: Path, target: Path) -> None:
    """Add to `target` the runs below `folder` that are over and not in it.

    Raises:
        ValueError: a run differs from one in `target` only in what tables do not show, such as the batch size.
    """

    def name(line: str) -> str:  # equal for equal runs, as far as tables show their settings
        run = json.loads(line)
        shown = {k: value for k, value in run["settings"].items() if k.startswith((*SHOWN, "data.validation"))}
        return json.dumps([run["seed"], run["data"], run["teacher"], shown, run.get("views")], sort_keys=True)

    kept = {name(line): line for line in (target.read_text().splitlines() if target.is_file() else [])}
    runs = read_frame(file.parent for file in sorted(folder.rglob("config.json")))
    over = runs[(runs["state"] == "finished") | runs["diverged"].notna()]
    for place, run in zip(over["folder"], over.drop(columns="folder").to_dict("records"), strict=True):
        line = FOLDERS.sub("", json.dumps({key: value if value == value else None for key, value in run.items()}))
        known = kept.setdefault(name(line), line)
        if mixed := hidden_differences(pd.DataFrame(map(json.loads, (known, line)))):
            raise ValueError(f"{place}: {target.name} has a run that differs in {mixed} alone; use another file")
    target.write_text("".join(line + "\n" for line in kept.values()))


def read_lines(file: Path) -> Frame:
    """The runs of a file of results/ as a frame."""
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    return pd.DataFrame([run | {"curve": {float(at): top1 for at, top1 in run["curve"].items()}} for run in runs])


def hidden_differences(runs: Frame) -> str:
    """The settings beside columns and names of rows in which runs differ, as text; "" if there are none.

    A setting that a run lacks is left out: the run is of a version without it, has no teacher, or another student. But what a
    trainer's setting lacks is its default.
    """
    values: dict[str, list[Any]] = {"teacher": [name for name in runs["teacher"] if name != "none"]}
    rows = [run for run in runs["settings"] if any(key.startswith("trainer.") and key not in SHOWN for key in run)]
    for key in {key for settings in runs["settings"] for key in settings}:
        several = len({*runs["model"]}) > 1 and key.startswith("model.")
        if not key.startswith(SHOWN) and not several:
            having = rows if key.startswith("trainer.") else [s for s in runs["settings"] if key in s]
            values[key] = [settings.get(key, "the default") for settings in having]
    differing = {key: sorted({json.dumps(value) for value in several}) for key, several in values.items()}
    return "; ".join(f"{key}: {', '.join(texts)}" for key, texts in sorted(differing.items()) if len(texts) > 1)


def named(runs: Frame, varying: tuple[str, ...] | None = None) -> Frame:
    """The runs with what a table tells: method, columns of settings and the accuracy at the last epoch, in the order of its rows.

    Few terms come first, in the order of NAMES, large weights first.

    Args:
        varying: the columns in which the runs may differ; None: all.

    Raises:
        ValueError: runs that differ in what neither a column nor the name of a row shows, or in another column.
    """
    if mixed := hidden_differences(runs):
        raise ValueError(f"runs that differ in {mixed} do not belong in one table")
    shown, order = [], []
    for _, run in runs.iterrows():
        own, terms = run["settings"], terms_of(run)
        clip = own.get("trainer.clip_grad_norm")
        shown.append({
            "student": own["model.name"], "learning rate": rate(own) or "–", "weight decay": f"{own['optim.weight_decay']:g}",
            "gradient norm clipped at": "–" if clip is None else f"{clip:g}", "training images": f"{own.get('data.limit') or 'all'}",
            "epochs": str(own["trainer.epochs"]), "precision": own["trainer.precision"],
        })  # fmt: skip
        places = [list(NAMES).index(term) if term in NAMES else len(NAMES) for term in terms]
        weights = [-run["weights"][term] for term in terms]
        order.append((len(terms), run["teacher"] != "none", places, weights, [*shown[-1].values()]))
    for key in {*shown[0]} - {*varying} if varying is not None else ():
        if len({texts[key] for texts in shown}) > 1:
            raise ValueError(f"runs of one setting are needed, these differ in {key}")
    values = pd.Series([[*c.values()][-1] if c else None for c in runs["curve"]], index=runs.index, dtype=float)
    names = [method(run, runs) for _, run in runs.iterrows()]
    found = runs.assign(value=values.where(runs["diverged"].isna()), at=0.0, method=names, shown=shown)
    return found.iloc[sorted(range(len(found)), key=lambda i: order[i])]


def terms_of(run: Row) -> list[str]:
    """Names of the terms beside the cross-entropy; none for the baseline on the cached views."""
    return [name for name, weight in run["weights"].items() if name != "ce" and weight > NEGLIGIBLE]


def method(run: Row, runs: Frame, beside: Frame | None = None) -> str:
    """The terms with their weights, and of a term's options those that differ from most runs that have it.

    Args:
        beside: the runs of which a different source of the targets is named; None: all.
    """
    if run["teacher"] == "none":
        return BASELINE
    texts = []
    for term in terms_of(run):
        others = [s for s in runs["settings"] if f"loss.{term}.weight" in s]
        options = []
        for key, value in run["settings"].items():
            if key.startswith(f"loss.{term}.") and not key.endswith((".weight", "._target_")):
                counts, own = Counter(json.dumps(s.get(key)) for s in others), json.dumps(value)
                if any(count >= counts[own] for text, count in counts.items() if text != own):
                    options.append(f"{key.rpartition('.')[2]}={as_text(value)}")
        texts.append(" ".join([NAMES.get(term, term.upper()), f"{run['weights'][term]:g}", *options]))
    near: Frame = runs if beside is None else beside
    sources = {source_of(settings) for settings in near[near["teacher"] != "none"]["settings"]}
    return (" + ".join(texts) or CONTROL) + (f", {source_of(run['settings'])}" if len(sources) > 1 else "")


def source_of(settings: Mapping[str, Any]) -> str:
    """Where the teacher's targets came from."""
    return f"cached, {settings['cache.views']} views" if settings.get("cache.views") else "live"


def section(runs: Frame, short: bool = False) -> str:
    """A table of the runs: a row for equal settings, a column for each setting in which they differ; and what NST adds to sums.

    Args:
        short: without what NST adds, the median, which else stands where a row has several seeds, and the number of runs that
            collapsed, which else stands where there are any.
    """
    runs = named(runs)
    varying = [key for key in runs["shown"].iloc[0] if len({shown[key] for shown in runs["shown"]}) > 1]
    columns = [runs["method"], *(pd.Series([shown[k] for shown in runs["shown"]], index=runs.index) for k in varying)]
    rows: dict[tuple[str, ...], Frame] = dict([*runs.groupby(columns, sort=False)])
    compared = [BASELINE, CONTROL] if any(key[0] == CONTROL for key in rows) else [BASELINE]
    held_out = runs["evaluated_on"].iloc[0] == "val"
    several = not short and any(len(group) > 1 for group in rows.values())
    counted = not short and bool(runs["collapsed"].any())
    header = ["method, λ", *varying, "last epoch", *(["median"] * several), *(["collapsed"] * counted)]
    grid = [[*header, *(f"Δ vs. {name}" for name in compared), "training accuracy", *(["test accuracy"] * held_out)]]
    for key, group in rows.items():
        values = by_seed(group)
        texts = [*key, accuracy(group), *([f"{values.median():.2f}" if len(values) else "–"] * several)]
        texts += [f"{group['collapsed'].sum()} of {len(group)}"] * counted
        for name in compared:
            other = rows.get((name, *key[1:]))
            found = None if other is None or other is group else paired(values, by_seed(other))
            texts.append(found.signed if found else "–")
        for column, digits in (("train", 1), *([("test", 2)] * held_out)):
            mean = group[column].dropna().astype(float).mean()
            texts.append("–" if mean != mean else f"{mean:.{digits}f}")
        grid.append(texts)
    added, taught = [["what NST adds", GAIN]], runs[runs["teacher"] != "none"]
    for _, own in taught.groupby(taught["settings"].map(source_of), sort=False) if not short and not varying else ():
        if len(baseline := runs[runs["teacher"] == "none"]):  # targets of a sum and of its rest come from one source
            found = gains(pd.concat([baseline, own]), lower_is_better=False, of_nst=True)
            added += [[gain.label, gain.points[0.0].gain if gain.points else "–"] for gain in found]
    return "\n".join([*markdown(grid), *(["", *markdown(added)] if len(added) > 1 else []), "", about(runs, varying)])


def by_images(runs: Frame) -> Frame:
    """The runs by number of training images, the baseline first, for the gains.

    Raises:
        ValueError: runs that differ in more than that, their methods, their length and their seed.
    """
    runs = named(runs, ("training images", "epochs"))
    runs["at"] = [float(settings.get("data.limit") or 0) for settings in runs["settings"]]
    for images, same in runs.groupby("at"):
        if not images or same["epochs"].nunique() > 1:
            raise ValueError(f"{images or 'all'} training images: data.limit and one number of epochs are needed")
        runs.loc[same.index, "method"] = [method(run, runs, same) for _, run in same.iterrows()]
    return runs


def gain_section(runs: Frame) -> str:
    """The gain over the baseline of the same number of images, and what NST adds."""
    runs = by_images(runs)
    grid, added = gain_grids(runs, False, "training images")
    return "\n".join([
        f"Gain over the baseline of the same images, in percentage points: {GAIN}.", "", *markdown(grid), "",
        "What NST adds, alone and in sums; the last column is the mean of the others, seed by seed:", "", *markdown(added), "",
        about(runs, ("training images", "epochs")),
    ])  # fmt: skip


def by_seed(runs: Frame) -> Series:
    """Seed → accuracy of the last epoch, of the runs that reached it. Raises ValueError for two runs of one seed."""
    if runs["seed"].duplicated().any():
        raise ValueError(f"a row of {runs['method'].iloc[0]} has two runs of a seed, that no column distinguishes")
    return runs.set_index("seed")["value"].dropna()


def accuracy(runs: Frame) -> str:
    """Mean ± standard deviation (seeds), and how many diverged."""
    values, lost = sample(by_seed(runs)), int(runs["diverged"].notna().sum())
    return "; ".join([*([str(values)] if values else []), *([f"diverged ({lost})"] if lost else [])])


def about(runs: Frame, varying: tuple[str, ...] | list[str] = ()) -> str:
    """Settings that all runs share, and where they come from."""
    shared = "; ".join(f"{key}: {text}" for key, text in runs["shown"].iloc[0].items() if key not in varying)
    origins = {}
    for commit, machine in runs.dropna(subset="commit").sort_index()[["commit", "hardware"]].itertuples(index=False):
        dirty = " with changes" if commit.endswith("+dirty") else ""
        origins[f"commit {commit[:7]}{dirty} on {machine['device']}, threads: {machine['threads']}"] = None
    return f"{shared}. Measured with {'; '.join(origins)}."


def markdown(grid: Grid) -> list[str]:
    """The lines of a GitHub table: numbers from the second column on."""
    header, *rows = ([plain(text) for text in row] for row in grid)
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def written(page: Path) -> str:
    """The page with its sections made anew; the README's tables are the short ones."""

    def anew(found: re.Match[str]) -> str:
        runs = read_lines(ROOT / "results" / found["file"])
        runs = runs[runs["evaluated_on"] == found["split"]]
        if found["of"]:
            methods = found["of"].split()
            runs = runs[[r["teacher"] == "none" or "+".join(terms_of(r)) in methods for _, r in runs.iterrows()]]
        text = gain_section(runs) if found["kind"] == "gains" else section(runs, page.name == "README.md")
        return f"{found[1]}{text}\n{found[6]}"

    return SECTION.sub(anew, page.read_text())


def main(words: list[str]) -> None:
    """Do what the words say."""
    match words:
        case ["add", folder, target]:
            add(Path(folder), Path(target))
        case ["pages"]:
            import result_figures

            for page in PAGES:
                page.write_text(written(page))
            for file, _, text in result_figures.drawn():
                file.write_text(text)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
