"""Do two commits give the same result? The same short runs in both, compared step by step and weight by weight.

python benchmarks/parity.py A B [key=value ...]

A and B are commits (or "." for the working tree). Without settings, a list of configurations is run: every loss, live and cached,
fp32 and bf16, gradient accumulation, each schedule, two ranks. Each run ends "equal" or with its first step that differs; the
exit status is 1 if any differs. Settings of before 0.2 are translated for the older side (`schedule=` was `optim=`).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = [
    "data.limit=200", "trainer.epochs=2", "teacher.train.epochs=1", "teacher.min_accuracy=0", "trainer.log_every=1",
    "trainer.heatmaps=false", "trainer.compile=false", "trainer.device=cpu", "trainer.batch_size=64",
]  # fmt: skip
CACHED = ["cache.views=3"]
CASES: dict[str, list[str]] = {
    **{loss: [f"loss={loss}"] for loss in ("ce", "kd", "at", "fitnet", "nst_linear", "nst_poly", "nst_gaussian")},
    "sum": ["loss=[kd,fitnet,nst_poly]"],
    "sum, two stages": [
        "loss=[kd,nst_poly]",
        "loss.nst_poly.layers=[{teacher: stage2, student: stage2, weight: 0.5}, {teacher: last, student: last}]",
    ],
    "sum, bf16": ["loss=[kd,at,fitnet,nst_poly]", "trainer.precision=bf16"],
    "sum, accumulate": ["loss=[kd,at,fitnet,nst_poly]", "trainer.accumulate=3"],
    "sum, clipped": ["loss=[kd,at,nst_poly]", "trainer.clip_grad_norm=2"],
    "cached": ["loss=[kd,at,nst_linear,nst_poly]", *CACHED],
    "cached, large": ["loss=[fitnet,nst_gaussian]", *CACHED, "cache.large=true"],
    "cached, bf16": ["loss=[kd,nst_poly]", "trainer.precision=bf16", *CACHED],
    "cosine": ["loss=[kd,nst_poly]", "schedule=cosine"],
    "onecycle": ["loss=[kd,nst_poly]", "schedule=onecycle", "optim.nesterov=true"],
    "two ranks": ["loss=[kd,at,fitnet,nst_poly]", "trainer.batch_size=50"],
    "two ranks, sync_bn": ["loss=[kd,nst_poly]", "trainer.sync_bn=true"],
}


class Side:
    """A commit, checked out in a folder of its own."""

    def __init__(self, commit: str, folder: Path) -> None:
        self.commit, self.tree = commit, ROOT
        self.outputs = folder / "outputs"
        if commit != ".":
            self.tree = folder / "tree"
            subprocess.run(["git", "clone", "-q", str(ROOT), str(self.tree)], check=True)
            subprocess.run(["git", "checkout", "-q", commit], cwd=self.tree, check=True)

    def run(self, name: str, words: Sequence[str], ranks: int) -> Path:
        """Train; the run's folder."""
        outputs = self.outputs / "".join(c if c.isalnum() else "_" for c in name)
        words = [*SHORT, *words, f"outputs={outputs}"]
        if not (self.tree / "configs" / "schedule").is_dir():
            words = [word.replace("schedule=", "optim=") for word in words]
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        environment = {**os.environ, "PYTHONPATH": str(self.tree / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*start, str(self.tree / "train.py"), *words],
            cwd=self.tree,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{self.commit}, {name}: exit status {done.returncode}\n{done.stderr[-3000:]}")
        loss = next((w.partition("=")[2] for w in words if w.startswith("loss=")), "")
        taught = loss != "ce"
        (target,) = [
            file
            for file in outputs.glob("*/*/*/*/target.json")
            if not taught or not file.parents[2].name.startswith("none-")
        ]
        return target.parent


def first_difference(a: Path, b: Path) -> str | None:
    """Where two runs part; None: nowhere."""
    for number, (one, other) in enumerate(zip(losses(a), losses(b), strict=True), start=1):
        if one != other:
            return f"step {number}: loss {one!r} and {other!r}"
    if weights(a) != weights(b):
        return "weights differ after equal losses"
    return None


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["kind"] == "train"]


def weights(run: Path) -> dict[str, bytes]:
    """The trained student, bit for bit."""
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(run / "student.safetensors").items()}


def main(arguments: Sequence[str]) -> int:
    """Compare; the exit status."""
    if len(arguments) < 2 or "=" in arguments[0] + arguments[1]:
        print((__doc__ or "").strip())
        return 2
    a, b, *own = arguments
    cases = {"as given": own} if own else CASES
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(commit, Path(folder) / name) for commit, name in ((a, "a"), (b, "b"))]
        for name, case in cases.items():
            ranks = 2 if "two ranks" in name else 1
            found = first_difference(*(side.run(name, case, ranks) for side in sides))
            failed += found is not None
            print(f"{name:24} {found or 'equal'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
