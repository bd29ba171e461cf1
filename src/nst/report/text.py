"""A table's result as text: columns, notes, headline; for the terminal, and as Markdown, CSV and JSON."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nst.report.figures import number
from nst.report.render import environment
from nst.tables.result import GroupResult, Result, RowResult
from nst.tables.settings import weights_text
from nst.tables.statistics import GAIN, Frame, Gain, gains, lost_text, sample

BASELINE = "Δ vs. baseline"
PUBLISHED = "Δ vs. published"
NOT_TUNED = "†"
DEFAULT = f"{NOT_TUNED} default weight, not tuned for these networks and data (or the weight in the row's label)."
WORDS = ("method", "λ", "verdict")  # columns of text; the others are numbers
AXES = {"data.limit": "training images"}  # names of settings along which groups lie
COARSE = 0.1  # percentage points of one test image, from which the headline states them

Grid = list[list[str]]
"""A table as text: the header, then the rows."""


def grid(group: GroupResult) -> Grid:
    """A group's table without the columns that say nothing: settings that all rows share, counts of lost runs that are 0."""
    rows, compared = [cells(row) for row in group.rows], any(row.published is not None for row in group.rows)
    shared = shared_settings(group)
    varying = [key for key in dict.fromkeys(key for row in group.rows for key in row.settings) if key not in shared]
    lost = [name for name in ("collapsed", "diverged") if any(getattr(row, name) for row in group.rows)]
    weighted = ["λ"] if any(row.weights for row in group.rows) else []
    names = ["method", BASELINE, "last epoch", "median", *weighted, *varying, "95 % interval", "best epoch", *lost]
    names += ["published", PUBLISHED, "rank (published)", "verdict"] if compared else ["rank"]
    return [names, *([row.get(name, "–") for name in names] for row in rows)]


def cells(row: RowResult) -> dict[str, str]:
    """One row as text, by column; settings besides."""
    last = row.last
    top5 = f" / {row.top5.mean:.2f}" if last and row.top5 and row.published_top5 is not None else ""
    rank = "–" if row.rank is None else str(row.rank)
    published = published_text(row.published, row.published_top5)
    about = ", ".join(filter(None, (row.published_epoch, row.published_by)))
    compared = "best" if row.published_epoch == "best" else "last"
    return {
        "method": row.label,
        BASELINE: row.paired.signed if row.paired else "–",
        "λ": f"{weights_text(row.weights)}{'' if row.tuned else f' {NOT_TUNED}'}" if row.weights else "–",
        "last epoch": f"{last}{top5}" if last else "–",
        "median": f"{last.median:.2f}" if last else "–",
        "95 % interval": last.interval if last else "–",
        "best epoch": str(row.best or "–"),
        "collapsed": f"{row.collapsed} of {row.planned}",
        "diverged": f"{row.diverged} of {row.planned}",
        "published": published if row.published is None else f"{published} ({about})",
        PUBLISHED: "–" if row.difference is None else f"{row.difference:+.2f} ({compared})",
        "rank (published)": rank if row.published_rank is None else f"{rank} ({row.published_rank})",
        "rank": rank,
        "verdict": row.verdict,
        **row.settings,
    }


def published_text(top1: float | None, top5: float | None) -> str:
    """A published figure, top-5 beside it where there is one."""
    return "–" if top1 is None else f"{top1:.2f}" + ("" if top5 is None else f" / {top5:.2f}")


def shared_settings(group: GroupResult) -> dict[str, str]:
    """The settings that are equal in all rows that have them; rows without a finished run lack some."""
    values: dict[str, set[str]] = {}
    for key, text in (item for row in group.rows for item in row.settings.items()):
        values.setdefault(key, set()).add(text)
    return {key: next(iter(texts)) for key, texts in values.items() if len(texts) == 1}


def settings_text(group: GroupResult) -> str:
    """The settings that all rows of a group share, in a line; "" before the first run."""
    seeds = ", ".join(dict.fromkeys(str(seed) for row in group.rows for seed in row.by_seed))
    return "; ".join(
        f"{key} {text}" for key, text in (shared_settings(group) | ({"seeds": seeds} if seeds else {})).items()
    )


