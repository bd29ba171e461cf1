"""A table's result as text: cells, notes, Markdown, CSV."""

import csv
import io
from typing import Any

Record = dict[str, Any]

COLUMNS = (
    "method", "last epoch", "95 % interval", "best epoch", "published", "difference", "to student alone", "rank (published)",
    "verdict",
)  # fmt: skip

VERDICT = (
    " The verdict compares the last epoch: reproduced means that the published figure, itself of an unknown number of runs, "
    "lies in the interval."
)


def cells(row: Record) -> tuple[str, ...]:
    """One row as text, in the order of COLUMNS."""
    last = row["last"]
    top5 = f" / {row['top5']['mean']:.2f}" if row["top5"] and row["published_top5"] is not None else ""
    rank = "–" if row["rank"] is None else str(row["rank"])
    if row["published_rank"] is not None:
        rank += f" ({row['published_rank']})"
    return (
        row["label"],
        "; ".join(filter(None, [last and spread(last) + top5, row["diverged"] and f"diverged ({row['diverged']})"]))
        or "–",
        interval(last),
        spread(row["best"]),
        published_text(row),
        "–" if row["difference"] is None else f"{row['difference']:+.2f}",
        "–" if row["paired"] is None else signed(row["paired"]),
        rank,
        row["verdict"],
    )


def columns(group: Record) -> list[tuple[int, str]]:
    """Positions in `cells` and names of the columns that say something: nothing published, no column about it."""
    if any(row["published"] is not None for row in group["rows"]):
        return list(enumerate(COLUMNS))
    about = ("published", "difference", "verdict")
    return [(i, name.removesuffix(" (published)")) for i, name in enumerate(COLUMNS) if name not in about]


def title(result: Record) -> str:
    """The table's title, which says when its runs are not the table's own."""
    if result["comparable"]:
        return result["title"]
    return f"{result['title']} ({'reduced' if result['reduced'] else 'changed'})"


def spread(found: Record | None) -> str:
    """Mean ± standard deviation (number of seeds)."""
    if found is None:
        return "–"
    return f"{found['mean']:.2f}" + ("" if found["std"] is None else f" ± {found['std']:.2f}") + f" ({found['n']})"


def interval(found: Record | None) -> str:
    """The 95 % interval of the mean, as far as it is a percentage."""
    if found is None or found["half_width"] is None:
        return "–"
    low, high = max(found["mean"] - found["half_width"], 0), min(found["mean"] + found["half_width"], 100)
    return f"{low:.2f} … {high:.2f}"


def signed(found: Record) -> str:
    """A paired difference with half the width of its 95 % interval."""
    return f"{found['mean']:+.2f}" + ("" if found["half_width"] is None else f" ± {found['half_width']:.2f}")


def published_text(row: Record) -> str:
    """The published figure, top-5 beside it where there is one."""
    if row["published"] is None:
        return "–"
    return f"{row['published']:.2f}" + (f" / {row['published_top5']:.2f}" if row["published_top5"] is not None else "")


def teacher_text(teacher: Record) -> str:
    """The teacher's figure beside the published one."""
    text = f"teacher {teacher['name']}: {teacher['figure']:.2f}"
    if teacher["published_top5"] is not None:
        text += f" / {teacher['top5']:.2f}"
    return text + f" (published {published_text(teacher)})" if teacher["published"] is not None else text


def notes(result: Record) -> list[str]:
    """What a reader must know to read the figures."""
    lower = result["metric"] == "error"
    rows = [row for group in result["groups"] for row in group["rows"]]
    published = any(row["published"] is not None for row in rows)
    split = sorted({name for row in rows for name in row["evaluated_on"]})
    kind = "Top-1 error in %, lower is better" if lower else "Top-1 accuracy in %, higher is better"
    found = [
        f"{kind}: mean ± standard deviation (number of seeds). Seeds change the student's first weights, the order of "
        "the images and their crops; the teacher is the same network for all of them.",
        f"The 95 % interval is Student's t over the seeds.{VERDICT if published else ''}",
        "To student alone: mean difference to the first row over the same seeds, ± half its 95 % interval. "
        "The best of several methods is picked after the fact, which its interval does not account for.",
    ]
    if split:
        chosen = "test images, so it is optimistic" if split == ["test"] else f"{' and '.join(split)} images"
        found.append(f"Best epoch is shown beside, never used: it is chosen on the {chosen}.")
    if any(row["diverged"] for row in rows):
        found.append(
            "Diverged (number of seeds): stopped by a loss or gradient that was not finite; no accuracy counts for them."
        )
    missing = [(row["label"], row["asked"] - row["diverged"] - (row["last"] or {"n": 0})["n"]) for row in rows]
    incomplete = [f"{name} {count}" for name, count in missing if count]
    if incomplete:
        found.append(f"Runs missing, by method: {', '.join(incomplete)}.")
    return found


def label(result: Record) -> str:
    """What every rendering says first when the runs are not those of the table; empty when they are."""
    if not result["changes"]:
        return ""
    kind = "Reduced" if result["reduced"] else "Computed otherwise" if result["comparable"] else "Changed"
    tail = "" if result["comparable"] else " Not comparable with published figures."
    return f"{kind}: {'; '.join(result['changes'])}.{tail}"


def as_markdown(result: Record) -> str:
    """GitHub's tables."""
    lines = [f"# {title(result)}", ""]
    if label(result):
        lines += [f"**{label(result)}**", ""]
    for group in result["groups"]:
        lines += [f"## {group['title']}", "", *as_table(group)]
        if group["teacher"]:
            lines += ["", teacher_text(group["teacher"])[:1].upper() + teacher_text(group["teacher"])[1:] + "."]
        lines.append("")
    lines += [f"- {note}" for note in notes(result)]
    lines += [f"- Published figures: {result['source']}.", f"- `{result['command']}`", ""]
    return "\n".join(lines)


def as_table(group: Record) -> list[str]:
    """The lines of a group's GitHub table."""
    shown = columns(group)
    alignment = ["---" if name in ("method", "verdict") else "---:" for _, name in shown]
    rows = [markdown_row([cells(row)[i] for i, _ in shown]) for row in group["rows"]]
    return [markdown_row([name for _, name in shown]), markdown_row(alignment), *rows]


def markdown_row(texts: list[str]) -> str:
    """One line of a GitHub table."""
    return "| " + " | ".join(texts) + " |"


def as_csv(result: Record) -> str:
    """One line a method, numbers unrounded."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(
        [
            "table", "group", "method", "metric", "n", "mean", "std", "half_width_95", "best_epoch_mean", "published",
            "difference", "paired_mean", "paired_half_width_95", "rank", "published_rank", "verdict", "reduced", "seconds",
        ]
    )  # fmt: skip
    for group in result["groups"]:
        for row in group["rows"]:
            last, pair = row["last"] or {}, row["paired"] or {}
            out.writerow(
                [
                    result["table"], group["name"], row["name"], result["metric"], last.get("n", 0), last.get("mean"),
                    last.get("std"), last.get("half_width"), (row["best"] or {}).get("mean"), row["published"],
                    row["difference"], pair.get("mean"), pair.get("half_width"), row["rank"], row["published_rank"],
                    row["verdict"], row["reduced"], (row["seconds"] or {}).get("mean"),
                ]
            )  # fmt: skip
    return text.getvalue()
