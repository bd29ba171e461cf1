"""A table's result: the plan's rows with statistics over their runs."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nst.storage.folder import MEASURES
from nst.tables.file import Group, Row
from nst.tables.frame import other_contents, rate, read_frame
from nst.tables.plan import LABELS, Cell, Plan, folder_of
from nst.tables.statistics import Frame, Sample, paired, sample, verdict


@dataclass
class Method:
    """A row of a group, of which the first is the baseline: its figures in percent, errors or accuracies as the metric says."""

    cell: Cell
    row: Row
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
    def kind(self) -> str:
        """ "nst" for a method with it, "other" for another one, "baseline" for none."""
        return "nst" if any(t.startswith("nst") for t in self.weights) else "other" if self.weights else "baseline"


@dataclass
class Result:
    """The whole table."""

    plan: Plan
    groups: list[tuple[Group, list[Method], dict[str, Any] | None]]  # the teacher as it was when its students started
    origin: dict[str, list[str]]  # commits, hardware and versions of its runs
    frame: Frame  # a row a run: the columns of `read_run`, at, group, method and value


def read_result(plan: Plan) -> Result:
    """Read every run of the plan, once. Raises ValueError for a damaged file, or images or a teacher that changed between runs."""
    lower, groups = plan.table.metric == "error", []
    frames: list[Frame] = []
    for group in plan.table.groups:
        methods, teacher = [], None
        for cell in (cell for cell in plan.cells if cell.group is group):
            runs = read_frame(folder_of(run) for run in cell.runs)
            if without := [*runs["folder"][runs["measure"] == "loss"]]:
                raise ValueError(f"{without[0]}: a run without labels has no accuracy for a table; nst runs lists it")
            if lower:
                for column in ("test", "best", "top5"):
                    runs[column] = 100 - runs[column].astype(float)
            at = plan.along.get(group.name, 0.0)
            frames.append(runs.assign(at=at, group=group.name, method=cell.row.label, value=runs["test"].astype(float)))
            methods.append(_method(cell, frames[-1], lower))
            for about in runs["taught_by"].dropna().head(0 if teacher else 1):
                figures = {"figure": about["top1"], "top5": about["top5"]}
                teacher = about | {k: 100 - v if lower and v is not None else v for k, v in figures.items()}
        means = [method.last.mean if method.last else None for method in methods]
        both = (pd.Series(values, dtype=float) for values in (means, [method.row.published for method in methods]))
        ranks = [[*values.rank(method="min", ascending=lower).fillna(0).astype(int)] for values in both]
        seeds = [pd.Series(method.by_seed, dtype=float) for method in methods]
        for method, own, rank, published_rank in zip(methods, seeds, *ranks, strict=True):
            method.rank, method.published_rank = rank or None, published_rank or None
            method.paired = None if method is methods[0] else paired(own, seeds[0])
        groups.append((group, methods, teacher))
    frame: Frame = pd.concat(frames, ignore_index=True)
    for kind, same in other_contents(frame):
        one, other = same.drop_duplicates(f"{kind}_sha256")["folder"].head(2)
        raise ValueError(f"{one} and {other} cannot stand in one table: the {kind} changed under its name; delete one")
    origin = {
        name: sorted({", ".join(f"{k} {v}" for k, v in x.items()) if isinstance(x, dict) else str(x) for x in values})
        for name, values in frame[frame["state"] == "finished"][["commit", "hardware", "versions"]].items()
    }
    return Result(plan, groups, origin, frame)


def _method(cell: Cell, runs: Frame, lower: bool) -> Method:
    """Statistics over a row's runs, whose test, best and top5 are in the table's metric."""
    row, done = cell.row, runs[runs["state"] == "finished"]
    last, best, splits = sample(done["value"]), sample(done["best"]), sorted({*done["evaluated_on"]})
    ours, elsewhere = (best, "val" in splits) if row.epoch == "best" else (last, False)
    incomparable = "our best epoch is one on validation images" if elsewhere else ""
    incomparable = cell.label if cell.label in LABELS[2:] else incomparable
    diverged, images = int(runs["diverged"].notna().sum()), next((int(n) for n in done["test_images"].dropna()), None)
    stated: dict[str, Any] = {}
    if len(runs):
        own, measure = runs["settings"].iloc[0], runs["measure"].iloc[0]
        held_out, clip = 100 * (own.get("data.validation") or 0), own.get("trainer.clip_grad_norm")
        part, decay = f"all but {held_out:.3g} % held out" if held_out else "all", own.get("optim.weight_decay")
        stated = {
            "epochs": own.get("trainer.epochs"), "learning rate": rate(own),
            "weight decay": None if decay is None else f"{decay:g}", "batch size": own.get("trainer.batch_size"),
            "gradient norm clipped at": None if clip is None else f"{clip:g}", "precision": own.get("trainer.precision"),
            "training images": own.get("data.limit") or part, "test images": None if images is None else f"{images:,}",
            "accuracy": None if measure == "top1" else f"{MEASURES[measure]} of features",
        }  # fmt: skip
    curves = [{epoch: 100 - top1 for epoch, top1 in curve.items()} for curve in runs["curve"] if curve]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    return Method(
        cell, row, dict(zip(done["seed"], done["value"], strict=True)), last, best,
        top5=sample(done["top5"]) if done["top5"].notna().all() else None,
        seconds=sample(done["seconds"]), steps=int(done["steps"].iloc[0]) if len(done) else None,
        diverged=diverged, collapsed=int(runs["collapsed"].sum()), evaluated_on=splits, test_images=images,
        weights=runs["weights"].iloc[0] if len(runs) else {},
        settings={key: str(text) for key, text in stated.items() if text is not None},
        curve={epoch: [curve[epoch] for curve in curves] for epoch in epochs},
        difference=ours.mean - row.published if ours and row.published is not None and not elsewhere else None,
        verdict=verdict(ours, row.published, lower, incomparable) if ours else "diverged" if diverged else "not run",
    )  # fmt: skip
