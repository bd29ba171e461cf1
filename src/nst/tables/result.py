"""A table's result: the plan's rows with statistics over their runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from nst.tables.file import Layers, Published
from nst.tables.frame import check_agreement, read_frame
from nst.tables.plan import Cell, Plan, folder_of
from nst.tables.settings import stated
from nst.tables.statistics import Frame, Sample, paired, ranks, sample, verdict


@dataclass
class RowResult:
    """A method: its figures in percent, errors or accuracies as the table's metric says."""

    name: str
    label: str
    tuned: bool
    published: float | None
    published_top5: float | None
    published_epoch: str
    planned: int  # runs
    diverged: int
    collapsed: int
    by_seed: dict[int, float]  # of the last epoch, on the test images
    last: Sample | None
    best: Sample | None
    top5: Sample | None
    difference: float | None  # of the comparable epoch to the published figure
    verdict: str
    evaluated_on: list[str]  # what the best epoch was chosen on
    test_images: int | None
    weights: dict[str, float]
    settings: dict[str, str]
    seconds: Sample | None
    steps: int | None
    curve: dict[float, list[float]]  # epoch → error in percent of each run on the images of its evaluations
    command: str
    runs: list[str]  # folders
    changes: list[str]
    reduced: bool
    comparable: bool
    paired: Sample | None = None  # to the baseline
    rank: int | None = None
    published_rank: int | None = None
    published_by: str | None = None

    @property
    def kind(self) -> str:
        """ "nst" for a method with it, "other" for another one, "baseline" for none."""
        return (
            "nst" if any(name.startswith("nst") for name in self.weights) else "other" if self.weights else "baseline"
        )


@dataclass
class GroupResult:
    """Rows that share teacher and student; the baseline is the first."""

    name: str
    title: str
    at: float | None  # of the table's axis
    layers: Layers
    rows: list[RowResult]
    published: Published  # the teacher's
    teacher: dict[str, Any] | None  # as it was measured when its students started: name, figure, top5, evaluated_on, …


@dataclass
class Result:
    """The whole table."""

    table: str
    command: str
    title: str
    source: str
    metric: str
    along: str | None
    groups: list[GroupResult]
    origin: dict[str, list[str]]  # commits, hardware and versions of its runs
    frame: Frame = field(repr=False)  # a row a run: the columns of `read_run`, at, group, method and value

    @property
    def rows(self) -> list[RowResult]:
        """Of all groups."""
        return [row for group in self.groups for row in group.rows]

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return self.metric == "error"

    @property
    def changes(self) -> list[str]:
        """Of the runs from the table's settings."""
        return [*dict.fromkeys(change for row in self.rows for change in row.changes)]

    def as_json(self) -> dict[str, Any]:
        """All but the frame, as in `table.json`."""
        return {key: value for key, value in asdict(Result(**{**vars(self), "frame": None})).items() if key != "frame"}  # pyright: ignore[reportArgumentType]


def read_result(plan: Plan) -> Result:
    """Read every run of the plan, once.

    Raises:
        ValueError: a damaged file, or runs that saw other images or another teacher than others of the same settings.
    """
    table, groups, lower = plan.table, [], plan.table.metric == "error"
    frames: list[Frame] = []
    for group in table.groups:
        rows, at, first = [], plan.along.get(group.name), len(frames)
        for cell in (cell for cell in plan.cells if cell.group is group):
            runs: Frame = read_frame(folder_of(run) for run in cell.runs)
            top1 = runs["test"].astype(float)
            runs = runs.assign(
                at=at or 0.0, group=group.name, method=cell.row.label, value=100 - top1 if lower else top1
            )
            frames.append(runs)
            rows.append(_row(cell, runs, lower))
        _compare(rows, lower)
        teacher = next(
            (_teacher(about, lower) for runs in frames[first:] for about in runs["taught_by"].dropna()), None
        )
        groups.append(GroupResult(group.name, group.title, at, group.layers, rows, group.teacher, teacher))
    frame: Frame = pd.concat(frames, ignore_index=True)
    check_agreement(frame)
    done = frame[frame["state"] == "finished"]
    origin = {name: sorted({*map(_words, done[name])}) for name in ("commit", "hardware", "versions")}
    request = plan.request
    return Result(
        request.table, request.command, table.title, table.source, table.metric, table.along, groups, origin, frame
    )


def _words(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _row(cell: Cell, runs: Frame, lower: bool) -> RowResult:
    row, epoch, done = cell.row, cell.row.epoch or "unknown", runs[runs["state"] == "finished"]
    best, top5 = (done[name].astype(float) for name in ("best", "top5"))
    last, best = sample(done["value"]), sample(100 - best if lower else best)
    top5 = sample(100 - top5 if lower else top5) if top5.notna().all() else None
    splits = sorted({*done["evaluated_on"]})
    ours = best if epoch == "best" else last
    chosen_elsewhere = epoch == "best" and "val" in splits
    hindrance = None if cell.comparable else "reduced" if cell.reduced else "other settings"
    if hindrance is None and chosen_elsewhere:
        hindrance = "our best epoch is one on validation images"
    diverged = int(runs["diverged"].notna().sum())
    images = next((int(n) for n in done["test_images"].dropna() if n), None)
    curves = [{epoch: 100 - top1 for epoch, top1 in curve.items()} for curve in runs["curve"] if curve]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return RowResult(
        row.name, row.label, row.tuned, row.published, row.published_top5, epoch, len(cell.runs), diverged,
        collapsed=int(runs["collapsed"].sum()),
        by_seed=dict(zip(done["seed"], done["value"], strict=True)),
        last=last, best=best, top5=top5,
        difference=ours.mean - row.published if ours and row.published is not None and not chosen_elsewhere else None,
        verdict=verdict(ours, row.published, lower, hindrance) if ours else "diverged" if diverged else "not run",
        evaluated_on=splits, test_images=images,
        weights=runs["weights"].iloc[0] if len(runs) else {},
        settings=stated(runs["settings"].iloc[0], images) if len(runs) else {},
        seconds=sample(done["seconds"]), steps=int(done["steps"].iloc[0]) if len(done) else None,
        curve={epoch: [curve[epoch] for curve in curves] for epoch in epochs},
        command=cell.command, runs=[str(folder_of(run)) for run in cell.runs],
        changes=list(cell.changes), reduced=cell.reduced, comparable=cell.comparable, published_by=row.by,
    )  # fmt: skip


def _compare(rows: Sequence[RowResult], lower: bool) -> None:
    """Fill in the rows' ranks, and their differences to the baseline, which is the first."""
    ours = ranks([row.last.mean if row.last else None for row in rows], lower)
    theirs = ranks([row.published for row in rows], lower)
    baseline = pd.Series(rows[0].by_seed, dtype=float)
    for i, row in enumerate(rows):
        row.rank, row.published_rank = ours[i], theirs[i]
        row.paired = paired(pd.Series(row.by_seed, dtype=float), baseline) if i else None


def _teacher(about: dict[str, Any], lower: bool) -> dict[str, Any]:
    """The one teacher of a group, with its figures as the table states them."""
    figures = {"figure": about["top1"], "top5": about.get("top5")}
    figures = {key: 100 - value if lower and value is not None else value for key, value in figures.items()}
    kept = {key: about[key] for key in ("name", "parameters", "weights", "sha256")}
    return {**kept, "evaluated_on": about.get("evaluated_on", "test"), **figures}
