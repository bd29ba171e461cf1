"""NST as this project and as others compute it: forward + backward of each setting and method, in a process of its own.

"broadcast" is NST as it is usually written, every pair broadcast over the positions; "pairwise" has all pairs by one matrix product.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Row, peak_bytes, quartiles, timed
from nst.losses import AT, NST, FitNet, TransferLoss

Forward = Callable[[Tensor, Tensor], Tensor]


SETTINGS = {  # title, batch, the student's and the teacher's channels, side of the square map
    "paper-cifar": ("paper, CIFAR", 128, 336, 256, 8),
    "crd": ("CRD, last stage", 64, 64, 64, 8),
    "crd-early": ("CRD, early stage", 64, 16, 16, 32),
    "paper-imagenet": ("paper, ImageNet", 64, 1024, 2048, 7),
}


def baseline(loss: str, broadcast: bool) -> Forward:
    """½ · MMD² as its three double sums, by autograd, of features `[B, C, H, W]`: linear, poly or gaussian (σ² over the pairs)."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(2) * b.unsqueeze(1)).sum(dim=3) if broadcast else torch.bmm(a, b.transpose(1, 2))

    def squared_distance(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(dim=3) if broadcast else 2 - 2 * dot(a, b)

    def value(student: Tensor, teacher: Tensor) -> Tensor:
        s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
        pairs = squared_distance if loss == "gaussian" else dot
        cross = pairs(s, t)
        sigma2 = cross.detach().mean(dim=(1, 2), keepdim=True)

        def kernel(x: Tensor) -> Tensor:
            return x if loss == "linear" else x.square() if loss == "poly" else torch.exp(-x / (2 * sigma2))

        return 0.5 * (kernel(pairs(t, t)).mean() + kernel(pairs(s, s)).mean() - 2 * kernel(cross).mean())

    return value


OURS: dict[str, Callable[[], TransferLoss]] = {
    "linear": lambda: NST("linear"),
    "poly": lambda: NST(),
    "poly-gram": lambda: NST(implementation="gram"),
    "poly-pairs": lambda: NST(implementation="pairs"),
    "poly-stream": lambda: NST(implementation="stream"),
    "gaussian": lambda: NST("gaussian"),
    "at": lambda: AT(),
    "fitnet": lambda: FitNet(),
}
BASELINES = {
    f"{loss}-{name}": baseline(loss, name == "broadcast")
    for loss in ("linear", "poly", "gaussian")
    for name in ("broadcast", "pairwise")
}
METHODS = (*OURS, *BASELINES)


def ours(loss: TransferLoss) -> Forward:
    """Student's and teacher's feature → value."""
    return lambda student, teacher: loss(student, loss.target(teacher, tuple(student.shape[1:])))


def main(case: Row) -> Row:
    """Measure one case: setting, method, batch, device, compiled, seconds, repeats. The memory is that of all runs, the first included."""
    name, device, (*_, channels, of_teacher, side) = case["method"], case["device"], SETTINGS[case["setting"]]
    channels = of_teacher if name == "fitnet" else channels

    def made(batch: int, compiled: bool) -> Callable[[], Tensor]:
        """A function that runs forward (teacher's side included) and backward once, and returns the value."""
        draws = torch.Generator().manual_seed(0)
        shapes = [(batch, count, side, side) for count in (channels, of_teacher)]
        student, teacher = (torch.randn(shape, generator=draws).to(device) for shape in shapes)
        student.requires_grad_(True)
        forward = BASELINES[name] if name in BASELINES else ours(OURS[name]())
        forward = torch.compile(forward) if compiled else forward

        def step() -> Tensor:
            student.grad = None
            value = forward(student, teacher)
            value.backward()
            return value.detach()

        return step

    made(2, False)()  # two images first: libraries load, threads start
    step, times = made(case["batch"], case["compiled"]), []
    if case["compiled"]:
        step()

    def runs() -> None:
        begin = time.perf_counter()
        step()
        while len(times) < case["repeats"] or (time.perf_counter() - begin < case["seconds"] and len(times) < 1000):
            times.append(round(1e3 * timed(step, device)[0], 4))

    return {"extra_bytes": peak_bytes(runs, device), "milliseconds": times, "value": step().item()}


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Every setting and method; speed-up and memory against the broadcast implementation of the same loss, image for image.

    A case that fails (out of memory) says so in its row.
    """
    rows: list[Row] = []
    cases = [(s, m, c) for s in arguments.settings for m in arguments.methods for c in (False, True)]
    for name, method, compiled in cases:
        if compiled and not (arguments.compile and method in OURS):
            continue
        (_, batch, student, teacher, side), loss = SETTINGS[name], method.partition("-")[0]
        if method.endswith("-broadcast"):  # cut to about what fits
            own, cross = student**2, student * teacher
            held = 4 * side**2 * (2 * max(own, cross) + (own + cross if loss == "gaussian" else 0))
            batch = max(1, min(batch, int(arguments.memory_gb * 1e9 / held)))
        print(f"{name} · {method}{' · compiled' * compiled}", file=sys.stderr)
        case = {
            "setting": name, "method": method, "batch": batch, "device": arguments.device, "compiled": compiled,
            "seconds": arguments.seconds, "repeats": arguments.repeats,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.implementations", json.dumps(case)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        rows.append({**case, "loss": loss, "ours": method in OURS})
        if done.returncode:
            rows[-1]["error"] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        times, extra = found["milliseconds"], found["extra_bytes"] / 1e6
        rows[-1] |= {
            "n": len(times), "median_ms": median(times), "quartiles_ms": quartiles(times), "range_ms": [min(times), max(times)],
            "ms_per_image": median(times) / batch, "extra_mb": extra, "mb_per_image": extra / batch, "value": found["value"],
        }  # fmt: skip
    good = [row for row in rows if "error" not in row]
    broadcast = {(r["setting"], r["loss"]): r for r in good if r["method"].endswith("-broadcast")}
    for row in good:
        if (base := broadcast.get((row["setting"], row["loss"]))) is not None:
            row["speedup"] = base["ms_per_image"] / row["ms_per_image"]
            if row["mb_per_image"] > 0:
                row["memory_reduction"] = base["mb_per_image"] / row["mb_per_image"]
    return rows


def cells(row: Row) -> list[str]:
    """One row of the table."""
    name = row["method"] + (" · compiled" if row["compiled"] else "")
    if "error" in row:
        return [name, str(row["batch"]), row["error"][:40], *[""] * 4]
    low, high = row["quartiles_ms"]
    ratios = [f"{row[key]:.1f}×" if key in row else "" for key in ("speedup", "memory_reduction")]
    times = f"{row['median_ms']:.1f} ({low:.1f}–{high:.1f})"
    return [name, str(row["batch"]), times, str(row["n"]), f"{row['extra_mb']:.0f}", *ratios]


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
