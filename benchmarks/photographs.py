"""Photographs on disk: the folder loader beside torchvision's ImageFolder with a DataLoader, and its parts on one core."""

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from nst.data import decode as decoding
from nst.data.augment import UNAUGMENTED, Augmentation
from nst.data.decode import SIMPLEJPEG, decode
from nst.data.encoded_split import EncodedSplit
from nst.data.folder import load_folder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # torchvision's defaults
BASELINE = "torchvision"
Row = dict


@dataclass
class Case:
    """One loader, ready for its next epoch, and what its epochs took."""

    name: str
    workers: int
    epoch: Callable[[int], Iterator]
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # seconds too, worker processes included


def decoder() -> str:
    """What decodes JPEGs here, with its version."""
    name = "simplejpeg" if SIMPLEJPEG else "pillow"
    return f"{name} {version(name)}"


def measure_loaders(root: Path, size: int, limit: int | None, batch: int, workers: int, repeats: int) -> list[Row]:
    """Epochs of torchvision's loaders and of ours over the same files, crops and flips, in turns.

    Ratios are medians over the turns of the processor time, worker processes included: other work on the machine harms them least.

    Args:
        root: holds `train/<class>/*` and `val/<class>/*`.
        size: of the crops, in pixels.
        limit: images an epoch; None: all.
        workers: measured with none and with so many processes.
    """
    classes = sum(entry.is_dir() for entry in (root / "train").iterdir())
    data = load_folder(
        name="photographs",
        num_classes=classes,
        channels=3,
        size=size,
        mean=MEAN,
        std=STD,
        root=str(root),
        validation=0.0,
        limit=limit,
        resize=size,
        area=AREA,
        aspect=ASPECT,
        jitter=0.0,
        pca_noise=0.0,
        flip=True,
        label_column="label",
        unpacked=None,
    )
    split = data.train
    assert isinstance(split, EncodedSplit)
    rows = split.rows.tolist()
    cases = []
    for count in sorted({0, workers}):
        for name, transform in torchvision_transforms(size).items():
            files = ImageFolder(root / "train", transform)
            assert [files.samples[row][0] for row in rows] == [split.source.where(row) for row in rows]
            loader = DataLoader(
                Subset(files, rows), batch, shuffle=True, num_workers=count, persistent_workers=count > 0
            )
            cases.append(Case(name, count, lambda _, loader=loader: iter(loader)))
        ours = split.loader(batch, train=True, workers=count)
        cases.append(Case(f"ours, {decoder()}", count, ours.epoch))
        if SIMPLEJPEG and not count:  # worker processes decode as is installed
            cases.append(Case("ours, pillow", 0, lambda epoch, ours=ours: by_pillow(ours.epoch(epoch))))
    with one_thread():
        for turn in range(repeats + 1):  # the first one starts the workers
            for case in cases:
                seconds, processor = timed(lambda case=case, turn=turn: exhaust(case.epoch(turn)))
                if turn:
                    case.seconds.append(seconds)
                    case.processor.append(processor)
    return [loader_row(case, cases, len(split)) for case in cases]


def by_pillow(batches: Iterator) -> Iterator:
    """Batches that this process decodes as if simplejpeg were not installed."""
    decoding.SIMPLEJPEG = False
    try:
        yield from batches
    finally:
        decoding.SIMPLEJPEG = True


def torchvision_transforms(size: int) -> dict[str, v2.Compose]:
    """Crop, flip and normalise: on PIL images as most code has it, and on tensors, which is faster."""
    crops = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return {
        BASELINE: v2.Compose([*crops, v2.ToImage(), *floats]),
        "torchvision, ToImage first": v2.Compose([v2.ToImage(), *crops, *floats]),
    }


def loader_row(case: Case, cases: list[Case], images: int) -> Row:
    """What one loader took, beside torchvision's with as many workers."""
    base = next(c for c in cases if (c.name, c.workers) == (BASELINE, case.workers))
    return {
        "workers": case.workers,
        **target(case.name, [images / seconds for seconds in case.seconds]),
        "images_per_processor_second": images / statistics.median(case.processor),
        "times_torchvision": statistics.median(b / a for a, b in zip(case.processor, base.processor, strict=True)),
    }


def measure_parts(encoded: list[bytes], repeats: int) -> list[Row]:
    """Images per second of processor time on one core, part by part."""
    paper = {"area": AREA, "aspect": ASPECT, "flip": True}
    crops = Augmentation(224, 256, **paper, jitter=0.0, pca_noise=0.0)
    colours = Augmentation(224, 256, **paper, jitter=0.4, pca_noise=0.1)
    parts: dict[str, Callable[[bytes, int], object]] = {
        "decode": lambda data, i: decode(data, 3),
        "decode, crop, flip": lambda data, i: crops(decode(data, 3), i, i),
        "decode, crop, flip, jitter, PCA noise": lambda data, i: colours(decode(data, 3), i, i),
        "decode, resize 256, centre 224": lambda data, i: colours(decode(data, 3), i, UNAUGMENTED),
    }
    rows = []
    with one_thread():
        for name, part in parts.items():

            def all_images(part: Callable[[bytes, int], object] = part) -> None:
                for i, data in enumerate(encoded):
                    part(data, i)

            times = [timed(all_images)[1] for _ in range(repeats + 1)][1:]
            rows.append(target(name, [len(encoded) / seconds for seconds in times]))
    return rows


@contextmanager
def written(encoded: list[bytes], copies: int) -> Iterator[Path]:
    """A folder that `load_folder` reads, of these JPEGs, each `copies` times in the training part."""
    with tempfile.TemporaryDirectory() as root:
        for part, count in (("train", copies), ("val", 1)):
            folder = Path(root) / part / "photos"
            folder.mkdir(parents=True)
            for i, data in enumerate(encoded):
                for copy in range(count):
                    (folder / f"{i}-{copy}.jpg").write_bytes(data)
        yield Path(root)


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


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def exhaust(batches: Iterator) -> None:
    """Take every batch."""
    for _ in batches:
        pass


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time with that of the worker processes, which must stay alive."""
    start, used = time.perf_counter(), processor_time()
    work()
    return time.perf_counter() - start, processor_time() - used


def processor_time() -> float:
    """Seconds that this process and those it has started have used."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(t.user + t.system for t in times)


def target(name: str, speeds: list[float]) -> Row:
    """Median and extremes of some speeds in images/s."""
    low, high = round(min(speeds)), round(max(speeds))
    return {"name": name, "images_per_second": statistics.median(speeds), "range": [low, high], "n": len(speeds)}
