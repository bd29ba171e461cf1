"""Several processes: none hangs, the reason is reported once, a restart goes on from the last checkpoint."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.faults.conftest import Place, environment
from tests.outcome import differing, outcome

ARGS = ["loss=kd_fitnet_nst_poly", "cache.views=4", "trainer.ema=0.8", "trainer.checkpoint_every=2 steps"]
ARGS += ["trainer.batch_size=18", "trainer.eval_batch_size=37"]  # the last batches are uneven
STOPPED, GONE = "stopped by SIGTERM after saving", "rank {} of 2 is gone: stopped, killed, out of memory or cut off?"
STARTS: list[tuple[tuple[Any, ...], list[int], str]] = [  # fault, exit statuses, what one of them says
    (("while_writing", 2, SIGTERM, 1), [143, 143], STOPPED),
    (("while_writing", 2, SIGKILL, 1), [1, -9], GONE.format(1)),
    (("in_step", 3, "killed", 0), [-9, 1], GONE.format(0)),
    (("no_space", 4), [1, 1], "step-00000004.ckpt could not be written"),
    (("in_step", 5, "broken", 0), [1, 1], "RuntimeError: rank 0 broke"),
    (("in_step", 5, [SIGTERM], 1), [143, 143], STOPPED),
    (("in_step", 7, "nan", 1), [1, 1], "step 7: the loss or its gradient is not finite; terms not finite: ce, "),
    (("in_step", 9, "killed", 1), [1, -9], GONE.format(1)),
]


@pytest.fixture(scope="module")
def alone(make_place: Callable[..., Place]) -> dict[str, Any]:
    """The outcome of two ranks that nothing befell; rank 0 alone writes."""
    place = make_place(*ARGS)
    assert place.ranks("only_rank_0_writes") == [0, 0], place.text()
    return outcome(place.path)


def test_whatever_befalls_one_ends_all(make_place: Callable[..., Place], alone: dict[str, Any]) -> None:
    """Also while targets are cached. What is kept are the first rank's BN statistics, also of the averaged weights."""
    place = make_place(*ARGS)
    for fault, codes, said in STARTS:
        assert place.ranks(*fault) == codes, place.text()
        assert place.text().count(said) == 1, place.text()
        assert place.text().count("Traceback") == int("broken" in fault), place.text()
    assert place.checkpoints()[-1].name == "step-00000008.ckpt"
    assert place.ranks() == [0, 0], place.text()
    assert differing(outcome(place.path), alone) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["loss.nst_poly.weight=-1"], "error: loss.nst_poly.weight=-1"),
        (["+loss.own={_target_: tests.kinds.Unequal, weight: 1}"], "losses.own:0.seen: this buffer differs between"),
    ],
)
def test_all_ranks_fail_alike(make_place: Callable[..., Place], args: list[str], said: str) -> None:
    place = make_place(*args)
    assert place.ranks() == [1, 1]
    assert place.text().count(said) == 1, place.text()


def test_torchrun_restarts(make_place: Callable[..., Place], alone: dict[str, Any]) -> None:
    """The real launcher: rank 0 is killed from outside, at no particular moment, and the next start ends as if nothing had been."""
    place = make_place(*ARGS)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.2",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", str(ROOT / "train.py"), *place.args,
    ]  # fmt: skip
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen(command, cwd=place.folder, env=environment(), **pipes)
    while not list(place.folder.rglob("*.ckpt")) and launcher.poll() is None:
        time.sleep(0.001)
    os.kill(int(Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()[0]), SIGKILL)
    said = launcher.communicate(timeout=150)[0]
    assert launcher.returncode == 0, said
    assert "continuing after step " in said
    assert differing(outcome(place.path), alone) == []
