"""Stored settings call networks and data sets that are known, or the user's own in the working folder; nothing else."""

import json
import shutil
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from nst.config import ExportConfig
from nst.export import export, finished_run, load_student
from nst.finished import check_code
from nst.models import resnet8
from nst.models.weights import save_weights

FILE = Path("somewhere/summary.json")
KNOWN = ("nst.models.resnet8", "nst.models.torchvision_model", "nst.data.dataset.Cifar", "torch.nn.Linear", "theirs.T")
OTHERS = (
    "os.system", "builtins.eval", "nst.data.images.os.system", "nst.files.write_whole", "torch.load", "torch.hub.load",
    "nst.models", "", "nst.models.", "nst.modelsx.resnet8", 7, None, "theirs.os.system", "elsewhere.Net",
)  # fmt: skip


@pytest.fixture
def hostile(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run beside a module of the user's own in the working folder."""
    run = Path(shutil.copytree(finished, tmp_path / finished.name))
    (tmp_path / "theirs.py").write_text("import os\nfrom nst.models import CifarResNet\nclass T(CifarResNet): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return run


@pytest.mark.usefixtures("hostile")
def test_what_may_be_called_at_any_depth() -> None:
    for target in KNOWN:
        check_code({"_target_": target, "num_classes": 10, "more": [{"_target_": target}]}, FILE)
    for target in OTHERS:
        node = {"_target_": "nst.models.resnet8", "layers": [{"inner": {"_target_": target}}]}
        with pytest.raises(ValueError, match=r"summary\.json names "):
            check_code(node, FILE)
    with pytest.raises(ValueError, match="an interpolation"):
        check_code({"_target_": "nst.models.resnet8", "x": "${oc.create:{_target_: os.system}}"}, FILE)


def change(run: Path, *keys: str, to: Any) -> None:
    """A key of the settings in a run's summary."""
    content = json.loads((run / "summary.json").read_text())
    reduce(getitem, keys[:-1], content["config"])[keys[-1]] = to
    (run / "summary.json").write_text(json.dumps(content))


def test_a_run_with_code_from_elsewhere_is_refused_before_it_is_imported(hostile: Path) -> None:
    Path("theirs.py").rename("inner.txt")
    before = (hostile / "summary.json").read_text()
    for where in (("model",), ("data",), ("teacher", "model")):
        (hostile / "summary.json").write_text(before)
        change(hostile, *where, "_target_", to="theirs.T")
        with pytest.raises(ValueError, match=r"summary\.json names 'theirs\.T'"):
            finished_run(hostile)
    assert "theirs" not in sys.modules


def test_ones_own_network_needs_no_permission(hostile: Path, tmp_path: Path) -> None:
    change(hostile, "model", to={"_target_": "theirs.T", "depth": 8, "in_channels": 1, "name": "tiny"})
    change(hostile, "loss", "kd", "_target_", to="elsewhere.Loss")  # which nothing calls
    to = tmp_path / "files"
    export(ExportConfig(run=str(hostile), formats=["safetensors"], repeats=1, images=10, to=str(to)))
    assert type(load_student(to)).__name__ == "T"
    card = (to / "MODEL_CARD.md").read_text()
    assert "(`theirs.T`; `model.json` has its arguments), in a folder with `theirs`:" in card


def test_what_is_no_run_or_export_of_its_weights_is_named(
    hostile: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(exported[0], tmp_path / "export"))
    for folder, read, named in ((hostile, finished_run, "summary"), (other, load_student, "model")):
        save_weights(folder / "student.safetensors", resnet8(in_channels=1))
        with pytest.raises(ValueError, match=rf"SHA-256 \w+, .*{named}\.json"):
            read(folder)
    change(hostile, "unknown", to=1)
    with pytest.raises(ValueError, match=r"summary\.json: its settings"):
        finished_run(hostile)
    with pytest.raises(ValueError, match=rf"run={tmp_path}: no"):
        finished_run(tmp_path)
    (other / "model.json").write_text("{")
    for folder, message in ((tmp_path, "does not exist"), (other, "is damaged")):
        with pytest.raises(ValueError, match=rf"model\.json {message}"):
            load_student(folder)
