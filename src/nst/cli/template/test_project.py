"""The project runs from end to end, in a second or two."""

import subprocess
import sys
from pathlib import Path


def test_it_trains(tmp_path: Path) -> None:
    words = ["experiment=first", "trainer=quick", "teacher.train.epochs=1", "teacher.min_accuracy=0"]
    command = [sys.executable, "-m", "nst", "train", *words, f"outputs={tmp_path}/outputs"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/stripes/large-small/*/*/summary.json"))
