"""`nst benchmark step`: a training step of the plain student, with a live teacher, and with the teacher's outputs cached."""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loss_cases import forget_peak, resident
from benchmarks.machine import describe
from nst import models
from nst.config import TrainerConfig
from nst.data.batch import Batch, Loader
from nst.data.memory import MemorySplit
from nst.data.views import ViewScheme
from nst.dist import Dist
from nst.distiller import Distiller, Pair, Targets, TargetSpec, Term
from nst.layers import LOGITS, feature_shapes, resolve
from nst.loop import Training
from nst.losses import AT, CRD, KD, NST, SP, VID, CrossEntropy, FitNet, TransferLoss
from nst.optim import Constant
from nst.teacher import (
    CachedTeacher,
    LiveTeacher,
    NoTeacher,
    TargetSource,
    TeacherCache,
    arrays,
    fold_batch_norm,
    kept_live,
    write_cache,
)

HELP = "a training step: plain, with a live teacher, with a teacher cache"


class FixedTargets(NoTeacher):
    """Precomputed targets, the same for every batch."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets

    def __call__(self, batch: Batch) -> Targets:
        """See `TargetSource`."""
        return self.targets


@dataclass(frozen=True)
class Method:
    """A loss as it is used: its weight, and the layers of teacher and student that it compares."""

    weight: float
    make: Callable[[], TransferLoss]
    layers: tuple[str, ...] = ("last",)


STAGES = ("stage1", "stage2", "stage3")
LOSSES = {
    "kd": Method(16, KD),
    "at": Method(1000, AT),
    "nst_linear": Method(50, lambda: NST("linear")),
    "nst_poly": Method(50, lambda: NST("polynomial")),
    "nst_gaussian": Method(100, lambda: NST("gaussian")),
    "fitnet": Method(100, FitNet),
    # as in CRD's benchmark
    "crd/nst": Method(50, lambda: NST("polynomial", convention="crd"), STAGES),
    "crd/at": Method(1000, lambda: AT(convention="crd"), STAGES),
    "crd/fitnet": Method(100, lambda: FitNet(convention="crd", regressor="conv_bn_relu"), ("stage2",)),
    "crd/vid": Method(1, lambda: VID(convention="crd"), STAGES),
    "crd/sp": Method(3000, SP),
    "crd/crd": Method(0.8, CRD),
}
IMAGE = (3, 32, 32)
TAPS = ["last", *STAGES, LOGITS]
REMEMBERED = 50_000  # images that CRD contrasts: those of CIFAR, however few are rendered here
CACHES = 3  # written, and as many runs of the bare teacher
Row = dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `step`."""
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--student", default="resnet20", help="a function of nst.models")
    parser.add_argument("--teacher", default="resnet56", help="a function of nst.models")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each case, in turns")
    parser.add_argument("--views", type=int, default=2, help="views of each image in the cache")
    parser.add_argument(
        "--residence", default="auto", choices=["auto", "host", "disk"], help="where the cache is read from"
    )
    parser.add_argument("--compile", action="store_true", help="compile the steps: minutes on a small machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write everything measured here")


