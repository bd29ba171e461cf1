"""Processor time of a start, which every command pays: how much it is on top of `import torch`."""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile

HELP = "processor time from the start of a command to its first step"

COMMAND = "import sys; sys.argv = ['nst']\nfrom nst.cli.main import main\nmain({words!r})"
FIRST_STEP = """
from nst.loop import Training
step = Training.step
def first(self, *given):
    step(self, *given)
    raise SystemExit
Training.step = first
"""
STARTS = {
    "import torch": "import torch",
    "nst": COMMAND.format(words=[]),
    "a misspelt key": COMMAND.format(words=["train", "modle=resnet8"]),
    "nst layers": COMMAND.format(words=["layers", "model=resnet8"]),
    "nst train dry_run=true": COMMAND.format(words=["train", "dry_run=true"]),
    "nst train, to its first step": FIRST_STEP + COMMAND.format(words=["train", "teacher=none", "loss=ce"]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The number of starts."""
    parser.add_argument("--repeats", type=int, default=5, help="starts of each, of which the median counts")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each start, in seconds."""
    base = 0.0
    for name, code in STARTS.items():
        seconds = statistics.median(processor_time(code) for _ in range(arguments.repeats))
        base = base or seconds
        print(f"{name:30} {seconds:5.2f}   on top of torch {seconds - base:+5.2f}", flush=True)


def processor_time(code: str) -> float:
    """User and system seconds of a Python process that runs `code` in an empty folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
