"""`nst benchmark step`: what a training step costs with a live teacher and with a teacher cache, beside a step without a teacher.

The runs are those of the commands, on images of noise in CIFAR's shape: only their time is looked at.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import Row, machine, peak_bytes, ratio, show, timed, write
from nst import build
from nst.cli.compose import composed
from nst.data.batch import Batch
from nst.data.dataset import Dataset
from nst.data.memory import ViewScheme
from nst.dist import Dist
from nst.distiller import Targets
from nst.loop import Training
from nst.models.weights import save_weights
from nst.run import prepare_teacher
from nst.teacher import Teacher

HELP = "a training step: plain, with a live teacher, with a teacher cache"
LOSSES = {  # by the name in the report: overrides
    "kd": "loss=kd", "at": "loss=at", "nst_linear": "loss=nst_linear", "nst_poly": "loss=nst_poly",
    "nst_gaussian": "loss=nst_gaussian", "fitnet": "loss=fitnet",
    "crd/nst": "loss=crd/nst", "crd/at": "loss=crd/at", "crd/fitnet": "loss=crd/fitnet", "crd/vid": "loss=crd/vid",
    "crd/sp": "loss=crd/sp", "crd/crd": "loss=crd/crd",
}  # fmt: skip
IMAGE = (3, 32, 32)
REMEMBERED = 50_000  # images that CRD contrasts: those of CIFAR, however few are rendered here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `step`."""
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--student", default="resnet20", help="as in model=")
    parser.add_argument("--teacher", default="resnet56", help="as in teacher=")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each case, in turns")
    parser.add_argument("--views", type=int, default=2, help="views of each image in the cache")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write everything measured here")


@dataclass
class Case:
    """One way to train, ready for its next step."""

    loss: str
    knowledge: str  # plain | live | stored | given (the targets are there already: what the loss itself costs)
    training: Training
    teacher: Teacher
    given: Targets | None = None
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds too, of this process alone
    peak: int = 0  # bytes that a step adds

    def __post_init__(self) -> None:
        """Begin an endless epoch."""
        self.pairs = self.teacher.targets(self._batches())

    def _batches(self) -> Iterator[Batch]:
        while True:
            yield from self.training.loader.epoch(0)

    def step(self) -> None:
        """One step, the teacher's part included."""
        batch, targets = next(self.pairs)
        self.training.step(batch, targets if self.given is None else self.given)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table, write the JSON."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cases = [case(arguments, "ce", "plain", Path(folder))]
        for name in arguments.losses:
            cases += [case(arguments, name, kind, Path(folder)) for kind in ("live", "stored", "given")]
        rows = measure(arguments, cases)
    write({"machine": machine(arguments.device), "rows": rows}, arguments.json)
    columns = ("loss", "teacher", "images/s", "time", "processor time", "loss alone", "MB")
    shown = [
        (row["loss"], row["knowledge"], f"{row['images_per_second']:.0f}", row["ratio_to_plain"], row["ratio_by_processor_time"],
         f"{row['loss_alone']:+.2f}", f"{row['peak_bytes'] / 1e6:.0f}")
        for row in rows
    ]  # fmt: skip
    title = f"{arguments.teacher} → {arguments.student}, batch {arguments.batch_size}: beside a plain step"
    show(title, columns, shown)


def case(arguments: argparse.Namespace, loss: str, kind: str, folder: Path) -> Case:
    """A run of the command's own settings; a learning rate of 0 keeps the noise from doing harm."""
    weights = folder / "teacher.safetensors"
    overrides = [
        "data=cifar10", f"model={arguments.student}", f"trainer.batch_size={arguments.batch_size}", "optim.lr=0", "tracker=[]",
        f"trainer.device={arguments.device}", "trainer.compile=false", f"outputs={folder}", LOSSES.get(loss, "loss=ce"),
    ]  # fmt: skip
    if kind != "plain":
        overrides += [f"teacher={arguments.teacher}", f"teacher.weights={weights}", "teacher.min_accuracy=0"]
    if kind == "stored":
        overrides += [f"cache.views={arguments.views}", "cache.large=true"]
    settings = build.settings(composed(overrides))
    data, dist = noise(4 * arguments.batch_size), Dist(0, 1, torch.device(arguments.device))
    networks = build.networks(settings)
    teacher = Teacher()
    if networks.teacher is not None:
        if not weights.exists():  # random ones, whose features are of the size of trained ones
            some = torch.arange(min(64, len(data.train)))
            networks.teacher.train()(data.train.render(some, torch.zeros_like(some)))
            save_weights(weights, networks.teacher, {})
        teacher = prepare_teacher(settings, networks, dist, data)
    build.init_memory(settings, networks.distiller, REMEMBERED)
    loader = build.loader(settings, dist, data, "train", teacher.views)
    training = Training(
        networks.distiller, loader, **build.optimization(settings), settings=settings.trainer, dist=dist
    )
    if kind == "given":
        return Case(loss, kind, training, Teacher(), teacher(next(iter(loader.epoch(0)))))
    return Case(loss, kind, training, teacher)


@dataclass(kw_only=True, eq=False)
class Noise(Dataset):
    """CIFAR-shaped images."""

    images: int

    def read(self) -> None:
        """From a generator of random numbers."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (self.images, *IMAGE), dtype=torch.uint8, generator=generator)
        part = pixels, torch.arange(self.images) % self.num_classes
        self.in_memory(ViewScheme(32, 4, True), part, part)


def noise(images: int, classes: int = 10) -> Dataset:
    """CIFAR-shaped images."""
    shape = {"num_classes": classes, "channels": 3, "size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return Noise(name="cifar10", images=images, **shape)


def measure(arguments: argparse.Namespace, cases: list[Case]) -> list[Row]:
    """Steps of all cases in turns; ratios are medians over the turns, so that a busy machine harms all alike.

    On a busy machine the ratio of processor times is still right, with one thread (OMP_NUM_THREADS=1) and on a CPU.
    """
    device = arguments.device
    for turn in range(arguments.repeats + 2):  # the first one warms up, the second one is for the memory
        for one in cases:
            if turn == 1:
                one.peak = peak_bytes(one.step, device)
                continue
            seconds, processor = timed(one.step, device)
            if turn > 1:
                one.seconds.append(seconds)
                one.processor.append(processor)
    plain, rows = cases[0], []
    alone = {one.loss: ratio(one.processor, plain.processor) - 1 for one in cases if one.knowledge == "given"}
    for one in cases:
        if one.knowledge != "given":
            rows.append({
                "loss": one.loss, "knowledge": one.knowledge, "images_per_second": arguments.batch_size / median(one.seconds),
                "ratio_to_plain": ratio(one.seconds, plain.seconds), "ratio_by_processor_time": ratio(one.processor, plain.processor),
                "loss_alone": alone.get(one.loss, 0.0), "peak_bytes": one.peak, "seconds": one.seconds,
            })  # fmt: skip
    return rows
