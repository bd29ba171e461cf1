"""Several processes: none hangs, the reason is reported once, a restart goes on from the last checkpoint."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.faults.conftest import Place, environment
from tests.outcome import differing, outcome


@pytest.fixture
def place(make_place: Callable[..., Place]) -> Place:
    """The last batch of each epoch is uneven, and so is the last one of the test images."""
    return make_place("trainer.batch_size=18", "trainer.eval_batch_size=37", "trainer.checkpoint_every=2 steps")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_breaks(place: Place, rank: int) -> None:
    begin = time.monotonic()
    assert place.ranks("in_step", 5, "broken", rank) == [1, 1]
    assert time.monotonic() - begin < 45
    assert place.text().count("Traceback") == 1, place.text()
    assert f"RuntimeError: rank {rank} broke" in place.text()


def test_only_rank_0_fails(place: Place) -> None:
    """It alone writes: the other learns of its full disk by its end."""
    assert place.ranks("no_space", 4) == [1, 1]
    assert "No space left on device" in place.text(0)
    assert "Traceback" not in place.text()
    assert "error:" not in place.text(1)


def test_all_ranks_fail_alike(place: Place) -> None:
    """A wrong setting; a loss whose buffers would differ between the ranks."""
    assert place.ranks(args=["loss.nst_poly.weight=-1"]) == [1, 1]
    assert place.text().count("error: loss.nst_poly.weight=-1") == 1, place.text()
    own = ["+loss.own._target_=tests.kinds.Unequal", "+loss.own.weight=1.0"]
    assert place.ranks(args=own) == [1, 1]
    assert place.text().count("losses.own:0.seen: this buffer differs between ranks") == 1


FAULTY = """
import os, runpy, sys
from tests.faults import injections
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    injections.in_step(6, "broken", 1)
runpy.run_path("{train}", run_name="__main__")
"""


def test_torchrun_restarts(place: Place, tmp_path: Path) -> None:
    """The real launcher: one rank breaks, and the next start ends as if nothing had been; rank 0 alone writes."""
    place.args.append("trainer.epochs=1")
    alone = Place(tmp_path / "alone", place.args)
    assert alone.ranks("only_rank_0_writes") == [0, 0], alone.text()
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY.format(train=ROOT / "train.py"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.2",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(script), *place.args,
    ]  # fmt: skip
    place.folder.mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=place.folder, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeError: rank 1 broke") == 1
    assert "continuing after step 4 of 6" in done.stdout + done.stderr
    assert differing(outcome(place.path), outcome(alone.path)) == []
