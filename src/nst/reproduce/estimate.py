"""How long the missing runs will take: one real step of each kind, measured, times the number of steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as Grid

from nst import build
from nst.config import RunConfig
from nst.data.batch import Batch
from nst.data.memory import MemorySplit
from nst.data.views import ViewScheme
from nst.dist import Dist
from nst.distiller import Targets
from nst.layers import resolve
from nst.loop import Training
from nst.reproduce.plan import Plan, cache_key, finished
from nst.teacher import LiveTeacher, Teacher, TeacherCache
from nst.teacher.prepare import plan_cache

PIXELS = 32 * 32 * 32  # on a CPU a step of about so many pixels is measured, and its time scaled to the batch


@dataclass
class Line:
    """Runs that differ in their seed only, or the writing of a teacher cache."""

    name: str
    run: RunConfig
    runs: int
    missing: int
    seconds: float = 0.0  # of one run
    views: int = 0  # to cache of each image
    note: str = ""  # on a cache: its size; whether large summaries are in it, and why


def lines(plan: Plan) -> list[Line]:
    """Teachers, caches, then students, by row."""
    result = [Line(f"teacher {t.model['name']}", t, 1, int(not finished(t))) for t in plan.teachers]
    several = len(plan.table.groups) > 1
    for cache in plan.caches:
        name = f"teacher cache of {cache.teacher.model['name']}"
        needed = any(
            not finished(run) for cell in plan.cells for run in cell.runs if cache_key(run) == cache_key(cache)
        )
        result.append(Line(name, cache, 1, int(needed), views=_views(cache)))
    for cell in plan.cells:
        name = f"{cell.group.title}: {cell.row.label}" if several else cell.row.label
        missing = sum(not finished(run) for run in cell.runs)
        result.append(Line(name, cell.runs[0], len(cell.runs), missing))
    return result


def estimate(plan: Plan, device: torch.device) -> list[Line]:
    """Measure a step for each line with something missing, and fill in its seconds: an upper bound for resumed runs.

    A cache counts as missing as long as a run is.
    """
    train, test = plan.table.images
    result = lines(plan)
    for line in result:
        if line.missing:
            run = line.run
            images = min(train, run.data.get("limit") or train)
            if line.views:
                line.seconds = images * line.views * pace(run, device).teacher
                line.note = describe_cache(run, images, line.views)
                continue
            images *= run.trainer.epochs
            # Evaluation is a forward pass: a third of a training step without a teacher.
            images += test * run.trainer.epochs / run.trainer.eval_every / 3
            line.seconds = images * pace(run, device).step
    return result


def _views(run: RunConfig) -> int:
    if "pad" not in run.data and run.cache.views != "all":  # random-sized crops, which have no end
        return int(run.cache.views)
    all_views = ViewScheme(run.data["size"], run.data.get("pad", 0), run.data.get("flip", False)).num_views
    return all_views if run.cache.views == "all" else min(int(run.cache.views), all_views)


def describe_cache(run: RunConfig, images: int, views: int) -> str:
    """Its size, and which targets stay live."""
    networks = build.networks(run)
    specs, shapes, teacher = networks.distiller.target_specs, networks.teacher_shapes, networks.teacher
    assert teacher is not None
    cache = TeacherCache(Path(run.outputs) / "none yet", {}, images, views, run.cache.dtype)
    paths = {spec.layer: resolve(teacher, spec.layer) for spec in specs}
    return plan_cache(cache, specs, paths, shapes, run.cache.large)[2]


@dataclass(frozen=True)
class Pace:
    """Seconds an image."""

    step: float  # of training: the student's, the losses', and a live teacher's
    teacher: float  # of the teacher only: the cost of writing a cache


def pace(run: RunConfig, device: torch.device) -> Pace:
    """One training step on noise, teacher and losses included; weights are random, the time is the same."""
    networks = build.networks(run)
    channels, size = run.data["channels"], run.data["size"]
    batch = run.trainer.batch_size
    if device.type == "cpu":
        batch = min(batch, max(2, PIXELS // size**2))
    noise = torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(batch) % run.data["num_classes"]
    split = MemorySplit(noise, labels, ViewScheme(size, 0, False), run.data["mean"], run.data["std"])
    loader = split.loader(batch, train=True, device=device, channels_last=run.trainer.channels_last)
    images = next(iter(loader.epoch(0)))
    source = Teacher()
    teacher = 0.0
    if networks.teacher is not None:
        live = LiveTeacher(networks.teacher.to(device), networks.distiller.target_specs)
        source, teacher = Teacher((live,)), _seconds(lambda: live(images), device)
        if run.cache.views:  # without the few terms that stay live, which are ignored here
            source = FixedSummaries(live(images))
    build.init_memory(run, networks.distiller, batch)
    eager = replace(run, trainer=replace(run.trainer, compile=False))
    training = Training(
        networks.distiller, loader, **build.optimization(eager), settings=eager.trainer, dist=Dist(0, 1, device)
    )
    return Pace(_seconds(lambda: training.step(images, source(images)), device) / batch, teacher / batch)


class FixedSummaries(Teacher):
    """Precomputed targets, the same for every batch."""

    def __init__(self, targets: Targets) -> None:
        super().__init__(about={"targets": targets})

    def __call__(self, batch: Batch) -> Targets:
        """See `Teacher`."""
        assert self.about is not None
        return self.about["targets"]


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The least of three, after one to warm up."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def show(plan: Plan, planned: list[Line], folder: Path) -> None:
    """Print the plan with its estimate."""
    runs = [line for line in planned if not line.views]
    missing = sum(line.missing for line in runs)
    grid = Grid(title=f"{plan.table.title}: {sum(line.runs for line in runs)} runs, {missing} to do")
    for column in ("run", "epochs", "runs", "finished", "estimate each", "to do"):
        grid.add_column(column, justify="left" if column == "run" else "right")
    for line in planned:
        each = duration(line.seconds) if line.missing else ""
        left = duration(line.seconds * line.missing) if line.missing else "done"
        length = f"{line.views} views" if line.views else str(line.run.trainer.epochs)
        grid.add_row(line.name, length, str(line.runs), str(line.runs - line.missing), each, left)
    console = Console()
    console.print(grid)
    if missing:
        total = duration(sum(line.seconds * line.missing for line in planned))
        console.print(f"estimate from one measured step of each on this machine: about {total} in all")
    for line in planned:
        if line.note:
            console.print(f"{line.name}: {line.note}", highlight=False, markup=False, soft_wrap=True)
    changes = list(dict.fromkeys(change for cell in plan.cells for change in cell.changes))
    if changes:
        kind = "the table's settings, except for"
        if not all(cell.comparable for cell in plan.cells):
            kind = "REDUCED" if any(cell.reduced for cell in plan.cells) else "CHANGED"
            kind += ", not comparable with published figures:"
        few = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
        console.print(f"{kind} {few}", highlight=False, markup=False)
    console.print(f"result: {folder}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """As text: "40 s", "12 min", "3.4 h", "12 days"."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}" if name == "h" else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"
