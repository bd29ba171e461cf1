"""Do two commits give the same result? The same short runs in both, compared step by step and weight by weight.

python benchmarks/parity.py A B [--keep FOLDER] [--cifar FOLDER] [--only TEXT] [key=value ...]

A and B are commits (or "." for the working tree). Without settings, a list of configurations is run: every loss, live and cached,
fp32 and bf16, gradient accumulation, clipping, averaged weights, mixing, each schedule, two ranks; with --cifar also CIFAR-10, whose
files are in FOLDER. Each run ends "equal" or with the first step that differs; the exit status is 1 if any differs. --only runs the
cases with TEXT in their name, --keep keeps the runs of commits for the next time. Settings are written in today's words and are
translated for commits of 0.2.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
SHORT = [
    "data.limit=200", "trainer.epochs=2", "teacher.train.epochs=1", "teacher.min_accuracy=0", "trainer.log_every=1",
    "trainer.compile=false", "trainer.device=cpu", "trainer.batch_size=64",
]  # fmt: skip
LOSSES = (
    "ce", "kd", "at", "fitnet", "nst_linear", "nst_poly", "nst_gaussian", "sp", "pkt", "rkd", "cc", "vid", "crd", "dkd", "dist",
    "review", "kd_nst_poly", "crd/nst", "crd/kd", "crd/at", "crd/fitnet", "crd/sp", "crd/pkt", "crd/cc", "crd/vid",
)  # fmt: skip
CACHED = ["cache.views=3"]
STAGES = "[{teacher: stage2, student: stage2, weight: 0.5}, {teacher: last, student: last}]"
SUM = "loss=[kd,at,fitnet,nst_poly]"
CASES: dict[str, list[str]] = {
    **{loss: [f"loss={loss}"] for loss in LOSSES},
    "sum": ["loss=[kd,fitnet,nst_poly]"],
    "sum, two stages": ["loss=[kd,nst_poly]", f"loss.nst_poly.layers={STAGES}"],
    "sum, bf16": [SUM, "trainer.precision=bf16"],
    "sum, bf16 teacher": [SUM, "trainer.precision=bf16", "teacher.precision=bf16"],
    "sum, accumulate": [SUM, "trainer.accumulate=3"],
    "sum, clipped": [SUM, "trainer.clip_grad_norm=2"],
    "sum, averaged": [SUM, "trainer.ema=0.9"],
    "sum, without channels_last": [SUM, "trainer.channels_last=false"],
    "sum, batch statistics": [SUM, "teacher.batch_statistics=true"],
    "validation": [SUM, "data.validation=0.2"],
    "mixup": [SUM, "trainer.mixup=1.0"],
    "cutmix": [SUM, "trainer.cutmix=1.0"],
    "mixup and cutmix": [SUM, "trainer.mixup=0.4", "trainer.cutmix=1.0"],
    "cached": ["loss=[kd,at,nst_linear,nst_poly]", *CACHED],
    "cached, all views": ["loss=[kd,at,nst_linear,nst_poly]", "cache.views=all", "cache.dtype=float32"],
    "cached, large": ["loss=[fitnet,nst_gaussian]", *CACHED, "cache.large=true"],
    "cached, mixed": ["loss=[kd,fitnet,nst_gaussian]", *CACHED],
    "cached, bf16": ["loss=[kd,nst_poly]", "trainer.precision=bf16", *CACHED],
    "cosine, adamw": ["loss=[kd,nst_poly]", "schedule=cosine", "optim=adamw"],
    "onecycle": ["loss=[kd,nst_poly]", "schedule=onecycle", "optim.nesterov=true"],
    "two ranks": [SUM, "trainer.batch_size=50"],
    "two ranks, relational": ["loss=[kd,sp,rkd,crd]", "trainer.batch_size=50"],
    "two ranks, cached": ["loss=[kd,nst_poly]", *CACHED],
}
CIFAR = [  # clipped: at its recipe's rate the hints of a hardly trained teacher diverge
    "data=cifar10", "data.limit=500", "trainer.epochs=1", "model=resnet8", "teacher=resnet20", "trainer.clip_grad_norm=2",
]  # fmt: skip
CIFAR_CASES = {
    "cifar": [SUM],
    "cifar, bf16, averaged": [SUM, "trainer.precision=bf16", "trainer.ema=0.9"],
    "cifar, accumulate": [SUM, "trainer.accumulate=2"],
    "cifar, mixup": [SUM, "trainer.mixup=1.0"],
    "cifar, cached": ["loss=[kd,at,nst_poly]", "cache.views=4"],
    "cifar, two ranks": [SUM],
}


class Side:
    """A commit, checked out in a folder of its own."""

    def __init__(self, commit: str, folder: Path) -> None:
        self.commit, self.tree = commit, ROOT
        self.outputs = folder / "outputs"
        if commit != ".":
            self.tree = folder / "tree"
            if not self.tree.is_dir():
                subprocess.run(["git", "clone", "-q", str(ROOT), str(self.tree)], check=True)
            subprocess.run(["git", "checkout", "-q", commit], cwd=self.tree, check=True)
        self.old = (self.tree / "configs" / "knowledge").is_dir()

    def run(self, name: str, words: Sequence[str], ranks: int) -> Path:
        """Train; the run's folder."""
        outputs = self.outputs / "".join(c if c.isalnum() else "_" for c in name)
        words = [*SHORT, *words, f"outputs={outputs}"]
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        if self.commit == "." or not list(outputs.glob("*/*/*/*/summary.json")):
            command = [*start, str(self.tree / "train.py"), *(in_old_words(words) if self.old else words)]
            environment = os.environ | {"PYTHONPATH": str(self.tree / "src"), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{self.commit}, {name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        done = [file.parent for file in outputs.glob("*/*/*/*/summary.json")]
        taught = [run for run in done if not run.parents[1].name.startswith("none-")]  # not the teacher
        (run,) = done if "loss=ce" in words else taught
        return run


def in_old_words(words: Sequence[str]) -> list[str]:
    """Settings as 0.2 spells them."""
    old: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "cache.views":
            old += ["knowledge=stored"]
            old += [] if "cache.large=true" in words else ["knowledge.allow_large=false"]
        key = key.replace("cache.large", "knowledge.allow_large").replace("cache.", "knowledge.")
        key = key.replace(".layers", ".taps").replace("layers", "taps")
        if key.startswith("teacher.train."):
            name = key.removeprefix("teacher.train.")
            part = "trainer." if name in ("epochs", "batch_size", "precision", "sync_bn") else ""
            key = f"teacher.recipe.{part}{name}"
        old.append(f"{key}={value}")
    return old


def first_difference(a: Path, b: Path) -> str | None:
    """Where two runs part; None: nowhere."""
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    for kind, name in (("train", "loss"), ("eval", "loss"), ("eval", "top1")):
        values = [[event[name] for event in log if event["kind"] == kind] for log in logs]
        for number, (one, other) in enumerate(zip(*values, strict=True), start=1):
            if one != other:
                return f"{kind} {number}: {name} {one!r} and {other!r}"
    saved = [load_file(run / "student.safetensors") for run in (a, b)]
    first, second = ({name: value.tobytes() for name, value in weights.items()} for weights in saved)  # bit for bit
    return None if first == second else "weights differ after equal losses"


def main(arguments: Sequence[str]) -> int:
    """Compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--keep", type=Path, help="keep the runs of commits here")
    parser.add_argument("--cifar", help="folder of CIFAR-10")
    parser.add_argument("--only", default="", help="cases with this text in their name")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    cases = {"as given": options.settings} if options.settings else dict(CASES)
    if options.cifar and not options.settings:
        cases |= {name: [*CIFAR, f"data.root={options.cifar}", *case] for name, case in CIFAR_CASES.items()}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        keep = (options.keep or Path(folder)).absolute()
        sides = [Side(c, Path(folder) / "ab"[i] if c == "." else keep / c) for i, c in enumerate(options.commits)]
        for name, case in cases.items():
            if options.only in name:
                found = first_difference(*(side.run(name, case, 2 if "two ranks" in name else 1) for side in sides))
                failed += found is not None
                print(f"{name:32} {found or 'equal'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
