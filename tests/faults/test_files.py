"""Damaged, missing and unwritable files: an error names the file, or training continues without it; it never silently restarts."""

import hashlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts.outcome import differing, outcome
from tests.faults.conftest import Place, Server

from nst.runs.checkpoint import MAGIC, Checkpoints, read_checkpoint


@pytest.fixture(scope="module")
def half(server: Server, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run killed after step 7, with checkpoints of steps 4 and 6. To be copied, not touched."""
    place = Place(server, tmp_path_factory.mktemp("half"), [*tiny, "trainer.checkpoint_every=2 steps"])
    assert place.run("die_after_step", 7) == -9, place.text()
    assert [path.name for path in checkpoints(place)] == ["step-00000004.ckpt", "step-00000006.ckpt"]
    return place


@pytest.fixture(scope="module")
def undisturbed(half: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The outcome of the same run left alone."""
    place = Place(half.server, tmp_path_factory.mktemp("undisturbed"), half.args)
    assert place.run() == 0, place.text()
    return outcome(place.path)


@pytest.fixture
def place(half: Place, tmp_path: Path) -> Place:
    """A copy of the killed run."""
    shutil.copytree(half.folder, tmp_path / "copy")
    return Place(half.server, tmp_path / "copy", half.args)


def checkpoints(place: Place) -> list[Path]:
    return sorted((place.path / "checkpoints").glob("*.ckpt"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "not one": lambda path: path.write_bytes(b"hello\n" * 100),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_newest_checkpoint_damaged(place: Place, undisturbed: dict[str, object], kind: str) -> None:
    newest = checkpoints(place)[-1]
    DAMAGE[kind](newest)
    assert place.run() == 0, place.text()
    assert f"checkpoint {newest.relative_to(place.folder)} is damaged" in place.text()
    if kind == "flipped bit":
        assert "SHA-256" in place.text()
    assert "continuing after step 4" in place.text()
    assert newest.with_name(newest.name + ".damaged").is_file()
    assert differing(outcome(place.path), undisturbed) == []


def test_newest_checkpoint_missing(place: Place, undisturbed: dict[str, object]) -> None:
    checkpoints(place)[-1].unlink()
    assert place.run() == 0, place.text()
    assert "checkpoint step-00000006.ckpt is missing" in place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_no_checkpoint_left(place: Place) -> None:
    """However often it is tried, and whether they are damaged or gone."""
    for path in checkpoints(place):
        flip(path)
    for _ in range(2):
        assert place.run() == 1
        assert "has no usable checkpoint, but step-00000006.ckpt was written there" in place.text()
    shutil.rmtree(place.path / "checkpoints")
    assert place.run() == 1
    assert place.text().count("has no usable checkpoint") == 3
    assert (place.path / "metrics.jsonl").stat().st_size > 0


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "it has no 'logs'": lambda state: state.pop("logs"),
    "it is of step 1000, the run has 12": lambda state: state["progress"].update(step=1000),
    "unexpected keyword argument 'a'": lambda state: state.update(last={"a": 1}),
    "sums for ": lambda state: state["sums"].update(values=torch.zeros(1, 1)),
    "buffers ['a'] there, [] now": lambda state: state.update(unsaved_buffers={"a": torch.zeros(1)}),
}


@pytest.mark.parametrize("named", CHANGES)
def test_a_checkpoint_with_a_right_checksum_and_wrong_content(place: Place, named: str) -> None:
    for path in checkpoints(place):
        state = read_checkpoint(path)
        CHANGES[named](state)
        content = io.BytesIO()
        torch.save(state, content)
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        path.write_bytes(MAGIC + digest.encode() + b"\n" + content.getvalue())
    assert place.run() == 1
    assert named in place.text()
    assert "Traceback" not in place.text()


def test_a_folder_in_place_of_a_file(place: Place, undisturbed: dict[str, object]) -> None:
    run = place.path
    for name in ("metrics.jsonl", "config.json", "checkpoints/step-00000008.ckpt.tmp"):
        file = run / name
        kept = file.read_bytes() if file.is_file() else None
        file.unlink(missing_ok=True)
        file.mkdir()
        assert place.run() == 1
        assert str(file.relative_to(place.folder)) in place.text()
        file.rmdir()
        if kept is not None:
            file.write_bytes(kept)
    (place.path / "tensorboard" / "events.out.tfevents.1").mkdir()
    assert place.run() == 0, place.text()
    assert "Traceback" not in place.text()
    (place.path / "tensorboard" / "events.out.tfevents.1").rmdir()
    assert differing(outcome(place.path), undisturbed) == []


def test_log_shorter_than_the_checkpoint_knows(place: Place) -> None:
    (place.path / "metrics.jsonl").write_bytes(b"")
    assert place.run() == 0, place.text()
    assert "metrics.jsonl has 0 bytes" in place.text()


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_run_file_damaged(place: Place, undisturbed: dict[str, object], name: str) -> None:
    (place.path / name).write_bytes(b'{"loss": ')
    assert place.run() == 1
    assert f"{name} is damaged" in place.text()
    (place.path / name).unlink()
    assert place.run() == 0, place.text()


def test_disk_full(place: Place, undisturbed: dict[str, object]) -> None:
    """Half-way through a checkpoint, and in a log row."""
    before = [path.name for path in checkpoints(place)]
    for fault in ("no_space", "no_space_for_logs"):
        assert place.run(fault, 8) == 1, place.text()
        assert "No space left on device" in place.text()
        assert [path.name for path in checkpoints(place)] == before
        assert not list(place.path.rglob("*.tmp"))
    assert "step-00000008.ckpt could not be written" in place.text()
    assert "metrics.jsonl could not be written: No space left on device" in place.text()
    assert "the last good checkpoint is" in place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_file_system_refuses(place: Place, undisturbed: dict[str, object]) -> None:
    """The operating system itself cuts a write short (a limit on the size of files)."""
    size = checkpoints(place)[-1].stat().st_size
    assert place.run("small_files", size // 2) == 1, place.text()
    assert "step-00000008.ckpt could not be written: File too large" in place.text()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []


def test_read_only(place: Place) -> None:
    assert place.run("read_only") == 1
    assert "error: " in place.text()
    assert "Read-only file system" in place.text()
    assert "Traceback" not in place.text()


def test_killed_in_every_place_of_a_save(server: Server, tmp_path: Path) -> None:
    """The old checkpoint or the new one is there, whole, whatever moment is chosen."""
    found = []
    for number in range(100):
        place = Place(server, tmp_path / str(number), [])
        code = place.run("save_and_die", str(place.folder), number)
        latest = Checkpoints(place.folder, keep=1).latest()
        assert latest is not None
        value = latest[1]["weights"]
        assert torch.equal(value, torch.full((1000,), value[0].item()))
        found.append(value[0].item())
        if code == 0:
            break
        assert code == -9
    assert len(found) > 15
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}


def test_another_run(place: Place, tmp_path: Path, half: Place) -> None:
    """Other data under the same name, another teacher under the same name, another world."""
    teacher = next(arg for arg in place.args if arg.startswith("teacher.weights=")).split("=")[1]
    own = Path(shutil.copy(teacher, tmp_path / "teacher.safetensors"))
    run = Place(half.server, tmp_path / "own", [*place.args, f"teacher.weights={own}"])
    assert run.run("die_after_step", 3) == -9
    other = Place(half.server, tmp_path / "other", [*place.args, "loss=ce", "model=resnet14", "seed=1"])
    assert other.run() == 0
    shutil.copy(other.path / "student.safetensors", own)
    assert run.run() == 1
    assert "step-00000002.ckpt is of another run: teacher.sha256: '" in run.text()
    shutil.copy(teacher, own)
    assert run.run("other_data") == 1
    assert "is of another run: data.sha256: '" in run.text()
    assert run.ranks() == [1, 1]
    assert "is of another run: ranks: 1 there, 2 now" in run.text(0)
    assert "error:" not in run.text(1)
    assert "Traceback" not in run.text(1)
