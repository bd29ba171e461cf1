"""A table's result as text: cells, notes, Markdown, CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from nst.report import along
from nst.report.markdown import code, markdown_row, plain
from nst.report.settings import number

Record = dict[str, Any]

BASELINE = "Δ vs. baseline"
PUBLISHED = "Δ vs. published"
NOT_TUNED = "†"
DEFAULT = "default weight, not tuned for these networks and data (or the weight in the row's label)"
WORDS = ("method", "λ", "verdict")  # columns of text; the others are numbers

VERDICT = (
    " The verdict compares with the published figure: reproduced means that this figure, itself of an unknown number of "
    "runs, lies in the interval."
)


def cells(row: Record) -> dict[str, str]:
    """One row as text, by column; settings besides."""
    last = row["last"]
    top5 = f" / {row['top5']['mean']:.2f}" if row["top5"] and row["published_top5"] is not None else ""
    rank = "–" if row["rank"] is None else str(row["rank"])
    if row["published_rank"] is not None:
        rank += f" ({row['published_rank']})"
    return {
        "method": row["label"],
        BASELINE: "–" if row["paired"] is None else signed(row["paired"]),
        "λ": weights_text(row),
        "last epoch": spread(last) + (top5 if last else ""),
        "median": "–" if last is None else f"{last['median']:.2f}",
        "95 % interval": interval(last),
        "best epoch": spread(row["best"]),
        "fell back": f"{row['fell_back']} of {row['planned']}",
        "diverged": f"{row['diverged']} of {row['planned']}",
        "published": published_text(row) + ("" if row["published"] is None else f" ({row['published_epoch']})"),
        PUBLISHED: "–" if row["difference"] is None else f"{row['difference']:+.2f} ({compared(row)})",
        "rank (published)": rank,
        "rank": rank,
        "verdict": row["verdict"],
        **row["settings"],
    }


def columns(group: Record) -> list[str]:
    """The columns of `cells` that are not trivial: settings that differ, lost runs, published figures."""
    rows = group["rows"]
    published = any(row["published"] is not None for row in rows)
    varying = [key for key in settings(rows) if key not in shared(rows)]
    lost = [name for name, key in (("fell back", "fell_back"), ("diverged", "diverged")) if any(r[key] for r in rows)]
    weighted = ["λ"] if any(row["weights"] for row in rows) else []
    names = ["method", BASELINE, "last epoch", "median", *weighted, *varying, "95 % interval", "best epoch", *lost]
    return [*names, *(["published", PUBLISHED, "rank (published)", "verdict"] if published else ["rank"])]


def settings(rows: Sequence[Record]) -> list[str]:
    """The names of the settings that rows state."""
    return list(dict.fromkeys(key for row in rows for key in row["settings"]))


def shared(rows: Sequence[Record]) -> dict[str, str]:
    """The settings that are equal in all rows that have them; rows without a finished run lack some."""
    values_of = {key: [row["settings"][key] for row in rows if key in row["settings"]] for key in settings(rows)}
    return {key: values[0] for key, values in values_of.items() if len({*values}) == 1}


def settings_text(group: Record) -> str:
    """The settings that all rows of a group share, in a line; "" before the first run."""
    texts = [f"{key} {text}" for key, text in shared(group["rows"]).items()]
    seeds = list(dict.fromkeys(seed for row in group["rows"] for seed in row["by_seed"]))
    texts += [f"seeds {', '.join(str(seed) for seed in seeds)}"] if seeds else []
    return "; ".join(texts)


def weights_text(row: Record) -> str:
    """Each term's weight, marked if it was not tuned."""
    texts = [f"{name} {number(weight)}" for name, weight in row["weights"].items()]
    return " + ".join(texts) + ("" if row["tuned"] else f" {NOT_TUNED}") if texts else "–"


def untuned(rows: Sequence[Record]) -> bool:
    """Whether a row's weight was not tuned."""
    return any(row["weights"] and not row["tuned"] for row in rows)


def compared(row: Record) -> str:
    """Which epoch is compared with the published figure: the best if that is of the best, else the last."""
    return "best" if row["published_epoch"] == "best" else "last"


def title(result: Record) -> str:
    """The table's title, marked if its runs differ from the table's settings."""
    if result["comparable"]:
        return result["title"]
    return f"{result['title']} ({'reduced' if result['reduced'] else 'changed'})"


