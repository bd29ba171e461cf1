"""NST as this project and as others compute it: one case, a setting and a method, forward + backward, in a process of its own.

`python -m benchmarks.implementations '{"setting": "crd", ...}'` prints the measurement as one line of JSON. "broadcast" is NST as it is usually
written, every pair broadcast over the positions; "pairwise" has all pairs by one matrix product.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Row, peak_bytes, timed
from nst.losses import AT, NST, FitNet, TransferLoss

Forward = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """Shapes of one comparison: batch, student and teacher channels, side of the square map."""

    title: str
    batch: int
    student: int
    teacher: int
    side: int

    def __str__(self) -> str:
        return f"{self.title}: B {self.batch}, {self.student}/{self.teacher} channels, {self.side}×{self.side}"


SETTINGS = {
    "paper-cifar": Setting("paper, CIFAR", 128, 336, 256, 8),
    "crd": Setting("CRD, last stage", 64, 64, 64, 8),
    "crd-early": Setting("CRD, early stage", 64, 16, 16, 32),
    "paper-imagenet": Setting("paper, ImageNet", 64, 1024, 2048, 7),
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
        kernels: dict[str, Callable[[Tensor], Tensor]] = {
            "linear": lambda x: x,
            "poly": torch.square,
            "gaussian": lambda x: torch.exp(-x / (2 * sigma2)),
        }
        kernel = kernels[loss]
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


def broadcast_bytes(loss: str, setting: Setting) -> int:
    """About what the broadcast implementation holds at its peak, for one image."""
    own, cross = setting.student**2, setting.student * setting.teacher
    return 4 * setting.side**2 * (2 * max(own, cross) + (own + cross if loss == "gaussian" else 0))


def ours(loss: TransferLoss) -> Forward:
    """Student's and teacher's feature → value."""
    return lambda student, teacher: loss(student, loss.target(teacher, tuple(student.shape[1:])))


def make_step(name: str, setting: Setting, batch: int, device: str, compiled: bool) -> Callable[[], Tensor]:
    """A function that runs forward (teacher's side included) and backward once, and returns the value."""
    channels = setting.teacher if name == "fitnet" else setting.student
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(batch, c, setting.side, setting.side, generator=generator).to(device)
        for c in (channels, setting.teacher)
    )
    student.requires_grad_(True)
    forward = BASELINES[name] if name in BASELINES else ours(OURS[name]())
    forward = torch.compile(forward) if compiled else forward

    def step() -> Tensor:
        student.grad = None
        value = forward(student, teacher)
        value.backward()
        return value.detach()

    return step


def main(case: Row) -> Row:
    """Measures one case: setting, method, batch, device, compiled, seconds, repeats. The memory is that of all runs, the first included."""
    setting, device = SETTINGS[case["setting"]], case["device"]
    # Two images first: libraries load, threads start, a graph compiles.
    make_step(case["method"], setting, 2, device, False)()
    step, times = make_step(case["method"], setting, case["batch"], device, case["compiled"]), []
    if case["compiled"]:
        step()

    def runs() -> None:
        begin = time.perf_counter()
        step()
        while len(times) < case["repeats"] or (time.perf_counter() - begin < case["seconds"] and len(times) < 1000):
            times.append(round(1e3 * timed(step, device)[0], 4))

    return {"extra_bytes": peak_bytes(runs, device), "milliseconds": times, "value": step().item()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
