"""Stored settings call networks and data sets that are known, or the user's own in the working folder; nothing else."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from nst.config import ExportConfig
from nst.export import export, finished_run, load_student
from nst.export.finished import check_code
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
    code = "import os\nfrom nst.models import CifarResNet\n\nclass T(CifarResNet): ...\n"
    (tmp_path / "theirs.py").write_text(code)
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
        with pytest.raises(ValueError, match=r"somewhere.summary\.json names .*(it is not called|cannot be imported)"):
            check_code(node, FILE)
    node = {"_target_": "nst.models.resnet8", "x": "${oc.create:{_target_: os.system}}"}
    with pytest.raises(ValueError, match="an interpolation; stored settings are plain values"):
        check_code(node, FILE)


def change(file: Path, *keys: str, to: Any) -> None:
    content = json.loads(file.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = to
    file.write_text(json.dumps(content))


def test_a_run_with_code_from_elsewhere_is_refused_before_it_is_imported(hostile: Path) -> None:
    Path("theirs.py").rename("inner.txt")
    before = (hostile / "summary.json").read_text()
    for where in (("model",), ("data",), ("teacher", "model")):
        (hostile / "summary.json").write_text(before)
        change(hostile / "summary.json", "config", *where, "_target_", to="theirs.T")
        with pytest.raises(ValueError, match=r"summary\.json names 'theirs\.T'.*Start the command in the folder"):
            finished_run(hostile)
    assert "theirs" not in sys.modules


def test_ones_own_network_needs_no_permission(hostile: Path, tmp_path: Path) -> None:
    arguments = {"_target_": "theirs.T", "depth": 8, "in_channels": 1, "name": "tiny"}
    change(hostile / "summary.json", "config", "model", to=arguments)
    change(hostile / "summary.json", "config", "loss", "kd", "_target_", to="elsewhere.Loss")  # which nothing calls
    to = tmp_path / "files"
    export(ExportConfig(run=str(hostile), formats=["safetensors"], repeats=1, images=10, to=str(to)))
    assert type(load_student(to)).__name__ == "T"
    assert (
        "(`theirs.T`; `model.json` has its arguments), in a folder with `theirs`:" in (to / "MODEL_CARD.md").read_text()
    )


def test_another_version_and_other_weights_are_named(
    hostile: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(exported[0], tmp_path / "export"))
    for folder, named in ((hostile, "summary"), (other, "model")):
        save_weights(folder / "student.safetensors", resnet8(in_channels=1))
        with pytest.raises(ValueError, match=rf"SHA-256 \w+, .*{named}\.json says \w+: it was replaced"):
            (finished_run if folder is hostile else load_student)(folder)
    change(hostile / "summary.json", "config", "unknown", to=1)
    with pytest.raises(ValueError, match=r"summary\.json: its settings are not those of a run of this version"):
        finished_run(hostile)


def test_what_is_no_run_or_export_is_said(tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "no finished run")):
        with pytest.raises(ValueError, match=message):
            finished_run(folder)
    for content, message in ((None, "does not exist"), ("{", r"is damaged.*export the run again")):
        if content is not None:
            (tmp_path / "model.json").write_text(content)
        with pytest.raises(ValueError, match=rf"model\.json {message}"):
            load_student(tmp_path)
