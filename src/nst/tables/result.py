"""A table's result: the plan's rows with statistics over their runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nst.storage.folder import MEASURES
from nst.tables.file import Group, Row
from nst.tables.frame import check_agreement, rate, read_frame
from nst.tables.plan import Cell, Plan, folder_of
from nst.tables.statistics import Frame, Sample, paired, sample, verdict


@dataclass
class Method:
    """A row of a group: its figures in percent, errors or accuracies as the table's metric says."""

    cell: Cell
    by_seed: dict[int, float]  # of the last epoch, on the test images
    last: Sample | None
    best: Sample | None
    top5: Sample | None
    seconds: Sample | None
    steps: int | None
    diverged: int
    collapsed: int
    evaluated_on: list[str]  # what the best epoch was chosen on
    test_images: int | None
    weights: dict[str, float]
    settings: dict[str, str]  # as the result states them
    curve: dict[float, list[float]]  # epoch → error in percent of each run on the images of its evaluations
    difference: float | None  # of the comparable epoch to the published figure
    verdict: str
    paired: Sample | None = None  # to the baseline
    rank: int | None = None  # 1 for the best; equal means share the better rank
    published_rank: int | None = None

    @property
    def row(self) -> Row:
        """Its row in the table's file, with name, label and published figure."""
        return self.cell.row

    @property
    def kind(self) -> str:
        """ "nst" for a method with it, "other" for another one, "baseline" for none."""
        if not self.weights:
            return "baseline"
        return "nst" if any(name.startswith("nst") for name in self.weights) else "other"


@dataclass
class GroupResult:
    """Methods that share teacher and student; the baseline is the first."""

    group: Group
    methods: list[Method]
    teacher: dict[str, Any] | None  # as it was measured when its students started: name, figure, top5, evaluated_on, …


@dataclass
class Result:
    """The whole table."""

    plan: Plan
    groups: list[GroupResult]
    origin: dict[str, list[str]]  # commits, hardware and versions of its runs
    frame: Frame  # a row a run: the columns of `read_run`, at, group, method and value

    @property
    def methods(self) -> list[Method]:
        """Of all groups."""
        return [method for group in self.groups for method in group.methods]

    @property
    def lower(self) -> bool:
        """Whether lower is better."""
        return self.plan.table.metric == "error"


def read_result(plan: Plan) -> Result:
    """Read every run of the plan, once.

    Raises:
        ValueError: a damaged file, or runs that saw other images or another teacher than others of the same settings.
    """
    lower, groups = plan.table.metric == "error", []
    frames: list[Frame] = []
    for group in plan.table.groups:
        methods, teachers = [], []
        for cell in (cell for cell in plan.cells if cell.group is group):
            runs = read_frame(folder_of(run) for run in cell.runs)
            if without := [*runs["folder"][runs["measure"] == "loss"]]:
                raise ValueError(
                    f"{without[0]}: a table compares accuracies, but without labels this run has none; nst runs lists it"
                )
            value, at = _as_metric(runs["test"], lower), plan.along.get(group.name, 0.0)
            runs = runs.assign(at=at, group=group.name, method=cell.row.label, value=value)
            frames.append(runs)
            teachers += [*runs["taught_by"].dropna()]
            methods.append(_method(cell, runs, lower))
        baseline = pd.Series(methods[0].by_seed, dtype=float)
        for method in methods[1:]:
            method.paired = paired(pd.Series(method.by_seed, dtype=float), baseline)
        ours = _ranks([method.last and method.last.mean for method in methods], lower)
        theirs = _ranks([method.row.published for method in methods], lower)
        for i, method in enumerate(methods):
            method.rank, method.published_rank = ours[i], theirs[i]
        groups.append(GroupResult(group, methods, _teacher(teachers[0], lower) if teachers else None))
    frame: Frame = pd.concat(frames, ignore_index=True)
    check_agreement(frame)
    done = frame[frame["state"] == "finished"]
    origin = {name: sorted({*map(_words, done[name])}) for name in ("commit", "hardware", "versions")}
    return Result(plan, groups, origin, frame)


