"""`python -m benchmarks step`: what a training step costs with a live teacher and with a teacher cache, beside a step without a teacher.

The runs are those of the commands, on images of noise in CIFAR's shape: only their time is looked at.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure import endless, machine, peak_bytes, ratio, show, timed, write
from nst import build
from nst.cli.compose import composed
from nst.data.dataset import Dataset
from nst.data.memory import ViewScheme
from nst.dist import Dist
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write everything measured here")


def run(arguments: argparse.Namespace) -> None:
    """Measure steps of all cases in turns, print a table, write the JSON.

    Ratios are medians over the turns, so that a busy machine harms all alike. On one the ratio of processor times is still right,
    with one thread (OMP_NUM_THREADS=1) and on a CPU.
    """
    torch.manual_seed(0)
    device, rows = arguments.device, []
    with tempfile.TemporaryDirectory() as folder:
        cases = {("ce", "plain"): case(arguments, "ce", "plain", Path(folder))}
        for name in arguments.losses:
            cases |= {(name, kind): case(arguments, name, kind, Path(folder)) for kind in ("live", "stored", "given")}
        for step in cases.values():
            step()  # warms up
        peaks = {key: peak_bytes(step, device) for key, step in cases.items()}
        turns = [{key: timed(step, device) for key, step in cases.items()} for _ in range(arguments.repeats)]
    times = {key: [*zip(*(turn[key] for turn in turns), strict=True)] for key in cases}  # by clock and processor
    plain = times["ce", "plain"]
    alone = {loss: ratio(own[1], plain[1]) - 1 for (loss, kind), own in times.items() if kind == "given"}
    for (loss, kind), (seconds, processor) in times.items():
        if kind != "given":
            rows.append({
                "loss": loss, "knowledge": kind, "images_per_second": arguments.batch_size / median(seconds),
                "ratio_to_plain": ratio(seconds, plain[0]), "ratio_by_processor_time": ratio(processor, plain[1]),
                "loss_alone": alone.get(loss, 0.0), "peak_bytes": peaks[loss, kind], "seconds": seconds,
            })  # fmt: skip
    write({"machine": machine(device), "rows": rows}, arguments.json)
    title = f"{arguments.teacher} → {arguments.student}, batch {arguments.batch_size}: beside a plain step"
    columns = ("loss", "teacher", "images/s", "time", "processor time", "loss alone", "bytes")
    show(title, columns, [[*row.values()][: len(columns)] for row in rows])


def case(arguments: argparse.Namespace, loss: str, kind: str, folder: Path) -> Callable[[], None]:
    """A step of a run of the command's own settings; a learning rate of 0 keeps the noise from doing harm.

    Args:
        kind: plain, live, stored, or given: the targets are there already, which is what the loss itself costs.
    """
    weights = folder / "teacher.safetensors"
    overrides = [
        "data=cifar10", f"model={arguments.student}", f"trainer.batch_size={arguments.batch_size}", "optim.lr=0", "tracker=[]",
        f"trainer.device={arguments.device}", "trainer.compile=false", f"outputs={folder}", LOSSES.get(loss, "loss=ce"),
    ]  # fmt: skip
    if kind != "plain":
        overrides += [f"teacher={arguments.teacher}", f"teacher.weights={weights}", "teacher.min_accuracy=0"]
    if kind == "stored":
        overrides += ["cache.views=2", "cache.large=true"]
    settings = build.settings(composed(overrides))
    data, dist = noise(4 * arguments.batch_size), Dist(0, 1, torch.device(arguments.device))
    networks, teacher, given = build.networks(settings), Teacher(), None
    if networks.teacher is not None:
        if not weights.exists():  # random ones, whose features are of the size of trained ones
            some = torch.arange(min(64, len(data.train)))
            networks.teacher.train()(data.train.render(some, torch.zeros_like(some)))
            save_weights(weights, networks.teacher, {})
        teacher = prepare_teacher(settings, networks, dist, data)
    networks.distiller.init_memory(REMEMBERED)
    loader = build.loader(settings, dist, data, "train", teacher.views)
    options = build.optimization(settings) | {"settings": settings.trainer, "dist": dist}
    training = Training(networks.distiller, loader, **options)
    if kind == "given":
        teacher, given = Teacher(), teacher(next(iter(loader.epoch(0))))
    pairs = teacher.targets(endless(loader))

    def step() -> None:
        batch, targets = next(pairs)
        training.step(batch, targets if given is None else given)

    return step


def noise(images: int, classes: int = 10) -> Dataset:
    """Random images in CIFAR's shape."""

    class Noise(Dataset):
        def read(self) -> None:
            generator = torch.Generator().manual_seed(0)
            pixels = torch.randint(0, 256, (images, *IMAGE), dtype=torch.uint8, generator=generator)
            part = pixels, torch.arange(images) % classes
            self.in_memory(ViewScheme(32, 4, True), part, part)

    return Noise(name="cifar10", num_classes=classes, channels=3, size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
