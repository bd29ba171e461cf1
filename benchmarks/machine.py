"""What a measurement was made on, and what the device can do at most."""

import time
from datetime import UTC, datetime

import torch

from nst.storage.record import commit, hardware, versions


def describe(device: str) -> dict[str, object]:
    """Hardware, versions and commit as a run's `target.json` names them, and the date."""
    return {
        **hardware(torch.device(device), 1),
        **versions(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


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
