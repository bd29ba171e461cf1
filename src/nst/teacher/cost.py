"""Whether it is cheaper to read targets from a cache or to compute them: a simple estimate, made once for a cache."""

import copy
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nst.distiller import TargetSpec
from nst.losses import Shape
from nst.teacher.cache import SPARE
from nst.teacher.layout import readable_bytes
from nst.teacher.live import LiveTeacher

READ_RATES = {"device": 20e9, "host": 1e9, "disk": 200e6}
"""Bytes a second that a process reads in single rows: conservative values; for the disk, of an ordinary SSD."""

PIXELS = 32 * 32 * 32  # of the batch that is timed on a CPU, at most


@dataclass(frozen=True)
class Cost:
    """The costs of the targets of some terms, for one image."""

    row_bytes: int
    reading: float  # seconds
    computing: float  # seconds
    needed: int  # bytes still to be written to the disk, for all images and views
    free: int  # bytes

    @property
    def cheaper_to_read(self) -> bool:
        """Whether to cache: reading takes less time than computing, and the disk has the space."""
        return self.fits and self.reading < self.computing

    @property
    def fits(self) -> bool:
        return self.needed + SPARE <= self.free

    def __str__(self) -> str:
        times = f"about {milliseconds(self.reading)}; computing: {milliseconds(self.computing)}"
        text = f"reading {readable_bytes(self.row_bytes)} an image: {times}"
        if not self.fits:
            text += (
                f"; the cache needs {readable_bytes(self.needed)} more, the disk has {readable_bytes(self.free)} free"
            )
        return text


def read_seconds(row_bytes: int, residence: str, ranks: int) -> float:
    """Seconds to read one image's targets from "device", "host" or "disk"; the ranks of a machine share its disk."""
    return row_bytes * (ranks if residence == "disk" else 1) / READ_RATES[residence]


def compute_seconds(
    teacher: nn.Module,
    target_specs: Sequence[TargetSpec],
    image: Shape,
    batch: int,
    device: torch.device,
    precision: str,
    channels_last: bool,
) -> float:
    """Seconds an image of the teacher's forward pass up to the last requested layer, targets included; weights do not matter.

    The least of three times, after one pass to warm up.

    Args:
        image: (C, H, W) of one image.
        batch: images of a batch; on a CPU fewer are timed.
    """
    if device.type == "cpu":
        batch = min(batch, max(2, PIXELS // (image[1] * image[2])))
    model = copy.deepcopy(teacher).to(device)
    images = torch.full((batch, *image), 0.5, device=device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = images.to(memory_format=torch.channels_last)
    live = LiveTeacher(model, target_specs, precision=precision)
    times = []
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            live.targets(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
    return min(times[1:]) / batch


def free_space(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free


def milliseconds(seconds: float) -> str:
    """Two digits: "0.17 ms"."""
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
