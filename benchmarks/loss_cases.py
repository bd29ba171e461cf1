"""One case of the loss benchmark: a setting and a method, forward + backward, measured in a process of its own.

`python -m benchmarks.loss_cases '{"setting": "crd", ...}'` prints the measurement as one line of JSON.
"""

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import baselines
from nst.losses import AT, NST, FitNet, TransferLoss


@dataclass(frozen=True)
class Setting:
    """Shapes of one comparison: batch, student and teacher channels, side of the square map."""

    title: str
    batch: int
    student: int
    teacher: int
    side: int


@dataclass(frozen=True)
class Method:
    """A way to compute a loss: one of ours, or a baseline; `loss` groups those that compute the same."""

    loss: str
    make: Callable[[], TransferLoss] | None
    baseline: Callable[[Tensor, Tensor], Tensor] | None = None
    broadcasts: bool = False


SETTINGS = {
    "paper-cifar": Setting("paper, CIFAR", 128, 336, 256, 8),
    "crd": Setting("CRD, last stage", 64, 64, 64, 8),
    "crd-early": Setting("CRD, early stage", 64, 16, 16, 32),
    "paper-imagenet": Setting("paper, ImageNet", 64, 1024, 2048, 7),
}

METHODS = {
    "linear": Method("linear", lambda: NST("linear")),
    "poly": Method("poly", lambda: NST()),
    "poly-gram": Method("poly", lambda: NST(implementation="gram")),
    "poly-pairs": Method("poly", lambda: NST(implementation="pairs")),
    "poly-stream": Method("poly", lambda: NST(implementation="stream")),
    "gaussian": Method("gaussian", lambda: NST("gaussian")),
    "at": Method("at", lambda: AT()),
    "fitnet": Method("fitnet", lambda: FitNet()),
}
for _loss in ("linear", "polynomial", "gaussian"):
    _name, _far = _loss.replace("polynomial", "poly"), _loss == "gaussian"
    _write = getattr(baselines, _loss)
    _broadcast = baselines.broadcast_distance if _far else baselines.broadcast_dot
    _product = baselines.product_distance if _far else baselines.product_dot
    METHODS[f"{_name}-broadcast"] = Method(_name, None, lambda s, t, f=_write, k=_broadcast: f(s, t, k), True)
    METHODS[f"{_name}-pairwise"] = Method(_name, None, lambda s, t, f=_write, k=_product: f(s, t, k))


def broadcast_bytes(loss: str, setting: Setting) -> int:
    """About what the broadcast implementation holds at its peak, for one image."""
    student_pairs = setting.student * setting.student
    cross_pairs = setting.student * setting.teacher
    temporaries = 2 * max(student_pairs, cross_pairs)
    saved = student_pairs + cross_pairs if loss == "gaussian" else 0
    return 4 * setting.side**2 * (temporaries + saved)


def make_step(method: Method, setting: Setting, batch: int, device: str, compiled: bool) -> Callable[[], Tensor]:
    """A function that runs forward (teacher's side included) and backward once, and returns the value."""
    generator = torch.Generator().manual_seed(0)
    channels = setting.teacher if method.loss == "fitnet" else setting.student
    student = torch.randn(batch, channels, setting.side, setting.side, generator=generator).to(device)
    teacher = torch.randn(batch, setting.teacher, setting.side, setting.side, generator=generator).to(device)
    student.requires_grad_(True)
    forward = torch.compile(make_forward(method)) if compiled else make_forward(method)

    def step() -> Tensor:
        student.grad = None
        value = forward(student, teacher)
        value.backward()
        return value.detach()

    return step


def make_forward(method: Method) -> Callable[[Tensor, Tensor], Tensor]:
    """Student's and teacher's feature → value."""
    if method.baseline is not None:
        return method.baseline
    assert method.make is not None
    loss = method.make()
    return lambda student, teacher: loss(student, loss.target(teacher, tuple(student.shape[1:])))


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes: "VmRSS" now, "VmHWM" at the highest; 0 where there is none."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next((int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith(key)), 0)


def forget_peak(device: str) -> int:
    """Starts a new peak; returns the bytes in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def measure(step: Callable[[], Tensor], device: str, seconds: float, repeats: int) -> dict:
    """Runs a step for `seconds`, at least `repeats` times; the memory is that of all runs, the first included."""
    before = forget_peak(device)
    value = step()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats or (time.perf_counter() - begin < seconds and len(times) < 1000):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        value = step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return {"milliseconds": [round(1e3 * t, 4) for t in times], "extra_bytes": peak - before, "value": value.item()}


def main(case: dict) -> dict:
    """Measures one case: setting, method, batch, device, compiled, seconds, repeats."""
    setting, method = SETTINGS[case["setting"]], METHODS[case["method"]]
    # Two images first: libraries load, threads start, a graph compiles.
    make_step(method, setting, 2, case["device"], False)()
    step = make_step(method, setting, case["batch"], case["device"], case["compiled"])
    if case["compiled"]:
        step()
    return measure(step, case["device"], case["seconds"], case["repeats"])


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
