"""What the measurements share: the machine, time and memory of a piece of work, medians over turns, tables."""

import ctypes
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.table import Table

from nst.data.batch import Batch, Loader
from nst.storage.record import provenance

Row = dict


def machine(device: str) -> dict[str, object]:
    """Hardware, versions and commit as a run's `target.json` names them, and the date."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    about = provenance(torch.device(device), 1)
    return {**about["hardware"], **about["versions"], "commit": about["commit"], "date": date}


def timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds that `work` takes, the device's part included, and the processor time of this process in them, on all its threads."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begin, used = time.perf_counter(), time.process_time()
    work()
    wait()
    return time.perf_counter() - begin, time.process_time() - used


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """Bytes that `work` needs besides those in use: of a GPU as torch counts them, of a CPU the growth of the process on Linux."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # starts a new peak
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes: "VmRSS" now, "VmHWM" at the highest; 0 where there is none."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{key}:\s*(\d+)", status.read_text() if status.exists() else "", re.M)
    return int(found[1]) << 10 if found else 0


def endless(loader: Loader) -> Iterator[Batch]:
    """The batches of epoch 0, again and again."""
    return (batch for _ in iter(int, 1) for batch in loader.epoch(0))


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third."""
    return quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else [*values] * 2


def ratio(values: Sequence[float], beside: Sequence[float]) -> float:
    """The median of the turns' ratios, so that a busy machine harms both alike; 0 where the clock is too coarse."""
    return median(a / b if b else 0.0 for a, b in zip(values, beside, strict=True))


def write(report: Row, file: Path | None) -> None:
    """Keep everything that was measured."""
    if file is not None:
        file.write_text(json.dumps(report, indent=1))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on the terminal: the first column to the left."""
    table = Table(*columns[:1], title=title)
    for column in columns[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)
