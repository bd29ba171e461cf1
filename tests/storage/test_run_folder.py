"""The run folder: its name says what the run is, one process holds it, a changed configuration is named."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Compose

from nst import build
from nst.storage import folder
from nst.storage.folder import RunFolder, RunLockedError, run_folder

NAMES: dict[str, Any] = json.loads(Path(__file__).with_name("run_names.json").read_text())


def config(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "data": {"name": "digits", "root": None},
        "model": {"name": "resnet8"},
        "teacher": {"model": {"name": "resnet20"}, "weights": None, "train": {"epochs": 3}},
        "loss": {"ce": {"weight": 1.0}, "kd": {"weight": 0.9}},
        "trainer": {"epochs": 2, "log_every": 50, "timeout": 600.0},
        "seed": 3,
        "outputs": "outputs",
        "dry_run": False,
    }
    return made | changed


def finish(path: Path, folder: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "student.safetensors").write_bytes(b"")
    (path / "summary.json").write_text(json.dumps({"folder": folder}))


def test_the_name_says_what_the_run_is() -> None:
    path = run_folder(config())
    assert path.parent == Path("outputs/digits/resnet20-resnet8/kd")
    assert path.name.startswith("seed3-")
    trainer = {"epochs": 2, "log_every": 5, "timeout": 5.0}
    assert run_folder(config(trainer=trainer, dry_run=True)) == path
    assert run_folder(config(trainer=trainer | {"epochs": 3})) != path


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.0)
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.open(config())
    with pytest.raises(RunLockedError, match=rf"is being written by another process \(pid {os.getpid()} on "):
        second.open(config())
    first.close()
    second.open(config())
    second.close()


@pytest.mark.parametrize(("file", "remedy"), [("summary.json", "start again"), ("config.json", "writes it again")])
@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_file_is_named(file: str, remedy: str, content: str, tmp_path: Path) -> None:
    finish(tmp_path, str(tmp_path))
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file} is damaged .*{remedy}"):
        RunFolder(tmp_path).summary()


def test_a_moved_folder_is_still_the_run_and_a_copied_summary_is_not(tmp_path: Path) -> None:
    run = tmp_path / "seed0-12345678"
    finish(run, "/somewhere/else/seed0-12345678")
    assert RunFolder(run).summary() == {"folder": str(run)}
    finish(run, "/somewhere/else/seed0-00000000")
    with pytest.raises(ValueError, match="is of another run"):
        RunFolder(run).summary()
    (run / "student.safetensors").unlink()
    assert RunFolder(run).summary() is None


def test_a_key_added_later_renames_nothing() -> None:
    """Neither one of the schema nor one of a component, as long as it has its default."""
    loss = {"weight": 1.0, "_target_": "nst.losses.AT", "p": 2.0}
    before = config(loss={"at": {**loss, "p": 3.0}})
    name = run_folder(before)
    later = config(loss={"at": {**loss, "p": 3.0, "convention": "paper"}})
    later["trainer"] |= {"clip_grad_norm": None, "accumulate": 1}
    later["cache"] = {"views": 0}
    assert run_folder(later) == name
    later["trainer"]["accumulate"] = 2
    assert run_folder(later) != name
    assert run_folder(config(loss={"at": {**loss, "p": 3.0, "convention": "crd"}})) != name


@pytest.mark.parametrize("place", ["teacher", "model", "member"])
def test_weights_are_named_by_what_they_hold(tmp_path: Path, place: str) -> None:
    """Moved they are of the same run; others in their place are of another."""

    def name(weights: Path) -> Path:
        node = {"name": "resnet20", "weights": str(weights)}
        ensemble = {"model": {"name": "ensemble", "members": {"a": node}}, "weights": None}
        teacher = {"model": {"name": "resnet20"}, "weights": str(weights)} if place == "teacher" else ensemble
        return run_folder(config(model=node) if place == "model" else config(teacher=teacher))

    first, other = tmp_path / "a.pt", tmp_path / "elsewhere.pt"
    for path in (first, other):
        path.write_bytes(b"weights")
    before = name(first)
    assert name(other) == before
    first.write_bytes(b"others")
    assert name(first) != before


@pytest.mark.parametrize("name", sorted(NAMES))
def test_recorded_runs_keep_their_names(name: str, compose: Compose) -> None:
    """Folders of 0.3: an added key or a changed default must not make finished runs, teachers and caches unknown."""
    settings = build.settings(compose(*NAMES[name]["overrides"], "outputs=outputs"))
    assert str(run_folder(asdict(settings))) == NAMES[name]["folder"]
