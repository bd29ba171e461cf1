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
TRAINER = {"epochs": 2, "log_every": 50, "timeout": 600.0}


def config(**changed: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "data": {"name": "digits", "root": None}, "model": {"name": "resnet8"}, "seed": 3, "outputs": "outputs", "dry_run": False,
        "teacher": {"model": {"name": "resnet20"}, "weights": None, "train": {"epochs": 3}}, "trainer": TRAINER,
        "loss": {"ce": {"weight": 1.0}, "kd": {"weight": 0.9}},
    }  # fmt: skip
    return made | changed


def test_the_name_says_what_the_run_is() -> None:
    path = run_folder(config())
    assert path.parent == Path("outputs/digits/resnet20-resnet8/kd")
    assert path.name.startswith("seed3-")
    same = [
        config(trainer={"epochs": 2, "log_every": 5, "timeout": 5.0}, dry_run=True),
        # keys added later, of the schema or of a component, as long as they have their default
        config(trainer=TRAINER | {"clip_grad_norm": None, "accumulate": 1}, cache={"views": 0}),
    ]
    assert {run_folder(later) for later in same} == {path}
    for more in ({"epochs": 3}, {"accumulate": 2}):
        assert run_folder(config(trainer=TRAINER | more)) != path
    at = {"weight": 1.0, "_target_": "nst.losses.AT", "p": 3.0}
    plain, paper, crd = (
        run_folder(config(loss={"at": at | more})) for more in ({}, {"convention": "paper"}, {"convention": "crd"})
    )
    assert plain == paper != crd


@pytest.mark.parametrize("name", sorted(NAMES))
def test_recorded_runs_keep_their_names(name: str, compose: Compose) -> None:
    """Folders of 0.3: an added key or a changed default must not make finished runs, teachers and caches unknown."""
    settings = build.settings(compose(*NAMES[name]["overrides"], "outputs=outputs"))
    assert str(run_folder(asdict(settings))) == NAMES[name]["folder"]


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


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PATIENCE", 0.0)
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.open(config())
    with pytest.raises(RunLockedError, match=rf"pid {os.getpid()} on "):
        second.open(config())
    first.close()
    second.open(config())
    second.close()


def test_only_its_own_whole_summary_counts(tmp_path: Path) -> None:
    """A moved folder is still the run; damaged files and the summary of another run are named; no student, no summary."""
    run = tmp_path / "seed0-12345678"
    (student := run / "student.safetensors").parent.mkdir()
    student.touch()
    (run / "summary.json").write_text(json.dumps({"folder": f"/somewhere/else/{run.name}"}))
    assert RunFolder(run).summary() == {"folder": str(run)}
    for content in ("{", "[]", ""):
        (run / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=r"summary\.json is damaged"):
            RunFolder(run).summary()
    (run / "summary.json").write_text(json.dumps({"folder": "/somewhere/else/seed0-00000000"}))
    with pytest.raises(ValueError, match="is of another run"):
        RunFolder(run).summary()
    student.unlink()
    assert RunFolder(run).summary() is None
