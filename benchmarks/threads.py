"""How should a CPU's threads wait? Steps of small networks on a quiet machine and beside processes that keep a core busy each."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.measure import Row, machine, write

HELP = "policies of OpenMP's threads, on a quiet and on a busy machine"
POLICIES: dict[str, dict[str, str]] = {
    "default": {},
    "short spin": {"GOMP_SPINCOUNT": "10000"},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
STEPS = """
import json, sys, time
import torch
from torch.nn import functional as F
from nst.models import resnet8, resnet20
network, size, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
model = {"resnet8": resnet8, "resnet20": resnet20}[network](num_classes=10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
images, labels = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
seconds = []
for _ in range(steps + 3):
    start = time.perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds[3:]))
"""
SUBJECTS = {  # network, pixels a side, images, steps
    "digits": ("resnet8", "8", "64", "40"),
    "CIFAR": ("resnet20", "32", "64", "8"),
    "photographs": ("resnet8", "128", "16", "8"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subject's arguments."""
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="processes that keep a core busy each")
    parser.add_argument("--repeats", type=int, default=3, help="processes of a policy, in turn with the others")
    parser.add_argument("--json", type=Path, help="file for all figures")


def run(arguments: argparse.Namespace) -> None:
    """Print the median milliseconds of a step and their ratio to the best policy, for each load and subject."""
    rows: list[Row] = []
    for busy in arguments.busy:
        load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for subject, settings in SUBJECTS.items():
                seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
                for policy in [*POLICIES] * arguments.repeats:
                    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
                    command, variables = [sys.executable, "-c", STEPS, *settings], kept | POLICIES[policy]
                    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
                    seconds[policy] += json.loads(done.stdout)
                best = min(median(values) for values in seconds.values())
                for policy, values in seconds.items():
                    ms, ratio = 1000 * median(values), median(values) / best
                    rows.append({"busy": busy, "subject": subject, "policy": policy, "ms": ms, "n": len(values)})
                    print(f"{busy} busy, {subject}, {policy}: {ms:.1f} ms, {ratio:.2f} × the best", flush=True)
        finally:
            for process in load:
                process.kill()
    write({"machine": machine("cpu"), "rows": rows}, arguments.json)
