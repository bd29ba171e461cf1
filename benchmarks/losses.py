"""`python -m benchmarks losses`: time and memory of forward + backward.

NST's implementations beside the broadcast one; every loss alone beside a plain student's training step, in the setting of CRD's benchmark
(ResNet-56 → ResNet-20 on CIFAR-100); and its memory at 1,000 classes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from benchmarks import implementations
from benchmarks.measure import Row, endless, machine, peak_bytes, quartiles, ratio, show, timed, write
from benchmarks.step import IMAGE, noise
from nst import build
from nst.cli.compose import composed
from nst.config import RunConfig
from nst.dist import Dist
from nst.distiller import Distiller, Targets
from nst.layers import LOGITS, LayerHooks
from nst.loop import Training
from nst.losses import ABKD, CATKD, DKD, KD, MGD, NKD, OFA, RLD, SDD, TTM, WKDF, WKDL, TransferLoss

HELP = "the losses: NST's implementations beside the broadcast one, and every loss beside a training step"
PAIR, BATCH, CLASSES = "crd/resnet56-resnet20", 64, 100
IMAGES = 50_000  # of the training set: the rows of CRD's memory banks

# The words that choose each loss as CRD's benchmark or its authors run it. NST's other kernels as its polynomial one there.
LOSSES: dict[str, tuple[str, ...]] = {name: (f"loss=crd/{name}",) for name in ("kd", "dkd", "dist", "at", "fitnet")}
for _name in ("nst_linear", "nst_poly", "nst_gaussian"):
    LOSSES[_name] = (f"loss={_name}", f"loss.{_name}.layers=stages", f"loss.{_name}.convention=crd")
LOSSES |= {name: (f"loss=crd/{name}",) for name in ("sp", "rkd", "pkt", "cc", "vid", "crd", "review")}
LOSSES |= {
    name: (f"loss={name}",) for name in ("ttm", "wttm", "nkd", "rld", "abkd", "wkd_l", "wkd_f", "cat_kd", "sdd", "mgd")
}
_layers = [f"{{teacher: logits, student: {layer}}}" for layer in ("stage1", "stage2", "stage3", "logits")]
LOSSES["ofa"] = ("loss=ofa", f"loss.ofa.layers=[{','.join(_layers)}]")

# What each loss takes of an image at 1,000 classes: ResNet-34 → ResNet-18 on ImageNet.
LAST, MAP, LOGITS_1000 = (512, 7, 7), (1000, 7, 7), (1000,)
_on_logits = {"kd": KD(), "dkd": DKD(), "ttm": TTM(), "wttm": TTM(weighted=True), "nkd": NKD(), "rld": RLD()}
_on_logits |= {"abkd": ABKD(), "wkd_l": WKDL(temperature=2.0, transport=30.0)}
LARGE: dict[str, tuple[TransferLoss, list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    **{name: (loss, [LOGITS_1000], [LOGITS_1000]) for name, loss in _on_logits.items()},
    "wkd_f": (WKDF(2.0, 4, "bottleneck"), [LAST], [LAST]),
    "cat_kd": (CATKD(4, normalize=False), [MAP], [MAP]),
    "sdd": (SDD(), [MAP], [MAP]),
    "sdd dkd": (SDD("dkd", (1, 2, 4), 1.0, 1.0, 0.5), [MAP], [MAP]),
    "mgd": (MGD(), [LAST], [LAST]),
    "ofa": (OFA(), [(64, 56, 56), (128, 28, 28), (256, 14, 14), LAST, LOGITS_1000], [LOGITS_1000] * 5),
}
LARGE_BATCH = 256


def settings_of(*overrides: str) -> RunConfig:
    """The settings of a run of this pair of networks; no data is needed."""
    return build.settings(composed([f"experiment={PAIR}", *overrides]))


def plain_step(device: str) -> Callable[[], object]:
    """A training step of the student without a teacher, its batch included."""
    settings = settings_of("loss=ce", "optim.lr=0")  # the noise does no harm
    student = build.networks(settings).distiller
    loader = noise(4 * BATCH, CLASSES).train.loader(BATCH, train=True, device=device, channels_last=True)
    dist = Dist(0, 1, torch.device(device))
    training = Training(student, loader, **build.optimization(settings), settings=settings.trainer, dist=dist)
    batches = endless(loader)
    return lambda: training.step(next(batches), {})


def loss_step(name: str, device: str, images: int = IMAGES) -> tuple[Callable[[], torch.Tensor], Distiller]:
    """Forward and backward of one loss from the features of a batch on, the teacher's target included; and what holds the loss."""
    torch.manual_seed(0)
    settings = settings_of(*LOSSES[name])
    networks = build.networks(settings)
    distiller, teacher = networks.distiller, networks.teacher
    assert teacher is not None
    distiller.init_memory(images)
    for loss in distiller.losses.values():
        if loss.teacher_layer is not None:
            loss.init_teacher(torch.rand(CLASSES, CLASSES))  # pyright: ignore[reportCallIssue]
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
        targets: Targets = {}
        for spec in distiller.target_specs:
            targets[spec.key] = spec.loss.target(teacher_features[spec.layer], spec.student_shape)
        seed = torch.tensor(next(steps))
        value = term.weight * distiller.value(term, leaves, targets, {**context, "seed": seed})
        value.backward()
        return value.detach()

    return step, distiller