def teacher_text(group: GroupResult) -> str:
    """The teacher's figure beside the published one; "" before the first run."""
    teacher, theirs = group.teacher, group.published
    if teacher is None:
        return ""
    text = f"Teacher {teacher['name']}: {teacher['figure']:.2f}"
    if theirs.published_top5 is not None and teacher["top5"] is not None:
        text += f" / {teacher['top5']:.2f}"
    text += " %" if teacher["evaluated_on"] == "test" else f" % on the {teacher['evaluated_on']} images"
    published = published_text(theirs.published, theirs.published_top5)
    return f"{text} (published {published})." if theirs.published is not None else f"{text}."


def headline(group: GroupResult, metric: str) -> str:
    """The result in a sentence or two."""
    rows = [row for row in group.rows if row.last]
    if not rows:
        return "No run of this group is finished."
    best, first = min(rows, key=lambda row: row.rank or 0), group.rows[0]
    assert best.last is not None
    text = f"Best mean at the last epoch: {best.label}, {best.last.mean:.2f} % {metric}"
    if best is not first and first.last:
        text += f"; baseline {first.last.mean:.2f} %"
        if best.paired and best.paired.half_width is not None:
            sure = "more" if abs(best.paired.mean) > best.paired.half_width else "no more"
            text += f". Over the same {best.paired.n} seeds that is {best.paired.signed} points: {sure} than the variation between seeds explains"
            if best.test_images and 100 / best.test_images >= COARSE:
                count = round(abs(best.paired.mean) * best.test_images / 100)
                text += f", and about {count} of the {best.test_images:,} test images"
    return f"{text}."


def along(result: Result) -> dict[str, Any] | None:
    """What is shown of a table whose groups are values of one setting: its name, the gains, and grids of them and of what NST adds."""
    if result.along is None or not len(result.frame):
        return None
    axis, lower, frame = AXES.get(result.along, result.along), result.lower, result.frame
    found, added = gains(frame, lower), gains(frame, lower, of_nst=True)
    return {"axis": axis, "gains": found, "grid": gain_grid(frame, found, axis), "added": nst_grid(frame, added, axis)}


def gain_grid(runs: Frame, found: Sequence[Gain], axis: str) -> Grid:
    """The baseline as it is, then each method's gain, with the counts of lost runs."""
    places, base = sorted(runs["at"].unique()), []
    for at in places:
        here = runs[runs["at"] == at]
        own = here[here["method"] == here["method"].iloc[0]]
        values = sample(own["value"].dropna())
        spread = "" if values is None or values.std is None else f" ± {values.std:.2f} [{values.median:.2f}]"
        base.append((f"{values.mean:.2f}{spread} ({values.n})" if values else "–") + lost_text(own))
    rows = [[gain.label, *(_at(gain, at) + gain.lost.get(at, "") for at in places)] for gain in found]
    return [[axis, *map(number, places)], ["baseline, %", *base], *rows]


def nst_grid(runs: Frame, found: Sequence[Gain], axis: str) -> Grid:
    """What NST adds, the last column its mean; the header alone if no method has NST."""
    places = sorted(runs["at"].unique())
    rows = [
        [gain.label, *(_at(gain, at) for at in places), gain.overall.gain if gain.overall else "–"] for gain in found
    ]
    return [[axis, *map(number, places), "mean"], *rows]


def _at(gain: Gain, at: float) -> str:
    return gain.points[at].gain if at in gain.points else "–"


def title(result: Result) -> str:
    """The table's title, marked if its runs differ from the table's settings."""
    if all(row.comparable for row in result.rows):
        return result.title
    return f"{result.title} ({'reduced' if any(row.reduced for row in result.rows) else 'changed'})"


def banner(result: Result) -> str:
    """The first line of every rendering if the runs differ from the table's settings; else empty."""
    if not result.changes:
        return ""
    comparable, reduced = (all(row.comparable for row in result.rows), any(row.reduced for row in result.rows))
    kind = "Reduced" if reduced else "Computed otherwise" if comparable else "Changed"
    return f"{kind}: {'; '.join(result.changes)}.{'' if comparable else ' Not comparable with published figures.'}"


