"""`python -m benchmarks data`: images in memory and photographs on disk, each beside what it is compared with."""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.measure import Row, machine, ratio, show, write
from nst.data.dataset import Images
from nst.data.memory import MemorySplit, ViewScheme

HELP = "the input path: images in memory, photographs on disk"
Epochs = dict[str, Callable[[], Iterable]]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `data`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--images", type=int, default=20_000, help="CIFAR-shaped images in memory; 0: none")
    parser.add_argument(
        "--photographs", type=Path, help="a folder of train/<class>/* and val/<class>/*; else JPEGs are made"
    )
    parser.add_argument("--limit", type=int, help="of these photographs, images an epoch (default: all)")
    parser.add_argument("--jpegs", type=int, default=256, help="JPEGs of 500×375 pixels to make; 0: no photographs")
    parser.add_argument("--size", type=int, default=224, help="of the photographs' crops, in pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=cores, help="processes that decode (default: all cores)")
    parser.add_argument("--repeats", type=int, default=5, help="turns timed of each")
    parser.add_argument("--json", type=Path, help="write everything measured here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    report: Row = {"machine": machine("cpu")}
    torch.set_num_threads(1)  # as in a worker process
    if arguments.images:
        report["memory"] = in_memory(arguments)
    if arguments.photographs or arguments.jpegs:
        report["photographs"] = photographs(arguments)
    write(report, arguments.json)
    for part in list(report)[1:]:
        show(part, [key.replace("_", " ") for key in report[part][0]], [list(row.values()) for row in report[part]])


def in_memory(arguments: argparse.Namespace) -> list[Row]:
    """Images a second of processor time, in both memory formats in turns."""
    count, scheme = arguments.images, ViewScheme(32, 4, flip=True)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    split = MemorySplit(pixels, torch.arange(count) % 10, scheme, (0.5,) * 3, (0.25,) * 3)
    epochs: Epochs = {
        name: partial(split.loader(arguments.batch_size, train=True, channels_last=name == "channels_last").epoch, 0)
        for name in ("contiguous", "channels_last")
    }
    return in_turns(epochs, count, arguments.repeats, time.process_time, "contiguous", {})


def photographs(arguments: argparse.Namespace) -> list[Row]:
    """Images a second: torchvision's ImageFolder, v2 and DataLoader beside ours, over the same files, in turns.

    Crop, flip and normalise are on PIL images, as most code has it, and on tensors. Without workers of processor time, which other
    work on the machine harms least; with workers by the clock.
    """
    crops = [v2.RandomResizedCrop(arguments.size), v2.RandomHorizontalFlip()]
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transforms = {
        "torchvision": v2.Compose([*crops, v2.ToImage(), *floats]),
        "torchvision, ToImage first": v2.Compose([v2.ToImage(), *crops, *floats]),
    }
    with tempfile.TemporaryDirectory() as made:
        root, rows = arguments.photographs or written(Path(made), arguments.jpegs), []
        classes = sum(entry.is_dir() for entry in (root / "train").iterdir())
        shape = {"num_classes": classes, "channels": 3, "size": arguments.size, "mean": MEAN, "std": STD}
        split = Images(name="photographs", root=str(root), limit=arguments.limit, **shape).train
        for workers in sorted({0, arguments.workers}):
            clock = time.perf_counter if workers else time.process_time
            epochs: Epochs = {}
            for name, transform in transforms.items():
                files = torch.utils.data.Subset(ImageFolder(root / "train", transform), range(len(split)))
                options = {"shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}
                epochs[name] = DataLoader(files, arguments.batch_size, **options).__iter__
            epochs["ours"] = partial(split.loader(arguments.batch_size, train=True, workers=workers).epoch, 0)
            rows += in_turns(epochs, len(split), arguments.repeats, clock, "torchvision", {"workers": workers})
    return rows


def in_turns(epochs: Epochs, n: int, repeats: int, clock: Callable[[], float], base: str, about: Row) -> list[Row]:
    """Images a second: medians with their range, and the median over the turns of how many times the base's speed they are."""
    speeds: dict[str, list[float]] = {name: [] for name in epochs}
    for name, epoch in [*epochs.items()] * (1 + repeats):
        start = clock()
        for _ in epoch():
            pass
        speeds[name].append(n / (clock() - start))
    speeds = {name: values[1:] for name, values in speeds.items()}  # the first turn is a warm-up
    return [
        {
            "name": name, **about, "images_per_second": statistics.median(values), "lowest": min(values), "highest": max(values),
            "n": len(values), f"times_{base}": ratio(values, speeds[base]),
        }
        for name, values in speeds.items()
    ]  # fmt: skip


def written(root: Path, count: int) -> Path:
    """A folder of JPEGs of 500×375 pixels with detail at all scales, as photographs have; about as large as ImageNet's."""
    for part, images in (("train", count), ("val", 1)):
        (root / part / "photos").mkdir(parents=True)
        for i in range(images):
            draw = np.random.default_rng(i % 16)
            image = draw.normal(128, 19, (375, 500, 3)).astype(np.float32)
            for scale in (4, 8, 16, 32, 64, 128):
                blocks = draw.normal(0, 5 * scale**0.5, (375 // scale + 2, 500 // scale + 2, 3)).astype(np.float32)
                for channel in range(3):
                    layer = Image.fromarray(blocks[..., channel]).resize((500, 375), Image.Resampling.BICUBIC)
                    image[..., channel] += np.asarray(layer)
            file = io.BytesIO()
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
            (root / part / "photos" / f"{i}.jpg").write_bytes(file.getvalue())
    return root