def measure(losses: list[str], device: str, seconds: float, repeats: int) -> list[Row]:
    """All losses and the plain step in turns, in this process, at least `repeats` times and for `seconds` a loss.

    Returns:
        Of each loss its layers and value, what a pass needs besides what is there and what it keeps (parameters, memory banks),
        medians of clock and processor time in ms, and its share of the plain step: the median of the turns'.
    """
    plain, made = plain_step(device), {name: loss_step(name, device) for name in losses}
    plain()
    rows: dict[str, Row] = {}
    for name, (step, distiller) in made.items():
        step()  # what is made once is there, and CRD's Z is set
        extra, state = peak_bytes(step, device), (*distiller.losses.parameters(), *distiller.losses.buffers())
        (term,) = (term for term in distiller.terms if term.loss.source == "teacher")
        rows[name] = {
            "loss": name, "layers": [pair.student for pair in term.pairs], "value": step().item(), "extra_mb": extra / 1e6,
            "state_mb": sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6,
        }  # fmt: skip
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in ("", *losses)}  # "": the plain step
    begin, done = perf_counter(), 0
    while done < repeats or perf_counter() - begin < seconds * len(losses):
        for name, step in {"": plain, **{name: step for name, (step, _) in made.items()}}.items():
            turns[name].append(timed(step, device))
        done += 1
    plain_clock, plain_processor = zip(*turns.pop(""), strict=True)
    for name, times in turns.items():
        clock, processor = zip(*times, strict=True)
        share = [a / b for a, b in zip(clock, plain_clock, strict=True)]
        rows[name] |= {
            "n": done, "median_ms": 1e3 * median(clock), "processor_ms": 1e3 * median(processor),
            "plain_ms": 1e3 * median(plain_clock), "plain_processor_ms": 1e3 * median(plain_processor),
            "share": median(share), "share_quartiles": quartiles(share),
            "share_by_processor_time": ratio(processor, plain_processor),
        }  # fmt: skip
    return [*rows.values()]


def measure_memory(device: str) -> list[Row]:
    """What forward and backward of each loss need besides features and targets at 1,000 classes and batch 256."""
    rows: list[Row] = []
    for name, (loss, students, teachers) in LARGE.items():
        torch.manual_seed(0)
        loss.setup(*((students, teachers) if loss.all_layers else (students[0], teachers[0])))
        if loss.teacher_layer is not None:
            loss.init_teacher(torch.rand(1000, 1000))
        loss.to(device)
        inputs = [torch.randn(LARGE_BATCH, *shape, device=device, requires_grad=True) for shape in students]
        drawn = [torch.randn(LARGE_BATCH, *shape, device=device) for shape in teachers]
        targets = [loss.target(feature, own) for feature, own in zip(drawn, students, strict=True)]
        context = {
            "labels": torch.randint(1000, (LARGE_BATCH,), device=device), "index": torch.arange(LARGE_BATCH, device=device),
            "epoch": torch.tensor(1.0, device=device), "seed": torch.tensor(1),
        }  # fmt: skip
        given = [target | {key: context[key] for key in loss.inputs} for target in targets]
        arguments = (inputs, given) if loss.all_layers else (inputs[0], given[0])
        loss(*arguments).backward()  # gradients are there: only what comes and goes is measured
        extra = peak_bytes(lambda loss=loss, arguments=arguments: loss(*arguments).backward(), device)
        rows.append({"loss": name, "extra_mb": extra / 1e6})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `losses`."""
    choices = {
        "parts": ("implementations", "steps", "memory"), "losses": LOSSES, "settings": implementations.SETTINGS,
        "methods": implementations.METHODS,
    }  # fmt: skip
    for name, values in choices.items():
        parser.add_argument(f"--{name}", nargs="+", default=list(values), choices=list(values))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="also measure our losses under torch.compile")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="the broadcast form's batch is cut to fit this")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each case")
    parser.add_argument("--repeats", type=int, default=3, help="least number of timed runs of each case")
    parser.add_argument("--json", type=Path, help="write everything measured here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    report: Row = {"machine": machine(arguments.device)}
    if "implementations" in arguments.parts:
        report["rows"] = implementations.measure(arguments)
        for name in arguments.settings:
            rows = [implementations.cells(row) for row in report["rows"] if row["setting"] == name]
            title, batch, student, teacher, side = implementations.SETTINGS[name]
            title += f": B {batch}, {student}/{teacher} channels, {side}×{side}"
            show(title, ("method", "B", "ms (quartiles)", "n", "MB", "speed-up", "memory"), rows)
    if "steps" in arguments.parts:
        report["steps"] = measure(arguments.losses, arguments.device, arguments.seconds, arguments.repeats)
        rows = [
            [row["loss"], ", ".join(row["layers"]), f"{row['median_ms']:.2f}", f"{row['share']:.1%}",
             f"{row['share_by_processor_time']:.1%}", f"{row['extra_mb']:.1f}", f"{row['state_mb']:.1f}"]
            for row in report["steps"]
        ]  # fmt: skip
        title = f"{PAIR}, batch {BATCH}: the loss alone beside the plain student's step"
        columns = ("loss", "layers", "ms", "of the step", "by processor time", "MB", "kept, MB")
        show(title, columns, rows)
    if "memory" in arguments.parts:
        report["memory"] = measure_memory(arguments.device)
        title = f"1,000 classes, batch {LARGE_BATCH}: memory of forward and backward"
        rows = [(row["loss"], f"{row['extra_mb']:.0f}") for row in report["memory"]]
        show(title, ("loss", "MB"), rows)
    write(report, arguments.json)