def spread(statistics: Record | None) -> str:
    """Mean ± standard deviation (number of seeds)."""
    if statistics is None:
        return "–"
    return (
        f"{statistics['mean']:.2f}"
        + ("" if statistics["std"] is None else f" ± {statistics['std']:.2f}")
        + f" ({statistics['n']})"
    )


def interval(statistics: Record | None) -> str:
    """The 95 % interval of the mean, as far as it is a percentage."""
    if statistics is None or statistics["half_width"] is None:
        return "–"
    low, high = (
        max(statistics["mean"] - statistics["half_width"], 0),
        min(statistics["mean"] + statistics["half_width"], 100),
    )
    return f"{low:.2f} … {high:.2f}"


def signed(difference: Record) -> str:
    """A paired difference with half the width of its 95 % interval."""
    return f"{difference['mean']:+.2f}" + (
        "" if difference["half_width"] is None else f" ± {difference['half_width']:.2f}"
    )


def published_text(row: Record) -> str:
    """The published figure, top-5 beside it where there is one."""
    if row["published"] is None:
        return "–"
    return f"{row['published']:.2f}" + (f" / {row['published_top5']:.2f}" if row["published_top5"] is not None else "")


def teacher_text(teacher: Record) -> str:
    """The teacher's figure beside the published one."""
    text = f"teacher {teacher['name']}: {teacher['figure']:.2f}"
    if teacher["published_top5"] is not None and teacher["top5"] is not None:
        text += f" / {teacher['top5']:.2f}"
    text += "" if teacher["evaluated_on"] == "test" else f" on the {teacher['evaluated_on']} images"
    return text + f" (published {published_text(teacher)})" if teacher["published"] is not None else text


def notes(result: Record) -> list[str]:
    """Notes on how to read the figures."""
    lower = result["metric"] == "error"
    rows = [row for group in result["groups"] for row in group["rows"]]
    published = any(row["published"] is not None for row in rows)
    kind = "Top-1 error in %, lower is better" if lower else "Top-1 accuracy in %, higher is better"
    texts = [
        f"{kind}: mean ± standard deviation (number of seeds), and the median. A seed sets the student's initial weights, the "
        "order of the images and their crops; the teacher is one network for all.",
        f"The 95 % interval is Student's t over the seeds.{VERDICT if published else ''}",
        f"{BASELINE}: mean difference to the baseline (student trained without a teacher), the first row, over the same "
        "seeds, ± half its 95 % interval. The interval does not account for selecting the best of several "
        "methods.",
    ]
    if untuned(rows):
        texts.append(f"λ: weight of each term. {NOT_TUNED} {DEFAULT}: another weight may give a better result.")
    return [*texts, *_about_epochs(rows, published), *_about_losses(rows), *_about_code(rows)]


def _about_epochs(rows: Sequence[Record], published: bool) -> list[str]:
    """Which epoch counts."""
    split = sorted({name for row in rows for name in row["evaluated_on"]})
    chosen = "test images, so it is optimistic" if split == ["test"] else f"{' and '.join(split)} images"
    texts = []
    if published:
        texts.append(
            f"{PUBLISHED}: a published figure of the best epoch is compared with our best epoch; one of the last, or of an "
            "unknown epoch, with our last. The epoch is in brackets."
        )
    if split:
        use = "Best epoch is shown beside" + (", compared only with published figures of the best epoch" * published)
        texts.append(f"{use}: it is selected on the {chosen}.")
    return texts


def _about_losses(rows: Sequence[Record]) -> list[str]:
    """Counts of runs that fell back, diverged, or are missing."""
    fell_back, diverged = sum(row["fell_back"] for row in rows), sum(row["diverged"] for row in rows)
    text = f"Runs that fell back: {fell_back}; that diverged: {diverged}."
    if fell_back:
        text += " Fell back: an evaluation lost more than half of the best lead over chance; the run stays in the mean."
    if diverged:
        text += " Diverged: stopped by a non-finite loss or gradient; it has no accuracy."
    missing = [(row["label"], row["planned"] - row["diverged"] - (row["last"] or {"n": 0})["n"]) for row in rows]
    incomplete = [f"{name} {count}" for name, count in missing if count]
    return [text, *([f"Runs missing, by method: {', '.join(incomplete)}."] if incomplete else [])]


