"""Signals: saved at the next step boundary, a documented exit status, and the same command goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts.outcome import differing, outcome, rows
from tests.faults.conftest import ROOT, Place, Server, environment

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}


@pytest.fixture(scope="module")
def undisturbed(server: Server, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The outcome of a run left alone."""
    place = Place(server, tmp_path_factory.mktemp("undisturbed"), tiny)
    assert place.run() == 0, place.text()
    return outcome(place.path)


@pytest.fixture
def place(server: Server, tmp_path: Path, tiny: list[str]) -> Place:
    """Saves at the end of an epoch only: what is left after a signal was saved because of it."""
    return Place(server, tmp_path / "here", tiny)


def saved_steps(place: Place) -> list[str]:
    return [path.name for path in sorted((place.path / "checkpoints").glob("*"))]


def test_every_signal_in_mid_step_and_in_evaluation(place: Place, undisturbed: dict[str, object]) -> None:
    for step, signum in ((2, signal.SIGTERM), (4, signal.SIGUSR1), (7, signal.SIGINT)):
        assert place.run("signals_in_step", step, [signum]) == STATUS[signum], place.text()
        assert saved_steps(place)[-1] == f"step-{step:08d}.ckpt"
        assert f"stopped by {signum.name} after saving; the same command continues" in place.text()
    assert place.run("signal_in_evaluation", 2, signal.SIGTERM) == 143
    assert saved_steps(place)[-1] == "step-00000012.ckpt"
    assert not (place.path / "summary.json").exists()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_twice(place: Place, undisturbed: dict[str, object]) -> None:
    """A second SIGTERM changes nothing; a second SIGINT stops without saving."""
    assert place.run("signals_in_step", 2, [signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1]) == 143
    assert saved_steps(place) == ["step-00000002.ckpt"]
    assert place.run("signals_in_step", 4, [signal.SIGINT, signal.SIGINT]) == 130
    assert saved_steps(place) == ["step-00000002.ckpt"]
    assert "stopped at once" in place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_in_the_last_step(place: Place, undisturbed: dict[str, object]) -> None:
    """Asked to stop, it does not begin the test or a next run; the same command writes down what is there."""
    assert place.run("signals_in_step", 12, [signal.SIGTERM]) == 143
    assert place.run() == 0
    assert differing(outcome(place.path), undisturbed) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_on_any_rank(server: Server, tiny: list[str], tmp_path: Path, rank: int) -> None:
    """All ranks stop after the same step, and only one of them says so."""
    place = Place(server, tmp_path / "here", tiny)
    begin = time.monotonic()
    assert place.ranks("signals_in_step", 3, [signal.SIGTERM], rank) == [143, 143], place.text(0) + place.text(1)
    assert time.monotonic() - begin < 30
    assert len(saved_steps(place)) == 1
    assert "stopped by SIGTERM" in place.text(0)
    assert "stopped by" not in place.text(1)
    assert place.ranks() == [0, 0], place.text(0)
    assert [row["step"] for row in rows(place.path) if row["kind"] == "train"] == list(range(1, 13))


def test_while_the_teacher_is_trained(server: Server, tmp_path: Path, tiny: list[str]) -> None:
    """A run that trains its teacher first stops there, and goes on there."""
    own = [arg for arg in tiny if not arg.startswith("teacher.weights")]
    place = Place(server, tmp_path / "here", [*own, "teacher.train.epochs=1"])
    assert place.run("signals_in_step", 1, [signal.SIGTERM]) == 143, place.text()
    assert "none-resnet14" in str(place.path)
    assert place.run() == 0, place.text()
    assert "continuing after step 1 of 2" in place.text()


def test_while_a_cache_is_written(server: Server, tmp_path: Path, tiny: list[str]) -> None:
    """All that was computed is kept, whatever the signal."""
    place = Place(server, tmp_path / "here", [*tiny, "loss=nst_poly", "cache.views=4"])
    for number, signum in ((3, signal.SIGTERM), (2, signal.SIGUSR1), (2, signal.SIGINT)):
        before = rows_written(place)
        assert place.run("while_writing", number, signum, 600.0) == STATUS[signum], place.text()
        assert f"stopped by {signum.name} after saving; the same command continues" in place.text()
        assert rows_written(place) == before + 16 * number
    assert place.run() == 0, place.text()
    assert rows_written(place) == 4 * 96


def test_while_ranks_write_a_cache(server: Server, tmp_path: Path, tiny: list[str]) -> None:
    """A signal to one rank stops both, saved; nobody hangs when one is killed."""
    place = Place(server, tmp_path / "here", [*tiny, "loss=nst_poly", "cache.views=4"])
    assert place.ranks("while_writing", 2, signal.SIGTERM, 600.0, 1) == [143, 143], place.texts()
    assert place.texts().count("stopped by SIGTERM") == 1
    assert rows_written(place) == 2 * 2 * 16
    assert place.ranks("while_writing", 2, signal.SIGKILL) == [-9, 1], place.texts()
    assert place.ranks("while_writing", 2, signal.SIGKILL, 0.0, 1) == [1, -9], place.texts()
    assert place.ranks() == [0, 0], place.texts()
    assert rows_written(place) == 4 * 96


def rows_written(place: Place) -> int:
    """Rows that the cache's manifest knows of."""
    manifests = list(place.folder.glob("outputs/digits/cache/*/manifest.json"))
    return min((a["rows"] for m in manifests for a in json.loads(m.read_text())["arrays"].values()), default=0)


def test_the_real_command(tmp_path: Path, tiny: list[str], undisturbed: dict[str, object], server: Server) -> None:
    """`python train.py`, killed from outside at no particular moment."""
    often = ["trainer.checkpoint_every=1 steps"]
    command = [sys.executable, "train.py", *tiny, *often, f"outputs={tmp_path}/outputs"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE)
    while newest(tmp_path) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    place = Place(server, tmp_path, [*tiny, *often])
    assert place.run() == 0, place.text()
    assert "continuing after step " in place.text()
    assert differing(outcome(place.path), undisturbed) == []


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max((int(path.stem[5:]) for path in folder.glob("outputs/digits/*/*/*/checkpoints/step-*.ckpt")), default=0)
