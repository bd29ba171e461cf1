"""Several processes: none hangs, the reason is reported once, a restart goes on from the last checkpoint."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts.outcome import differing, outcome, rows
from tests.faults.conftest import ROOT, Place, Server, environment


@pytest.fixture
def place(server: Server, tmp_path: Path, tiny: list[str]) -> Place:
    """The last batch of each epoch is uneven, and so is the last one of the test images."""
    own = ["trainer.batch_size=18", "trainer.eval_batch_size=37", "trainer.checkpoint_every=2 steps"]
    return Place(server, tmp_path / "here", [*tiny, *own])


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_breaks(place: Place, rank: int) -> None:
    begin = time.monotonic()
    assert place.ranks("raise_in_step", 5, rank) == [1, 1]
    assert time.monotonic() - begin < 20
    assert place.texts().count("Traceback") == 1, place.texts()
    assert f"RuntimeError: rank {rank} broke" in place.texts()


def test_one_rank_is_killed(place: Place) -> None:
    begin = time.monotonic()
    assert place.ranks("die_after_step", 5, 0) == [-9, 1]
    assert time.monotonic() - begin < 20
    assert "rank 0 of 2 (last heard of at step " in place.text(1)
    assert "is gone: stopped, killed, out of memory or cut off?" in place.text(1)
    assert "Traceback" not in place.text(1)


def test_only_rank_0_fails(place: Place) -> None:
    """It alone writes: the others learn of its full disk or locked folder by its end."""
    for fault, reason in ((("no_space", 4), "No space left on device"), (("read_only",), "Read-only file system")):
        begin = time.monotonic()
        assert place.ranks(*fault) == [1, 1]
        assert time.monotonic() - begin < 20
        assert reason in place.text(0)
    assert "Traceback" not in place.texts()
    assert "error:" not in place.text(1)


def test_all_ranks_fail_alike(place: Place) -> None:
    assert place.ranks(args=["loss.nst_poly.weight=-1"]) == [1, 1]
    assert place.texts().count("error: loss.nst_poly.weight=-1") == 1, place.texts()


def test_evaluation_counts_each_image_once(place: Place) -> None:
    """Also where the last batch leaves a rank without any."""
    assert place.ranks() == [0, 0]
    (one, *_) = [row for row in rows(place.path) if row["kind"] == "eval"]
    summary = json.loads((place.path / "summary.json").read_text())
    assert summary["test"]["images"] == 360
    assert one["top1"] * 360 / 100 == pytest.approx(round(one["top1"] * 360 / 100), abs=1e-6)
    evaluated = Place(place.server, place.folder.parent / "again", [*place.args, "trainer.eval_batch_size=359"])
    assert evaluated.ranks() == [0, 0]
    assert rows(evaluated.path)[6]["top1"] == one["top1"]
    assert rows(evaluated.path)[6]["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_only_rank_0_writes(place: Place) -> None:
    assert place.ranks("only_rank_0_writes") == [0, 0], place.texts()


def test_torchrun_restarts(place: Place, tmp_path: Path) -> None:
    """The real launcher: one rank breaks, and the next start ends as if nothing had been."""
    alone = Place(place.server, tmp_path / "alone", place.args)
    assert alone.ranks() == [0, 0], alone.texts()
    faults = [["raise_in_step", 6, 1], None]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.2",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(ROOT / "tests/faults/faulty.py"), json.dumps(faults),
        *place.args,
    ]  # fmt: skip
    place.folder.mkdir()
    done = subprocess.run(command, cwd=place.folder, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeError: rank 1 broke") == 1
    assert "continuing after step 4 of 12" in done.stdout + done.stderr
    assert differing(outcome(place.path), outcome(alone.path)) == []
