"""Signals and steps that are not finite: stopped at a step boundary, a documented exit status, and the same command goes on."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.faults.conftest import Place, environment
from tests.outcome import differing, outcome, rows

from nst.storage.checkpoint import Checkpoints

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}
MakePlace = Callable[..., Place]


@pytest.fixture(scope="module")
def undisturbed(make_place: MakePlace) -> dict[str, object]:
    """The outcome of a run left alone."""
    place = make_place()
    assert place.run() == 0, place.text()
    return outcome(place.path)


@pytest.fixture
def place(make_place: MakePlace) -> Place:
    """Saves at the end of an epoch only: what is left after a signal was saved because of it."""
    return make_place()


def test_every_signal_in_mid_step_in_evaluation_and_in_the_last_step(
    place: Place, undisturbed: dict[str, object]
) -> None:
    for step, signum in ((2, signal.SIGTERM), (4, signal.SIGUSR1), (7, signal.SIGINT), (12, signal.SIGTERM)):
        assert place.run("in_step", step, [signum]) == STATUS[signum], place.text()
        assert place.checkpoints()[-1].name == f"step-{step:08d}.ckpt"
        assert f"stopped by {signum.name} after saving; the same command continues" in place.text()
        if step == 7:
            assert place.run("signal_in_evaluation", 2, signal.SIGTERM) == 143
            assert place.checkpoints()[-1].name == "step-00000012.ckpt"
            place.checkpoints()[-1].unlink()
    assert not (place.path / "summary.json").exists()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_twice(place: Place, undisturbed: dict[str, object]) -> None:
    """A second SIGTERM changes nothing; a second SIGINT stops without saving."""
    assert place.run("in_step", 2, [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1]) == 143
    assert place.run("in_step", 4, [signal.SIGINT, signal.SIGINT]) == 130
    assert [path.name for path in place.checkpoints()] == ["step-00000002.ckpt"]
    assert "stopped at once" in place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_on_any_rank(place: Place) -> None:
    """All ranks stop after the same step, and only one of them says so."""
    assert place.ranks("in_step", 3, [signal.SIGTERM], 1) == [143, 143], place.text()
    assert len(place.checkpoints()) == 1
    assert place.text().count("stopped by SIGTERM") == place.text(0).count("stopped by SIGTERM") == 1
    assert place.ranks() == [0, 0], place.text(0)
    assert [row["step"] for row in rows(place.path) if row["kind"] == "train"] == list(range(1, 13))


def test_while_a_cache_is_written(make_place: MakePlace) -> None:
    """All that was computed is kept; a signal to one rank stops both, saved; nobody hangs when one is killed."""
    place = make_place("loss=nst_poly", "cache.views=4")

    def written() -> int:
        """Rows that have a checksum in each of the cache's arrays."""
        arrays = place.folder.glob("outputs/digits/cache/*/*.npy*")
        return min((int(np.count_nonzero(np.load(array)["crc"])) for array in arrays), default=0)

    assert place.run("while_writing", 3, signal.SIGTERM) == 143, place.text()
    assert "stopped by SIGTERM after saving; the same command continues" in place.text()
    assert written() == 16 * 3
    assert place.ranks("while_writing", 2, signal.SIGTERM, 1) == [143, 143], place.text()
    assert place.ranks("while_writing", 2, signal.SIGKILL, 1) == [1, -9], place.text()
    assert written() > 16 * 3
    assert place.run() == 0, place.text()
    assert written() == 4 * 96


def test_the_real_command(tmp_path: Path, tiny: list[str], undisturbed: dict[str, object]) -> None:
    """`python train.py`, killed from outside at no particular moment."""
    often = ["trainer.checkpoint_every=1 steps"]
    command = [sys.executable, "train.py", *tiny, *often, f"outputs={tmp_path}/outputs"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    while len(list(tmp_path.glob("outputs/digits/*/*/*/checkpoints/*.ckpt"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    place = Place(tmp_path, [*tiny, *often])
    assert place.run() == 0, place.text()
    assert "continuing after step " in place.text()
    assert differing(outcome(place.path), undisturbed) == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_that_is_not_finite(make_place: MakePlace, ranks: int) -> None:
    """Step, term and checkpoint are named once, also between two log rows; no rank takes the step, whichever it comes to."""
    place = make_place("trainer.checkpoint_every=2 steps", "trainer.log_every=5")
    codes = [place.run("in_step", 7, "nan")] if ranks == 1 else place.ranks("in_step", 7, "nan", 1)
    assert set(codes) == {1}
    said = "step 7: the loss or its gradient is not finite; terms not finite: ce, nst_poly; the last good checkpoint is"
    assert place.text().count(said) == 1
    assert "step-00000006.ckpt; trainer.clip_grad_norm=2 or a lower optim.lr may prevent it" in place.text()
    assert "Traceback" not in place.text()
    found = Checkpoints(place.path).latest()
    assert found is not None
    assert found[0].name == "step-00000006.ckpt"
    assert all(value.isfinite().all() for value in found[1]["distiller"].values())


def test_an_infinite_loss_with_a_finite_gradient(place: Place) -> None:
    """Before any checkpoint."""
    assert place.run("infinite_term", 3) == 1
    said = "step 3: the loss or its gradient is not finite; terms not finite: nst_poly; there is no checkpoint yet"
    assert said in place.text()