def notes(result: Result) -> list[str]:
    """Notes on how to read the figures."""
    rows = result.rows
    published = any(row.published is not None for row in rows)
    kind = "Top-1 error in %, lower is better" if result.lower else "Top-1 accuracy in %, higher is better"
    texts = [
        f"{kind}: mean ± standard deviation (number of seeds), and the median. A seed sets the student's initial weights, the "
        "order of the images and their crops; the teacher is one network for all.",
        "The 95 % interval is Student's t over the seeds."
        + " The verdict compares with the published figure: reproduced means that this figure, itself of an unknown number of "
        "runs, lies in the interval." * published,
        f"{BASELINE}: mean difference to the baseline (student trained without a teacher), the first row, over the same "
        "seeds, ± half its 95 % interval. The interval does not account for selecting the best of several methods.",
    ]
    if any(row.weights and not row.tuned for row in rows):
        texts.append(f"λ: weight of each term. {DEFAULT} Another weight may give a better result.")
    if published:
        texts.append(
            f"{PUBLISHED}: a published figure of the best epoch is compared with our best epoch; one of the last, or of an "
            "unknown epoch, with our last. The epoch is in brackets."
            + " So is whose figure it is: that of the method's authors or of a third party's run; unverified: recalled, its source not "
            "read." * any(row.published_by for row in rows)
        )
    if splits := sorted({name for row in rows for name in row.evaluated_on}):
        chosen = "test images, so it is optimistic" if splits == ["test"] else f"{' and '.join(splits)} images"
        use = "Best epoch is shown beside" + (", compared only with published figures of the best epoch" * published)
        texts.append(f"{use}: it is selected on the {chosen}.")
    collapsed, diverged = (sum(getattr(row, name) for row in rows) for name in ("collapsed", "diverged"))
    text = f"Runs that collapsed: {collapsed}; that diverged: {diverged}."
    if collapsed:
        text += " Collapsed: an evaluation lost more than half of the best lead over chance; the run stays in the mean."
    if diverged:
        text += " Diverged: stopped by a non-finite loss or gradient; it has no accuracy."
    missing = {row.label: row.planned - row.diverged - (row.last.n if row.last else 0) for row in rows}
    incomplete = ", ".join(f"{label} {count}" for label, count in missing.items() if count)
    return [*texts, text, *([f"Runs missing, by method: {incomplete}."] if incomplete else [])]


def as_markdown(result: Result) -> str:
    """GitHub's tables."""
    return environment().get_template("table.md").render(
        title=title(result), banner=banner(result), along=along(result), gain=GAIN, result=result, notes=notes(result), words=WORDS,
        groups=[
            {"title": g.title, "grid": grid(g), "teacher": teacher_text(g), "settings": settings_text(g)} for g in result.groups
        ],
    )  # fmt: skip


def as_csv(result: Result) -> str:
    """One line a method, numbers unrounded."""
    lines = []
    for group in result.groups:
        for row in group.rows:
            statistics = {
                f"{name}_{key}": getattr(value, key) if value else None
                for name, value in (
                    ("last", row.last),
                    ("best", row.best),
                    ("paired", row.paired),
                    ("seconds", row.seconds),
                )
                for key in ("n", "mean", "std", "half_width", "median")
            }
            plain = (
                "published",
                "published_epoch",
                "published_by",
                "difference",
                "rank",
                "published_rank",
                "verdict",
                "collapsed",
                "diverged",
                "reduced",
                "tuned",
            )
            lines.append(
                {"table": result.table, "group": group.name, "method": row.name, "metric": result.metric, **statistics}
                | {key: getattr(row, key) for key in plain}
                | {"weights": weights_text(row.weights)}
            )
    return pd.DataFrame(lines).to_csv(index=False)


def as_json(result: Result) -> str:
    """All of it, for a program."""
    return json.dumps(result.as_json(), indent=1, ensure_ascii=False, default=float) + "\n"


def print_result(result: Result) -> None:
    """The tables, for the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=220)
    for group in result.groups:
        header, *rows = grid(group)
        table = Table(title=Text(f"{title(result)}\n{group.title}"), caption=Text(teacher_text(group)))
        for name in header:
            table.add_column(name, justify="left" if name in WORDS else "right")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        if settings_text(group):
            console.print(Text(f"settings: {settings_text(group)}"))
    if banner(result):
        console.print(Text(banner(result), style="bold"))
    for note in notes(result):
        console.print(Text(note, style="dim"))
