"""Damaged, missing and unwritable files: an error names the file, or training continues without it; it never silently restarts."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import Place
from tests.outcome import differing, outcome


@pytest.fixture
def place(make_place: Callable[..., Place]) -> Place:
    """With a run that was killed after step 7, and checkpoints of steps 4 and 6."""
    place = make_place("trainer.checkpoint_every=2 steps")
    assert place.run("in_step", 7, "killed") == -9, place.text()
    assert [path.name for path in place.checkpoints()] == ["step-00000004.ckpt", "step-00000006.ckpt"]
    return place


def flip(path: Path) -> None:
    """Change one bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fails(place: Place, *said: str, fault: tuple[Any, ...] = (), world: int = 1) -> None:
    """The command ends with an error, which rank 0 alone reports."""
    assert place.ranks(*fault, world=world) == [1] * world, place.text()
    assert all(part in place.text(0) for part in said), place.text()
    assert (place.text().count("error:"), place.text().count("Traceback")) == (1, 0), place.text()


def test_damage_and_a_full_disk_change_nothing(place: Place, undisturbed: dict[str, Any]) -> None:
    """The end is that of a run left alone; errors leave what was there: of another run's data or processes, too."""
    before, newest = place.checkpoints()
    flip(newest)
    assert place.run("in_step", 5, "killed") == -9, place.text()
    assert f"checkpoint {newest.relative_to(place.folder)} is damaged" in place.text()
    assert "continuing after step 4" in place.text()
    assert newest.with_name(newest.name + ".damaged").is_file()
    assert before.is_file()
    assert place.run("in_step", 7, "killed") == -9, place.text()
    assert "checkpoint step-00000006.ckpt is missing" in place.text()

    left = place.checkpoints()
    fails(place, "step-00000008.ckpt could not be written: ", "the last good checkpoint is", fault=("no_space", 8))
    fails(place, "metrics.jsonl could not be written: No space left on device", fault=("no_space", 8, True))
    fails(place, "Read-only file system", fault=("read_only",))
    fails(place, "is of another run: data.sha256: '", fault=("other_data",))
    fails(place, "is of another run: ranks: 1 there, 2 now", world=2)
    summary, student = place.path / "summary.json", place.path / "student.safetensors"
    summary.write_bytes(b'{"loss": ')
    student.write_bytes(b"")
    fails(place, "summary.json is damaged")
    summary.unlink()
    student.unlink()
    assert place.checkpoints() == left
    assert not list(place.path.rglob("*.tmp"))
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_no_checkpoint_left(place: Place) -> None:
    """However often it is tried, and whether they are damaged or gone. Lost log rows are no error."""
    log = place.path / "metrics.jsonl"
    log.write_bytes(b"")
    assert place.run("in_step", 8, "killed") == -9, place.text()
    assert "metrics.jsonl has 0 bytes" in place.text()
    for path in place.checkpoints():
        flip(path)
    for again in range(3):
        if again == 2:
            shutil.rmtree(place.path / "checkpoints")
        fails(place, "has no usable checkpoint, but step-00000006.ckpt was written there")
    assert log.stat().st_size > 0
