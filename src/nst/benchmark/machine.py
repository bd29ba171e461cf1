"""What a measurement was made on, and what the device can do at most."""

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

import nst


def describe(device: str) -> dict[str, str | int]:
    """Hardware, versions and commit, as they stand beside every stored number."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "device": name,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nst": nst.__version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The processor's model name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this source tree, "+" appended when files differ from it, or "unknown"."""
    folder = Path(__file__).resolve().parent
    try:
        head = run_git(folder, "rev-parse", "--short", "HEAD")
        return head + ("+" if run_git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run_git(folder: Path, *arguments: str) -> str:
    """Output of a git command in a folder."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def gpu_ceilings() -> dict[str, float]:
    """Measured on the current GPU: bytes/s of a large copy, read plus write, and float32 FLOP/s of a large product."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    a = torch.randn(8192, 8192, device="cuda")
    copy = best_seconds(lambda: target.copy_(source))
    product = best_seconds(lambda: a @ a)
    return {"bytes_per_second": 2 * source.numel() * 4 / copy, "flops_per_second": 2 * 8192**3 / product}


def best_seconds(work, repeats: int = 10) -> float:
    """The fastest of some runs on the GPU."""
    best = float("inf")
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
