"""Each loss alone beside a plain student's training step, in the setting of CRD's benchmark: ResNet-56 → ResNet-20 on CIFAR-100."""

import time
from collections.abc import Callable
from statistics import median, quantiles

import hydra
import torch
from hydra import initialize_config_dir
from rich.console import Console
from rich.table import Table

from benchmarks.loss_cases import forget_peak, resident
from benchmarks.step import IMAGE, make_trainer, noise, timed
from nst import build
from nst.config import CONFIGS, RunConfig
from nst.distiller import Distiller, Targets
from nst.layers import LOGITS, LayerHooks
from nst.teacher import Teacher

PAIR, BATCH, CLASSES = "crd/resnet56-resnet20", 64, 100
IMAGES = 50_000  # of the training set: the rows of CRD's memory banks

# The words that choose each loss as CRD's benchmark or its authors run it. NST's other kernels as its polynomial one there.
LOSSES = {name: (f"loss=crd/{name}",) for name in ("kd", "dkd", "dist", "at", "fitnet")}
for _name in ("nst_linear", "nst_poly", "nst_gaussian"):
    LOSSES[_name] = (f"loss={_name}", f"loss.{_name}.layers=stages", f"loss.{_name}.convention=crd")
LOSSES |= {name: (f"loss=crd/{name}",) for name in ("sp", "rkd", "pkt", "cc", "vid", "crd", "review")}

Row = dict
Turn = tuple[float, float, float, float]  # seconds and processor seconds of the loss, then of the plain step


def settings_of(*overrides: str) -> RunConfig:
    """The settings of a run of this pair of networks; no data is needed."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build.settings(hydra.compose("config", [f"experiment={PAIR}", *overrides]))


def plain_step(device: str) -> Callable[[], object]:
    """A training step of the student without a teacher, its batch included."""
    student = build.networks(settings_of("loss=ce")).distiller
    loader = noise(4 * BATCH, CLASSES).loader(BATCH, train=True, device=device, channels_last=True)
    trainer = make_trainer(student, Teacher(), loader, device, compile=False)
    batches = (batch for _ in iter(int, 1) for batch in loader.epoch(0))  # endless
    return lambda: trainer.step(next(batches))


def loss_step(name: str, device: str, images: int = IMAGES) -> tuple[Callable[[], torch.Tensor], Distiller]:
    """Forward and backward of one loss from the features of a batch on, the teacher's target included; and what holds the loss."""
    torch.manual_seed(0)
    settings = settings_of(*LOSSES[name])
    networks = build.networks(settings)
    distiller, teacher = networks.distiller, networks.teacher
    assert teacher is not None
    build.init_memory(settings, distiller, images)
    distiller.to(device).to(memory_format=torch.channels_last).train()
    batch = torch.randn(BATCH, *IMAGE, device=device).to(memory_format=torch.channels_last)
    (term,) = (term for term in distiller.terms if term.loss.source == "teacher")
    layers = LayerHooks(teacher.to(device).to(memory_format=torch.channels_last), [pair.teacher for pair in term.pairs])
    with torch.no_grad():
        teacher_features = {LOGITS: teacher(batch)} | layers.read()
        student_features = {LOGITS: distiller.student(batch)} | distiller.hooks.read()
    leaves = {layer: feature.detach().requires_grad_(True) for layer, feature in student_features.items()}
    context = {
        "labels": torch.randint(CLASSES, (BATCH,), device=device), "index": torch.randperm(images)[:BATCH].to(device),
        "epoch": torch.tensor(100.0, device=device), "progress": torch.tensor(0.5, device=device),
    }  # fmt: skip
    steps = iter(range(1_000_000))

    def step() -> torch.Tensor:
        for tensor in (*leaves.values(), *distiller.losses.parameters()):
            tensor.grad = None
        targets: Targets = {
            spec.key: spec.loss.target(teacher_features[spec.layer], spec.student_shape)
            for spec in distiller.target_specs
        }
        seed = torch.tensor(next(steps))
        value = term.weight * distiller.value(term, leaves, targets, {**context, "seed": seed})
        value.backward()
        return value.detach()

    return step, distiller


def measure(losses: list[str], device: str, seconds: float, repeats: int) -> list[Row]:
    """All losses and the plain step in turns, in this process, at least `repeats` times and for `seconds` a loss.

    Processor time is that of this process, on all its threads.
    """
    plain, made = plain_step(device), {name: loss_step(name, device) for name in losses}
    plain()
    rows = {name: {"loss": name, **describe(step, distiller, device)} for name, (step, distiller) in made.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in losses}
    begin, done = time.perf_counter(), 0
    while done < repeats or time.perf_counter() - begin < seconds * len(losses):
        beside = timed(plain, device)
        for name, (step, _) in made.items():
            turns[name].append((*timed(step, device), *beside))
        done += 1
    return [{**rows[name], "n": done, **summarise(turns[name])} for name in losses]


def describe(step: Callable[[], torch.Tensor], distiller: Distiller, device: str) -> Row:
    """Layers, value, what a pass needs besides what is there, and what the loss keeps: parameters, memory banks."""
    step()  # what is made once is there, and CRD's Z is set
    before = forget_peak(device)
    value = step().item()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    state = (*distiller.losses.parameters(), *distiller.losses.buffers())
    (term,) = (term for term in distiller.terms if term.loss.source == "teacher")
    return {
        "layers": [pair.student for pair in term.pairs],
        "value": value,
        "extra_mb": (peak - before) / 1e6,
        "state_mb": sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6,
    }


def summarise(turns: list[Turn]) -> Row:
    """Medians; of shares, of those of each turn."""
    share = [loss / plain for loss, _, plain, _ in turns]
    low, _, high = quantiles(share, n=4, method="inclusive") if len(share) > 1 else share * 3
    clock, processor, plain_clock, plain_processor = (1e3 * median(side) for side in zip(*turns, strict=True))
    return {
        "median_ms": clock,
        "processor_ms": processor,
        "plain_ms": plain_clock,
        "plain_processor_ms": plain_processor,
        "share": median(share),
        "share_quartiles": [low, high],
        # 0 where the clock of processor time is too coarse
        "share_by_processor_time": median(loss / plain if plain else 0.0 for _, loss, _, plain in turns),
    }


def print_steps(rows: list[Row]) -> None:
    """One line a loss."""
    table = Table(title=f"{PAIR}, batch {BATCH}: the loss alone beside the plain student's step")
    for column in ("loss", "layers", "ms", "of the step", "by CPU time", "MB", "kept, MB"):
        table.add_column(column, justify="left" if column in ("loss", "layers") else "right", no_wrap=column == "loss")
    for row in rows:
        table.add_row(*cells(row))
    Console().print(table)


def cells(row: Row) -> list[str]:
    """One row of the table."""
    layers = row["layers"]
    return [
        row["loss"], layers[0] if len(layers) == 1 else f"{len(layers)} stages", f"{row['median_ms']:.2f}",
        f"{row['share']:.1%}", f"{row['share_by_processor_time']:.1%}", f"{row['extra_mb']:.1f}", f"{row['state_mb']:.1f}",
    ]  # fmt: skip
