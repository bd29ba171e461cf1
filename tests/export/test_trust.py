"""A stored configuration calls nothing but the project's own networks and data, and what the user allows by name."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from shrunken import composed

from nst.export import export, finished_run, load_student
from nst.export.trust import check_targets
from nst.models import resnet8
from nst.models.weights import save_weights

FILE = Path("somewhere/summary.json")
OURS = (
    "nst.models.resnet8",
    "nst.models.resnet.CifarResNet",
    "nst.models.torchvision_model",
    "nst.data.cifar.load_cifar",
)
NOT_OURS = (
    "os.system", "builtins.eval", "nst.data.folder.os.system", "nst.files.write_whole", "nst.models.weights.save_weights",
    "nst.models.external.importlib.import_module", "nst.data.workers.DataLoader", "nst.models", "", "nst.models.",
    "nst.runs.trackers.WandB", "nst.models.nn.Linear", "nst.modelsx.resnet8", 7, None, ["nst.models.resnet8"],
)  # fmt: skip


def test_known_components() -> None:
    for target in OURS:
        check_targets({"model": {"_target_": target, "num_classes": 10, "more": [{"_target_": target}]}}, FILE)


@pytest.mark.parametrize("target", NOT_OURS)
def test_anything_else_is_refused_at_any_depth(target: Any) -> None:
    node: Mapping[str, Any] = {"_target_": "nst.models.resnet8", "layers": [{"inner": {"_target_": target}}]}
    with pytest.raises(ValueError, match=r"somewhere/summary\.json: model\.layers\.0\.inner\._target_ is .* allow=\["):
        check_targets({"model": node}, FILE)


def test_all_names_that_a_run_needs_are_asked_for_at_once() -> None:
    nodes = {key: {"_target_": f"mine.{key}"} for key in ("data", "model", "teacher")}
    with pytest.raises(
        ValueError, match=r"data\._target_ is 'mine\.data'.*allow=\[mine\.model,mine\.data,mine\.teacher\]"
    ):
        check_targets(nodes, FILE, allow=["mine.model"])
    check_targets(nodes, FILE, allow=["mine.model", "mine.data", "mine.teacher"])


def test_an_interpolation_could_become_anything() -> None:
    node = {"_target_": "nst.models.resnet8", "x": "${oc.create:{_target_: os.system}}"}
    with pytest.raises(ValueError, match=r"model\.x is .*interpolation"):
        check_targets({"model": node}, FILE, allow=["os.system"])


PROOF = """
from pathlib import Path
Path("ran").touch()
from nst.models import resnet8 as Tiny
"""


@pytest.fixture
def hostile(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run whose summary names a module that lies in the working directory and leaves a file when imported."""
    run = Path(shutil.copytree(finished, tmp_path / finished.name))
    (tmp_path / "theirs.py").write_text(PROOF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return run


def change(file: Path, *keys: str, to: Any) -> None:
    content = json.loads(file.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = to
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("where", [("model",), ("data",), ("teacher", "model")])
def test_a_run_that_names_code_is_refused_before_it_is_imported(hostile: Path, where: tuple[str, ...]) -> None:
    change(hostile / "summary.json", "config", *where, "_target_", to="theirs.Tiny")
    with pytest.raises(
        ValueError,
        match=rf"summary\.json: config\.{'.'.join(where)}\._target_ is 'theirs\.Tiny'.*allow=\[theirs\.Tiny\]",
    ):
        export(composed("export", f"run={hostile}"))
    assert not Path("ran").exists()
    assert "theirs" not in sys.modules


def test_losses_and_trackers_of_a_run_are_not_called(hostile: Path) -> None:
    change(hostile / "summary.json", "config", "loss", "kd", "_target_", to="theirs.Loss")
    change(hostile / "summary.json", "config", "tracker", to={"own": {"_target_": "theirs.Tracker"}})
    finished_run(hostile).student()
    assert not Path("ran").exists()


def test_allowed_by_name(hostile: Path, tmp_path: Path) -> None:
    change(hostile / "summary.json", "config", "model", "_target_", to="theirs.Tiny")
    words = ("formats=[safetensors]", "repeats=1", "images=10", f"to={tmp_path / 'files'}")
    export(composed("export", f"run={hostile}", "allow=[theirs.Tiny]", *words))
    assert Path("ran").exists()
    with pytest.raises(ValueError, match=r"model\.json: target\._target_ is 'theirs\.Tiny'"):
        load_student(tmp_path / "files")
    assert not load_student(tmp_path / "files", allow=["theirs.Tiny"]).training
    card = (tmp_path / "files" / "MODEL_CARD.md").read_text()
    assert 'load_student(".", allow=["theirs.Tiny"])' in card
    assert "nst predict model=. images=FOLDER 'allow=[theirs.Tiny]'" in card


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("config", "model"), None, "config.model is None"),
        (("config", "trainer", "epochs"), "many", "not those of a run"),
        (("config", "unknown"), 1, "not those of a run"),
        (("config", "data", "size"), "8", "config.data.size"),
        (("config", "model", "num_classes"), {"a": 1}, "model: "),
        (("config",), [], "config.data is None"),
        (("student",), None, "its student or its data.classes"),
        (("data",), [1], "its student or its data.classes"),
        (("data", "classes"), 5, "its student or its data.classes"),
    ],
)
def test_a_damaged_summary_is_named(hostile: Path, keys: tuple[str, ...], value: Any, named: str) -> None:
    change(hostile / "summary.json", *keys, to=value)
    with pytest.raises(ValueError, match=named):
        finished_run(hostile).student()


def test_other_weights_than_the_runs_or_the_exports_are_refused(
    hostile: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(exported[0], tmp_path / "export"))
    for folder in (hostile, other):
        save_weights(folder / "student.safetensors", resnet8(in_channels=1), {})
    with pytest.raises(
        ValueError, match=r"student\.safetensors has SHA-256 \w+, .*summary\.json says \w+: it was replaced"
    ):
        finished_run(hostile)
    with pytest.raises(ValueError, match=r"student\.safetensors has SHA-256 \w+, .*model\.json says"):
        load_student(other)


def test_a_damaged_model_json_is_named(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("model.json", "student.safetensors"):
        shutil.copy(exported[0] / name, tmp_path)
    change(tmp_path / "model.json", "weights", to="../elsewhere.safetensors")
    with pytest.raises(ValueError, match="the name of a file beside it"):
        load_student(tmp_path)
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model\.json is damaged"):
        load_student(tmp_path)
