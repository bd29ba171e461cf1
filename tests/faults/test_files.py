"""Damaged, missing and unwritable files: an error names the file, or training continues without it; it never silently restarts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.conftest import Place
from tests.outcome import differing, outcome


@pytest.fixture(scope="module")
def half(make_place: Callable[..., Place]) -> Place:
    """A run killed after step 7, with checkpoints of steps 4 and 6. To be copied, not touched."""
    place = make_place("trainer.checkpoint_every=2 steps")
    assert place.run("in_step", 7, "killed") == -9, place.text()
    assert [path.name for path in place.checkpoints()] == ["step-00000004.ckpt", "step-00000006.ckpt"]
    return place


@pytest.fixture(scope="module")
def undisturbed(half: Place, make_place: Callable[..., Place]) -> dict[str, object]:
    """The outcome of the same run left alone."""
    place = make_place("trainer.checkpoint_every=2 steps")
    assert place.run() == 0, place.text()
    return outcome(place.path)


@pytest.fixture
def place(half: Place, tmp_path: Path) -> Place:
    """A copy of the killed run."""
    shutil.copytree(half.folder, tmp_path / "copy")
    return Place(tmp_path / "copy", half.args)


def flip(path: Path) -> None:
    """Change one bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_newest_checkpoint_damaged_or_missing(place: Place, undisturbed: dict[str, object]) -> None:
    before, newest = place.checkpoints()
    flip(newest)
    assert place.run("in_step", 5, "killed") == -9, place.text()
    assert f"checkpoint {newest.relative_to(place.folder)} is damaged" in place.text()
    assert "continuing after step 4" in place.text()
    assert newest.with_name(newest.name + ".damaged").is_file()
    assert before.is_file()
    assert place.run() == 0, place.text()
    assert "checkpoint step-00000006.ckpt is missing" in place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_no_checkpoint_left(place: Place) -> None:
    """However often it is tried, and whether they are damaged or gone."""
    for path in place.checkpoints():
        flip(path)
    for again in range(3):
        if again == 2:
            shutil.rmtree(place.path / "checkpoints")
        assert place.run() == 1
        assert place.text().count("has no usable checkpoint, but step-00000006.ckpt was written there") == again + 1
    assert (place.path / "metrics.jsonl").stat().st_size > 0


def test_logs_lost_or_the_summary_damaged(place: Place) -> None:
    summary, log = place.path / "summary.json", place.path / "metrics.jsonl"
    summary.write_bytes(b'{"loss": ')
    assert place.run() == 1
    assert "summary.json is damaged" in place.text()
    summary.unlink()
    log.unlink()
    log.mkdir()
    assert place.run() == 1
    assert "metrics.jsonl" in place.text()
    assert "Traceback" not in place.text()
    log.rmdir()
    log.write_bytes(b"")
    assert place.run() == 0, place.text()
    assert "metrics.jsonl has 0 bytes" in place.text()


def test_disk_full(place: Place, undisturbed: dict[str, object]) -> None:
    """Half-way through a checkpoint, and in a log row; a folder that may be read only."""
    before = place.checkpoints()
    for log in (False, True):
        assert place.run("no_space", 8, log) == 1, place.text()
        assert place.checkpoints() == before
        assert not list(place.path.rglob("*.tmp"))
    for file in ("step-00000008.ckpt", "metrics.jsonl"):
        assert f"{file} could not be written: No space left on device" in place.text()
    assert "the last good checkpoint is" in place.text()
    assert place.run("read_only") == 1
    assert "Read-only file system" in place.text()
    assert "Traceback" not in place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_another_run(place: Place, tmp_path: Path) -> None:
    """Other data under the same name, another number of processes."""
    run = Place(tmp_path / "own", place.args)
    assert run.run("in_step", 3, "killed") == -9
    assert run.run("other_data") == 1
    assert "is of another run: data.sha256: '" in run.text()
    assert run.ranks() == [1, 1]
    assert "is of another run: ranks: 1 there, 2 now" in run.text(0)
    assert "error:" not in run.text(1)
    assert "Traceback" not in run.text()
