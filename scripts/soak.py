"""Kill a real training run at random moments, again and again; its end must be that of a run left alone, bit for bit.

python scripts/soak.py --kills 50
python scripts/soak.py --kills 10 loss=fitnet cache.views=16     # any overrides of train.py

Each start is `python train.py …` in a new process, killed by SIGKILL (one in four by SIGTERM, which saves): one in four
wherever it is after a random time, while it imports, composes or measures its teacher, the others a random time after
training goes on. A run that ends is compared and begun anew until all kills are spent. Status 1 at any difference.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from outcome import differing, outcome

ROOT = Path(__file__).parents[1]
SETTINGS = ["trainer.checkpoint_every=7 steps", "trainer.log_every=3", "trainer.heatmaps=false", "trainer.epochs=4"]


def main() -> None:
    """Parse the command line, soak, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("overrides", nargs="*", help="of train.py")
    arguments = parser.parse_args()
    moments, left, rounds = random.Random(arguments.seed), arguments.kills, 0
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "alone")
        begin = time.monotonic()
        status = start(alone, arguments.overrides).wait()
        seconds = time.monotonic() - begin
        if status != 0:
            sys.exit(f"the run left alone ended with status {status}")
        expected = outcomes(alone)
        print(f"left alone: {seconds:.0f} s, {len(expected)} runs (teacher and student)", flush=True)
        while left > 0:
            rounds += 1
            killed = Path(folder, f"killed{rounds}")
            left -= soak(killed, arguments.overrides, moments, left, seconds)
            found = outcomes(killed)
            different = {run: differing(expected[run], found[run]) for run in expected if found[run] != expected[run]}
            if different or found.keys() != expected.keys():
                sys.exit(f"round {rounds} differs: {different or list(found)}")
            print(f"round {rounds}: bit for bit the same; {left} kills left", flush=True)
    print(f"{arguments.kills} kills in {rounds} rounds: weights, optimizer, logs and metrics as in a run left alone")


def start(outputs: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """The command, in a process of its own."""
    outputs.mkdir(exist_ok=True)
    command = [sys.executable, "train.py", *SETTINGS, f"outputs={outputs}", *overrides]
    with (outputs / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def soak(outputs: Path, overrides: list[str], moments: random.Random, kills: int, seconds: float) -> int:
    """Start until the run is finished, killing at most `kills` times: how many it took."""
    done = 0
    while True:
        before, process = progress(outputs), start(outputs, overrides)
        if done < kills:
            if moments.random() < 0.25:
                sleep(process, moments.uniform(0, seconds))
            else:
                while process.poll() is None and progress(outputs) == before:
                    time.sleep(0.01)
                sleep(process, moments.uniform(0, 0.5))
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if moments.random() < 0.25 else signal.SIGKILL)
                done += 1
        status = process.wait()
        if status == 0:
            return done
        if status not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
            sys.exit(f"status {status}:\n{(outputs / 'log.txt').read_text()}")


def sleep(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Sleep, but not longer than the process lives."""
    last = time.monotonic() + seconds
    while time.monotonic() < last and process.poll() is None:
        time.sleep(0.005)


def progress(outputs: Path) -> list[float]:
    """Changes when training goes on: when each log was written last."""
    return [path.stat().st_mtime for path in sorted(outputs.rglob("metrics.jsonl"))]


def outcomes(outputs: Path) -> dict[str, dict[str, object]]:
    """Of each run below a folder, by its place there; the place itself is no part of it."""
    return {str(file.parent.relative_to(outputs)): outcome(file.parent) for file in outputs.rglob("summary.json")}


if __name__ == "__main__":
    main()
