"""The run folder: its name says what the run is, one process holds it, a changed configuration is named."""

import os
from pathlib import Path
from typing import Any

import pytest
from nst.runs import folder

from nst.errors import differences
from nst.runs.folder import RunFolder, RunLockedError, run_folder


def config(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "data": {"name": "digits", "root": None},
        "model": {"name": "resnet8"},
        "teacher": {"model": {"name": "resnet20"}, "weights": None, "recipe": {"epochs": 3}},
        "loss": {"ce": {"weight": 1.0}, "kd": {"weight": 0.9}},
        "trainer": {"epochs": 2, "log_every": 50, "skip_nonfinite": False},
        "seed": 3,
        "outputs": "outputs",
        "dry_run": False,
    }
    return made | changed


def test_the_name_says_what_the_run_is() -> None:
    path = run_folder(config())
    assert path.parent == Path("outputs/digits/resnet20-resnet8/kd")
    assert path.name.startswith("seed3-")
    trainer = {"epochs": 2, "log_every": 5, "skip_nonfinite": True}
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


def test_another_configuration_is_named_by_field(tmp_path: Path) -> None:
    held = RunFolder(tmp_path / "run")
    held.open(config())
    held.close()
    with pytest.raises(ValueError, match=r"another configuration: model\.name: 'resnet8' there, 'vgg8' now"):
        held.open(config(model={"name": "vgg8"}))
    held.close()


def test_differences() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "e": 4}
    assert differences(old, new) == ["a.c: 2 there, 3 now", "e: None there, 4 now"]
    assert differences(old, old) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is damaged"):
        RunFolder(tmp_path).summary()