def _as_metric(accuracies: Any, lower: bool) -> Any:
    """Accuracies in percent as the table's metric: as they are, or errors."""
    found = accuracies.astype(float) if isinstance(accuracies, pd.Series) else accuracies
    return 100 - found if lower else found


def _ranks(values: list[float | None], lower: bool) -> list[int | None]:
    found = pd.Series(values, dtype=float).rank(method="min", ascending=lower)
    return [None if pd.isna(rank) else int(rank) for rank in found]


def _words(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _method(cell: Cell, runs: Frame, lower: bool) -> Method:
    row, done = cell.row, runs[runs["state"] == "finished"]
    last, best = sample(done["value"]), sample(_as_metric(done["best"], lower))
    splits, diverged = sorted({*done["evaluated_on"]}), int(runs["diverged"].notna().sum())
    ours, chosen_elsewhere = (best, "val" in splits) if row.epoch == "best" else (last, False)
    incomparable = None if cell.comparable else "reduced" if cell.reduced else "other settings"
    if chosen_elsewhere:
        incomparable = incomparable or "our best epoch is one on validation images"
    images = next((int(n) for n in done["test_images"].dropna()), None)
    curves = [{epoch: 100 - top1 for epoch, top1 in curve.items()} for curve in runs["curve"] if curve]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return Method(
        cell, dict(zip(done["seed"], done["value"], strict=True)),
        last, best, top5=sample(_as_metric(done["top5"], lower)) if done["top5"].notna().all() else None,
        seconds=sample(done["seconds"]), steps=int(done["steps"].iloc[0]) if len(done) else None,
        diverged=diverged, collapsed=int(runs["collapsed"].sum()), evaluated_on=splits, test_images=images,
        weights=runs["weights"].iloc[0] if len(runs) else {},
        settings=stated(runs["settings"].iloc[0], images, runs["measure"].iloc[0]) if len(runs) else {},
        curve={epoch: [curve[epoch] for curve in curves] for epoch in epochs},
        difference=ours.mean - row.published if ours and row.published is not None and not chosen_elsewhere else None,
        verdict=verdict(ours, row.published, lower, incomparable) if ours else "diverged" if diverged else "not run",
    )  # fmt: skip


def stated(settings: Mapping[str, Any], test_images: int | None, measure: str = "top1") -> dict[str, str]:
    """The settings, of those by dotted key, that a result states; those that a run lacks are left out."""
    held_out, clip = 100 * (settings.get("data.validation") or 0), settings.get("trainer.clip_grad_norm")
    decay = settings.get("optim.weight_decay")
    texts = {
        "epochs": settings.get("trainer.epochs"),
        "learning rate": rate(settings),
        "weight decay": None if decay is None else f"{decay:g}",
        "batch size": settings.get("trainer.batch_size"),
        "gradient norm clipped at": None if clip is None else f"{clip:g}",
        "precision": settings.get("trainer.precision"),
        "training images": settings.get("data.limit") or (f"all but {held_out:.3g} % held out" if held_out else "all"),
        "test images": None if test_images is None else f"{test_images:,}",
        "accuracy": None if measure == "top1" else f"{MEASURES[measure]} of features",
    }
    return {key: str(text) for key, text in texts.items() if text is not None}


def _teacher(about: dict[str, Any], lower: bool) -> dict[str, Any]:
    """The one teacher of a group, with its figures as the table states them."""
    figures = {"figure": None if about["top1"] is None else _as_metric(about["top1"], lower)}
    figures["top5"] = None if about["top5"] is None else _as_metric(about["top5"], lower)
    return {key: about[key] for key in ("name", "parameters", "weights", "sha256", "evaluated_on")} | figures