def _about_code(rows: Sequence[Record]) -> list[str]:
    """Which of the user's own modules have changed between the runs."""
    texts = []
    for module in dict.fromkeys(module for row in rows for module in row["sources"]):
        versions = {digest for row in rows for digest in row["sources"].get(module, ())}
        if len(versions) > 1:
            mixed = [row["label"] for row in rows if len(row["sources"].get(module, ())) > 1]
            within = f", also between the seeds of {', '.join(mixed)}" if mixed else ""
            texts.append(f"Not all runs are of the same code: {module} has changed between them{within}.")
    return texts


def label(result: Record) -> str:
    """The first line of every rendering if the runs differ from the table's settings; else empty."""
    if not result["changes"]:
        return ""
    kind = "Reduced" if result["reduced"] else "Computed otherwise" if result["comparable"] else "Changed"
    tail = "" if result["comparable"] else " Not comparable with published figures."
    return f"{kind}: {'; '.join(result['changes'])}.{tail}"


def as_markdown(result: Record) -> str:
    """GitHub's tables."""
    lines = [f"# {plain(title(result))}", ""]
    if label(result):
        lines += [f"**{plain(label(result))}**", ""]
    lines += _along(result)
    for group in result["groups"]:
        lines += [f"## {plain(group['title'])}", "", *as_table(group), ""]
        if group["teacher"]:
            text = teacher_text(group["teacher"])
            lines += [f"{plain(text[:1].upper() + text[1:])}.", ""]
        if settings_text(group):
            lines += [f"Settings: {plain(settings_text(group))}.", ""]
    lines += [f"- {plain(note)}" for note in notes(result)]
    lines += [f"- Published figures: {plain(result['source'])}.", f"- {code(result['command'])}", ""]
    return "\n".join(lines)


def _along(result: Record) -> list[str]:
    """Gains over the baseline and by NST, if the groups are values of one setting."""
    values, key, lower = along.from_result(result), result["along"], result["metric"] == "error"
    if not values:
        return []
    lines = [
        f"## Gain over the baseline, by {plain(along.axis_name(key))}",
        "",
        f"Percentage points: {plain(along.CELL)}.",
        "",
    ]
    lines += [*text_table(along.gain_rows(values, lower, key)), ""]
    if len(nst := along.nst_rows(values, lower, key)) > 1:
        lines += [
            "What NST adds, alone and in sums; the last column is the mean of the others, seed by seed:",
            "",
            *text_table(nst),
            "",
        ]
    return lines


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a GitHub table of text: the header first, numbers from the second column on."""
    header, *others = ([plain(text) for text in row] for row in rows)
    return [markdown_row(header), markdown_row(["---", *("---:" for _ in header[1:])]), *map(markdown_row, others)]


def as_table(group: Record) -> list[str]:
    """The lines of a group's GitHub table."""
    names = columns(group)
    alignment = ["---" if name in WORDS else "---:" for name in names]
    rows = [markdown_row([plain(cells(row).get(name, "–")) for name in names]) for row in group["rows"]]
    return [markdown_row(names), markdown_row(alignment), *rows]


def as_csv(result: Record) -> str:
    """One line a method, numbers unrounded."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(
        [
            "table", "group", "method", "metric", "n", "mean", "std", "half_width_95", "median", "best_epoch_mean", "fell_back",
            "diverged", "published", "published_epoch", "compared", "difference", "paired_mean", "paired_half_width_95", "rank",
            "published_rank", "verdict", "reduced", "seconds", "weights", "tuned",
        ]
    )  # fmt: skip
    for group in result["groups"]:
        for row in group["rows"]:
            last, pair = row["last"] or {}, row["paired"] or {}
            out.writerow(
                [
                    result["table"], group["name"], row["name"], result["metric"], last.get("n", 0), last.get("mean"),
                    last.get("std"), last.get("half_width"), last.get("median"), (row["best"] or {}).get("mean"),
                    row["fell_back"], row["diverged"], row["published"], row["published_epoch"],
                    compared(row) if row["published"] is not None else None, row["difference"], pair.get("mean"),
                    pair.get("half_width"), row["rank"], row["published_rank"], row["verdict"], row["reduced"],
                    (row["seconds"] or {}).get("mean"), " ".join(f"{k}={number(w)}" for k, w in row["weights"].items()),
                    row["tuned"],
                ]
            )  # fmt: skip
    return text.getvalue()
