"""`nst benchmark data`: the input paths, in memory and of photographs, beside torchvision's transforms in a DataLoader."""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.machine import describe
from benchmarks.photographs import (
    Row,
    decoder,
    exhaust,
    measure_loaders,
    measure_parts,
    photo,
    target,
    written,
)
from nst.data.memory import MemorySplit
from nst.data.views import ViewScheme

HELP = "the input path: CIFAR-shaped images in memory, photographs on disk"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `data`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--images", type=int, default=20_000, help="CIFAR-shaped images in memory; 0: none")
    parser.add_argument(
        "--photographs", type=Path, help="a folder of train/<class>/* and val/<class>/*; else JPEGs are made"
    )
    parser.add_argument("--limit", type=int, help="of these photographs, images an epoch (default: all)")
    parser.add_argument("--jpegs", type=int, default=64, help="JPEGs of 500×375 pixels to make; 0: no photographs")
    parser.add_argument("--size", type=int, default=224, help="of the photographs' crops, in pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=cores, help="processes of the DataLoaders (default: all cores)")
    parser.add_argument("--repeats", type=int, default=5, help="turns timed of each")
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of a turn in memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write everything measured here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    report: Row = {"machine": describe(arguments.device)}
    if arguments.images:
        report["memory"] = measure_memory(arguments)
    if arguments.photographs or arguments.jpegs:
        report["photographs"] = measure_photographs(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    print_tables(report, arguments)


def measure_memory(arguments: argparse.Namespace) -> list[Row]:
    """Images/s: a PIL DataLoader, then ours, in turns; the first turn, a warm-up, does not count."""
    count, batch, device = arguments.images, arguments.batch_size, arguments.device
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))
    split = MemorySplit(images, torch.arange(count) % 10, ViewScheme(32, 4, True), MEAN, STD)
    epochs: dict[str, Callable[[], Iterator]] = {}
    for workers in sorted({0, arguments.workers}):
        loader = pil_loader(images, batch, workers)
        epochs[f"PIL DataLoader, {workers} workers"] = loader.__iter__
    for channels_last in (False, True):
        ours = split.loader(batch, train=True, device=device, channels_last=channels_last)
        epochs["ours" + ", channels_last" * channels_last] = lambda ours=ours: ours.epoch(0)
    speeds: dict[str, list[float]] = {name: [] for name in epochs}
    for repeat in range(arguments.repeats + 1):
        for name, epoch in epochs.items():
            passes, seconds = 0, 0.0
            while seconds < (arguments.seconds if repeat else 0.1):  # one pass of ours is too short on a busy machine
                seconds += seconds_of(lambda epoch=epoch: exhaust(epoch()), device)
                passes += 1
            if repeat:
                speeds[name].append(passes * count / seconds)
    rows = [target(name, values) for name, values in speeds.items()]
    base = max(row["images_per_second"] for row in rows if row["name"].startswith("PIL"))
    return [{**row, "times_pil": row["images_per_second"] / base} for row in rows]


def pil_loader(images: torch.Tensor, batch: int, workers: int) -> DataLoader:
    """What most CIFAR training code does: one PIL image at a time, torchvision's transforms, worker processes."""
    return DataLoader(
        PilImages(images), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=False
    )


class PilImages(Dataset):
    """torchvision's CIFAR dataset, without the files."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), index % 10


def measure_photographs(arguments: argparse.Namespace) -> Row:
    """The loaders over a folder of photographs, or over JPEGs made here; of these also the parts of the work."""
    sizes = arguments.batch_size, arguments.workers, arguments.repeats
    timings: Row = {"decoder": decoder(), "size": arguments.size}
    if arguments.photographs:
        return {**timings, "loaders": measure_loaders(arguments.photographs, arguments.size, arguments.limit, *sizes)}
    encoded = [photo(seed) for seed in range(arguments.jpegs)]
    copies = max(1, 256 // len(encoded)) if arguments.workers else 1  # enough for workers to be busy
    with written(encoded, copies) as root:
        timings["loaders"] = measure_loaders(root, arguments.size, None, *sizes)
    timings["bytes_per_image"] = sum(map(len, encoded)) / len(encoded)
    return {**timings, "one_core": measure_parts(encoded, arguments.repeats)}


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Seconds, the device's queue included."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def print_tables(report: Row, arguments: argparse.Namespace) -> None:
    """One table for images in memory, one or two for photographs."""
    console = Console()
    console.print(" · ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if "memory" in report:
        memory = Table(
            "32×32 in memory, crop and flip", title=f"batch {arguments.batch_size}, {arguments.images} images"
        )
        for column in ("images/s (range)", "n", "PIL DataLoader ="):
            memory.add_column(column, justify="right")
        for row in report["memory"]:
            memory.add_row(*cells(row), f"{row['times_pil']:.1f}×")
        console.print(memory)
    if "photographs" in report:
        print_photographs(console, report["photographs"])


def print_photographs(console: Console, timings: Row) -> None:
    """The loaders, and the parts of the work where they were measured."""
    loaders = Table("crop, flip, normalise", title=f"photographs, crops of {timings['size']}, {timings['decoder']}")
    for column in ("workers", "images/s (range)", "n", "images/s of processor time", "torchvision ="):
        loaders.add_column(column, justify="right")
    for row in timings["loaders"]:
        name, *speed = cells(row)
        used = f"{row['images_per_processor_second']:,.0f}"
        loaders.add_row(name, str(row["workers"]), *speed, used, f"{row['times_torchvision']:.2f}×")
    console.print(loaders)
    if "one_core" not in timings:
        return
    parts = Table("one core", title=f"JPEG 500×375, {timings['bytes_per_image'] / 1e3:.0f} kB")
    for column in ("images/s (range)", "n", "ms an image", "cores for 1000 images/s"):
        parts.add_column(column, justify="right")
    for row in timings["one_core"]:
        speed = row["images_per_second"]
        parts.add_row(*cells(row), f"{1e3 / speed:.2f}", f"{1e3 / speed:.1f}")
    console.print(parts)


def cells(row: Row) -> list[str]:
    """Name, speed with its range, n."""
    low, high = row["range"]
    return [row["name"], f"{row['images_per_second']:,.0f} ({low:,}–{high:,})", str(row["n"])]