@dataclass
class Case:
    """One way to train, ready for its next step."""

    loss: str
    knowledge: str  # plain | live | stored | given (the targets are there already: what the loss itself costs)
    training: Training
    source: TargetSource
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds too, of this process alone
    peak: int = 0  # bytes that a step adds

    def batches(self) -> Iterator[Batch]:
        """Endless."""
        while True:
            yield from self.training.loader.epoch(0)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    split = noise(4 * arguments.batch_size)
    teacher = getattr(models, arguments.teacher)().to(device).to(memory_format=torch.channels_last)
    shapes = feature_shapes(teacher, TAPS, IMAGE)
    settle(
        teacher,
        split.render(
            torch.arange(2 * arguments.batch_size), torch.zeros(2 * arguments.batch_size, dtype=torch.long)
        ).to(device),
    )
    fold_batch_norm(teacher.eval(), split.render(torch.arange(8), torch.zeros(8, dtype=torch.long)).to(device))
    with tempfile.TemporaryDirectory() as folder:
        students = {name: distiller(arguments, [name], shapes) for name in arguments.losses}
        target_specs = [r for d in students.values() for r in d.target_specs]
        reasons = kept_live(target_specs, shapes, allow_large=True)
        cachable = [r for r in target_specs if r.key not in reasons]
        live = LiveTeacher(copy.deepcopy(teacher), ())
        cache, needed, writing = written_cache(arguments, Path(folder), split, live, cachable, shapes)
        subset = split.view_subset(arguments.views)
        first = next(iter(split.loader(arguments.batch_size, train=True, device=device).epoch(0)))
        cases = [case(arguments, split, "ce", "plain", distiller(arguments, [], shapes), NoTeacher())]
        for name, student in students.items():
            own = LiveTeacher(copy.deepcopy(teacher), student.target_specs)  # with no hooks but its own
            given = FixedTargets(own(first))
            cases.append(case(arguments, split, name, "live", student, own))
            cases.append(case(arguments, split, name, "given", distiller(arguments, [name], shapes), given))
            arrays_of = [a for a in needed if a.spec in {r.key for r in student.target_specs}]
            if arrays_of:
                cached = CachedTeacher(cache, arrays_of, subset, device, residence=arguments.residence)
                cases.append(case(arguments, split, name, "stored", distiller(arguments, [name], shapes), cached))
        rows = measure(arguments, cases)
    report = {"machine": describe(arguments.device), "writing": writing, "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    print_tables(arguments, report)


@torch.no_grad()
def settle(teacher: torch.nn.Module, images: torch.Tensor) -> None:
    """Take the statistics of batch normalisation from these images: random weights alone lead beyond what float16 holds."""
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    teacher.train()(images)


def noise(images: int, classes: int = 10) -> MemorySplit:
    """CIFAR-shaped images."""
    pixels = torch.randint(0, 256, (images, *IMAGE), dtype=torch.uint8)
    return MemorySplit(pixels, torch.arange(images) % classes, ViewScheme(32, 4, True), (0.5,) * 3, (0.25,) * 3)


def distiller(arguments: argparse.Namespace, names: list[str], shapes: dict[str, tuple[int, ...]]) -> Distiller:
    """A student with cross-entropy and the losses of these names."""
    student = getattr(models, arguments.student)()
    terms = [Term("ce", CrossEntropy(), 1.0, (Pair(LOGITS, LOGITS),))]
    for name in names:
        method = LOSSES[name]
        loss = method.make()
        layers = (LOGITS,) if loss.on_logits else method.layers
        terms.append(Term(name, loss, method.weight, tuple(Pair(layer, layer) for layer in layers)))
    made = Distiller(student, terms, feature_shapes(student, TAPS, IMAGE), shapes)
    for loss in made.losses.values():
        assert isinstance(loss, TransferLoss)
        loss.init_memory(REMEMBERED)
    return made


def case(
    arguments: argparse.Namespace,
    split: MemorySplit,
    loss: str,
    kind: str,
    student: Distiller,
    knowledge: TargetSource,
) -> Case:
    """One way to train."""
    subset = split.view_subset(arguments.views) if kind == "stored" else None
    loader = split.loader(
        arguments.batch_size, train=True, device=arguments.device, channels_last=True, views=subset
    )  # fmt: skip
    return Case(loss, kind, make_training(student, loader, arguments.device, arguments.compile), knowledge)


def make_training(student: Distiller, loader: Loader, device: str, compile: bool) -> Training:
    """In training mode; a learning rate of 0 keeps the noise from doing harm."""
    training = Training(
        student, loader, optimizer=partial(torch.optim.SGD, lr=0.0), schedule=Constant(),
        settings=TrainerConfig(epochs=1_000_000, compile=compile), dist=Dist(0, 1, torch.device(device)),
    )  # fmt: skip
    training.distiller.train()
    return training


def written_cache(
    arguments: argparse.Namespace,
    folder: Path,
    split: MemorySplit,
    live: LiveTeacher,
    target_specs: list[TargetSpec],
    shapes: dict[str, tuple[int, ...]],
) -> tuple[TeacherCache, list, Row]:
    """A cache of all that can be cached, and how fast it was written beside the bare teacher, in turns."""
    needed = [a for r in target_specs for a in arrays(r, resolve(live.model, r.layer), shapes[r.layer])]
    loader = split.loader(arguments.batch_size, train=True, device=arguments.device, channels_last=True)
    subset = split.view_subset(arguments.views)
    images = next(iter(loader.epoch(0))).images
    rates: list[tuple[float, float, float, float]] = []
    caches = [TeacherCache(folder / str(i), {}, len(split), arguments.views, "float16") for i in range(CACHES)]
    for cache in caches:
        live.set_target_specs([])
        forward, bare_processor = timed(lambda: bare(live, images, arguments.views * loader.steps), arguments.device)
        live.set_target_specs(target_specs)
        writing, write_processor = timed(
            lambda cache=cache: write_cache(cache, live, loader, subset, needed), arguments.device
        )
        rates.append((cache.rows / forward, cache.rows / writing, forward / writing, bare_processor / write_processor))
    teacher, written, ratio, by_processor = (median(side) for side in zip(*rates, strict=True))
    return (
        caches[0],
        needed,
        {
            "teacher_images_per_second": teacher,
            "images_per_second": written,
            "ratio": ratio,
            "by_processor_time": by_processor,
        },
    )


@torch.no_grad()
def bare(live: LiveTeacher, images: torch.Tensor, times: int) -> None:
    """The teacher's own forward pass."""
    for _ in range(times):
        live.logits(images)


def timed(work: Callable[[], None], device: str) -> tuple[float, float]:
    """Seconds that `work` takes, the device's part included, and the processor time of this process in them."""
    begin, used = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - used


def measure(arguments: argparse.Namespace, cases: list[Case]) -> list[Row]:
    """Steps of all cases in turns; ratios are medians over the turns, so that a busy machine harms all alike.

    On a busy machine the ratio of processor times is still right, with one thread (OMP_NUM_THREADS=1) and on a CPU.
    """
    device = arguments.device
    streams = [case.batches() for case in cases]
    for turn in range(arguments.repeats + 2):  # the first one warms up, the second one is for the memory
        for one, stream in zip(cases, streams, strict=True):
            base = forget_peak(device) if turn == 1 else 0
            seconds, processor = timed(lambda one=one, stream=stream: one.step(next(stream)), device)
            if turn == 1:
                peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
                one.peak = peak - base
            elif turn > 1:
                one.seconds.append(seconds)
                one.processor.append(processor)
    plain = cases[0]
    rows = []
    for one in cases:
        if one.knowledge == "given":
            continue
        stored, given = (
            next((c for c in cases if (c.loss, c.knowledge) == (one.loss, kind)), None) for kind in ("stored", "given")
        )
        row: Row = {
            "loss": one.loss,
            "knowledge": one.knowledge,
            "compiled": one.training.compiled is not None,
            "images_per_second": arguments.batch_size / median(one.seconds),
            "ratio_to_plain": median(a / b for a, b in zip(one.seconds, plain.seconds, strict=True)),
            "ratio_by_processor_time": median(a / b for a, b in zip(one.processor, plain.processor, strict=True)),
            "peak_bytes": one.peak,
            "seconds": one.seconds,
        }
        if one.knowledge == "live" and stored is not None:
            row["teacher_share"] = median(1 - b / a for a, b in zip(one.seconds, stored.seconds, strict=True))
        if given is not None:
            row["loss_alone"] = median(a / b - 1 for a, b in zip(given.processor, plain.processor, strict=True))
        rows.append(row)
    return rows


def print_tables(arguments: argparse.Namespace, report: Row) -> None:
    """One line a case, and how fast the cache was written; "loss alone": what it adds to the plain step, by processor time."""
    title = f"{arguments.teacher} → {arguments.student}, batch {arguments.batch_size}, {report['machine']['device']}"
    table = Table(title=title)
    for column in (
        "loss",
        "knowledge",
        "compiled",
        "images/s",
        "× plain",
        "× CPU time",
        "loss alone",
        "teacher",
        "memory",
    ):
        table.add_column(column, justify="left" if column in ("loss", "knowledge") else "right")
    for row in report["rows"]:
        share = f"{100 * row['teacher_share']:.0f} %" if "teacher_share" in row else ""
        own = f"{100 * row['loss_alone']:+.0f} %" if "loss_alone" in row else ""
        table.add_row(
            row["loss"], row["knowledge"], "yes" if row["compiled"] else "no", f"{row['images_per_second']:.0f}",
            f"{row['ratio_to_plain']:.2f}", f"{row['ratio_by_processor_time']:.2f}", own, share, f"{row['peak_bytes'] / 1e6:.0f} MB",
        )  # fmt: skip
    console = Console()
    console.print(table)
    writing = report["writing"]
    console.print(
        f"writing a cache: {writing['images_per_second']:.0f} images/s, {100 * writing['ratio']:.0f} % of the teacher's "
        f"own forward speed ({writing['teacher_images_per_second']:.0f}), {100 * writing['by_processor_time']:.0f} % by "
        "processor time"
    )
