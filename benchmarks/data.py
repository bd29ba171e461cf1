"""`scripts/benchmark.py data`: the in-memory input path beside a PIL DataLoader, and JPEG decoding per core."""

import argparse
import io
import json
import os
import statistics
import tempfile
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
from nst.data.augment import CENTRE, Augmentation
from nst.data.decode import decode
from nst.data.folder import load_folder
from nst.data.memory import MemorySplit
from nst.data.views import ViewScheme

HELP = "the input path: CIFAR-shaped images in memory, JPEGs on disk"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
Row = dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `data`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--images", type=int, default=20_000, help="CIFAR-shaped images in memory")
    parser.add_argument("--jpegs", type=int, default=64, help="JPEGs of 500×375 pixels on disk; 0: no part on JPEGs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=cores, help="processes of the DataLoaders (default: all cores)")
    parser.add_argument("--repeats", type=int, default=5, help="turns timed of each")
    parser.add_argument("--seconds", type=float, default=2.0, help="least length of a turn in memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write everything measured here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON."""
    report: Row = {"machine": describe(arguments.device), "memory": measure_memory(arguments)}
    if arguments.jpegs:
        report["jpeg"] = measure_jpegs(arguments)
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
                seconds += timed(lambda epoch=epoch: exhaust(epoch()), device)
                passes += 1
            if repeat:
                speeds[name].append(passes * count / seconds)
    rows = [summary(name, values) for name, values in speeds.items()]
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


def measure_jpegs(arguments: argparse.Namespace) -> dict[str, object]:
    """Milliseconds an image on one core, part by part, and images/s of the loader with its worker processes."""
    encoded = [photo(seed) for seed in range(arguments.jpegs)]
    paper = {"area": (0.08, 1.0), "aspect": (0.75, 1.3333), "flip": True}
    crops = Augmentation(224, 256, **paper, jitter=0.0, pca_noise=0.0)
    colours = Augmentation(224, 256, **paper, jitter=0.4, pca_noise=0.1)
    parts: dict[str, Callable[[bytes, int], object]] = {
        "decode": lambda data, i: decode(data, 3),
        "decode, crop, flip": lambda data, i: crops(decode(data, 3), i, i),
        "decode, crop, flip, jitter, PCA noise": lambda data, i: colours(decode(data, 3), i, i),
        "decode, resize 256, centre 224": lambda data, i: colours(decode(data, 3), i, CENTRE),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for name, part in parts.items():

        def all_images(part: Callable[[bytes, int], object] = part) -> None:
            for i, data in enumerate(encoded):
                part(data, i)

        times = [timed(all_images, "cpu") for _ in range(arguments.repeats + 1)][1:]
        rows.append(summary(name, [len(encoded) / seconds for seconds in times]))
    torch.set_num_threads(threads)
    loader = summary(f"loader, {arguments.workers} workers", loader_speed(encoded, arguments))
    return {"bytes_per_image": sum(map(len, encoded)) / len(encoded), "one_core": rows, "loader": loader}


def loader_speed(encoded: list[bytes], arguments: argparse.Namespace) -> list[float]:
    """Images/s of the folder loader over a tree of these JPEGs, each several times."""
    copies = max(1, 512 // len(encoded)) if arguments.workers else 1
    with tempfile.TemporaryDirectory() as root:
        for part, count in (("train", copies), ("val", 1)):
            folder = Path(root) / part / "photos"
            folder.mkdir(parents=True)
            for i, data in enumerate(encoded):
                for copy in range(count):
                    (folder / f"{i}-{copy}.jpg").write_bytes(data)
        data = load_folder(
            "jpegs", 1, 3, 224, MEAN, STD, root, 0.0, None,
            256, (0.08, 1.0), (0.75, 1.3333), 0.4, 0.1, True, "label", None,
        )  # fmt: skip
        loader = data.split("train").loader(64, train=True, device=arguments.device, workers=arguments.workers)
        seconds = [timed(lambda e=e: exhaust(loader.epoch(e)), arguments.device) for e in range(arguments.repeats + 1)]
    return [loader.num_images / s for s in seconds[1:]]


def photo(seed: int) -> bytes:
    """A JPEG of 500×375 pixels with detail at all scales, as photographs have; about as large as ImageNet's."""
    draw = np.random.default_rng(seed)
    image = np.zeros((375, 500, 3), np.float32)
    for scale in (4, 8, 16, 32, 64, 128):
        blocks = draw.normal(0, 1, (375 // scale + 2, 500 // scale + 2, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(blocks[..., channel]).resize((500, 375), Image.Resampling.BICUBIC)
            image[..., channel] += np.asarray(layer) * scale**0.5
    grain = draw.normal(0, 1.0, image.shape)
    pixels = (128 + image * 5 + grain * 19).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def exhaust(batches: Iterator) -> None:
    """Take every batch."""
    for _ in batches:
        pass


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds, the device's queue included."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def summary(name: str, speeds: list[float]) -> Row:
    """Median and extremes of some speeds in images/s."""
    low, high = round(min(speeds)), round(max(speeds))
    return {"name": name, "images_per_second": statistics.median(speeds), "range": [low, high], "n": len(speeds)}


def print_tables(report: Row, arguments: argparse.Namespace) -> None:
    """One table for images in memory, one for JPEGs."""
    console = Console()
    console.print(" · ".join(f"{key} {value}" for key, value in report["machine"].items()))
    memory = Table("32×32 in memory, crop and flip", title=f"batch {arguments.batch_size}, {arguments.images} images")
    for column in ("images/s (range)", "n", "PIL DataLoader ="):
        memory.add_column(column, justify="right")
    for row in report["memory"]:
        memory.add_row(*cells(row), f"{row['times_pil']:.1f}×")
    console.print(memory)
    if "jpeg" not in report:
        return
    found = report["jpeg"]
    jpeg = Table("one core", title=f"JPEG 500×375, {found['bytes_per_image'] / 1e3:.0f} kB")
    for column in ("images/s (range)", "n", "ms an image", "cores for 1000 images/s"):
        jpeg.add_column(column, justify="right")
    for row in found["one_core"]:
        speed = row["images_per_second"]
        jpeg.add_row(*cells(row), f"{1e3 / speed:.2f}", f"{1e3 / speed:.1f}")
    jpeg.add_section()
    jpeg.add_row(*cells(found["loader"]))
    console.print(jpeg)


def cells(row: Row) -> list[str]:
    """Name, speed with its range, n."""
    low, high = row["range"]
    return [row["name"], f"{row['images_per_second']:,.0f} ({low:,}–{high:,})", str(row["n"])]
