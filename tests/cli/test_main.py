"""The list of commands, their help, and mistakes on the command line: told at once, in words."""

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from tests.cli.conftest import Nst, process
from tests.conftest import ROOT

from nst import cli
from nst.cli.compose import tidy
from nst.cli.errors import EXTRAS, explain
from nst.cli.main import COMMANDS

# Modules that commands are made of.
PARTS = {"errors", "search", "layer_listing", "main", "compose", "completion", "sweep", "tables", "suggest"}
# Fails where torch is imported: that takes seconds.
NO_TORCH = "sys.modules['torch'] = None"


def test_every_command_has_a_module_and_is_listed(nst: Nst) -> None:
    modules = {module.name for module in pkgutil.iter_modules(cli.__path__)}
    assert modules - PARTS == set(COMMANDS)
    for words in ((), ("--help",), ("help",)):
        listed = nst(*words).out
        assert all(f"nst {name} " in listed and text in listed for name, text in COMMANDS.items())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_help_is_the_commands_own(name: str, nst: Nst) -> None:
    said = nst(name, *(("losses",) if name == "benchmark" else ()), "--help")
    assert said.status == 0
    assert f"nst {name}" in said.out
    others = {other for other in COMMANDS if re.search(rf"\bnst {other}\b", said.out)} - {name, "train"}
    assert not others
    assert "python scripts" not in said.out


def test_help_of_training(nst: Nst) -> None:
    said = nst("train", "--help")
    assert said.status == 0
    for text in (
        "nst train [group=choice",
        "schedule=cosine",
        "optim=adamw",
        "tracker=",
        "layers=[",
        "nst -sc install=bash",
    ):
        assert text in said.out
    assert "python train.py" not in said.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("trian",), "did you mean nst train?"),
        (("model=resnet8",), "did you mean nst train model=resnet8?"),
        (("train", "modle=resnet8"), "Did you mean model"),
        (("train", "trainer.epoch=3"), "trainer.epochs"),
        (("train", "epoch=3"), "trainer.epochs"),
        (("train", "model=resnet21"), "resnet20"),
        (("train", "recipe=cifra10"), "recipe=cifra10: no such recipe; did you mean cifar10"),
        (("train", "recipe@teacher.train=foo"), "foo: no such recipe; there are cifar10"),
        (("train", "--epochs", "3"), "--epochs: no such option; settings are written key=value, for example trainer.epochs=3"),
        (("train", "--lr=0.1"), "for example optim.lr=0.1"),
        (("train", "nst_poly"), "'nst_poly': settings are written key=value"),
        (("train", "loss=[kd", "seed=1"), "a bracket is not closed"),
        (("train", "loss=kd,at]"), "a bracket was not opened"),
        (("train", "data=folder"), "`data.num_classes` and `data.root` are required: pass data.num_classes=… data.root=…"),
        (("train", "--config-dir", "nowhere"), "--config-dir nowhere: no such folder"),
        (("evaluate",), "`run` or `weights` is required"),
        (("export",), "`run` is required: pass run=…"),
        (("predict",), "`model` and `images` are required: pass model=… images=…"),
        (("layers", "all=yes"), "all=yes: true or false is needed"),
        (("runs", "finished"), "'finished': key=value is needed"),
        (("reproduce", "table=quick/digit"), "did you mean quick/digits"),
    ],
)  # fmt: skip
def test_mistakes_are_clear_errors_without_importing_torch(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    said = process(*words, folder=tmp_path, code=NO_TORCH)
    assert told in said.error
    assert not list(tmp_path.iterdir())


def test_a_single_name_is_a_list_of_one() -> None:
    words = ["formats=onnx", "allow=mynet.Net", "allow=[a.B, c.D]", "formats=null"]
    assert tidy(words, "export") == ["formats=[onnx]", "allow=[mynet.Net]", "allow=[a.B,c.D]", "formats=null"]


def test_extras_are_named_as_they_are_installed() -> None:
    for plugin, extra in EXTRAS.items():
        error = MissingConfigException(f"In 'hydra/launcher/x': Could not load 'hydra/launcher/{plugin}'.", "")
        assert f"pip install 'nst[{extra}]'" in explain(error)
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in (*EXTRAS.values(), "wandb", "mlflow", "timm", "onnx"))


def test_a_home_folder_and_lists_with_spaces(nst: Nst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for words in (("loss=[kd, nst_poly]",), ("loss=[kd,", "nst_poly]"), ("loss=[ kd ,nst_poly ]",)):
        said = nst(
            "train", *words, "--cfg", "job", "outputs=~/runs", "layers=[{teacher:", "last,", "student:", "stage2}]"
        )
        assert said.status == 0, said.err
        assert "  kd:" in said.out
        assert "  nst_poly:" in said.out
        assert f"outputs: {tmp_path}/me/runs\n" in said.out
        assert "student: stage2" in said.out


def test_a_folder_of_ones_own_beside_its_outputs(nst: Nst, tmp_path: Path) -> None:
    """`outputs/` holds folders called `digits`, which are no groups of configurations."""
    (tmp_path / "outputs" / "data").mkdir(parents=True)
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("defaults: [kd]\n")
    for words in ((), ("--config-dir", "."), ("--config-dir=.",)):
        said = nst("train", *words, "loss=mine", "--cfg", "job")
        assert said.status == 0, said.err
        assert "  kd:" in said.out
        assert "outputs:" not in nst("train", *words, "--help").out
    assert "Did you mean mine?" in nst("train", "loss=mime").error


def test_layers_never_download_and_list_all_when_asked(nst: Nst) -> None:
    words = ("teacher=torchvision", "teacher.model.pretrained=true", "data=cifar10")
    short = nst("layers", *words)
    assert short.status == 0, short.err
    assert "teacher: resnet18" in short.out
    assert "use the last: 'layers=[{teacher: stage4" not in short.out
    assert re.search(r"use the last: 'layers=\[\{teacher: \w+, student: \w+\}\]'", short.out)
    assert "all=true lists them" in short.out
    every = nst("layers", *words, "all=true")
    assert len(every.out.splitlines()) > len(short.out.splitlines()) + 20
    own = nst("layers", "loss.nst_poly.layers=[{teacher: stage2, student: stage2}]")
    assert "use the last: 'loss.nst_poly.layers=[" in own.out


def test_python_m_nst_and_train_py_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for call in (["-m", "nst", "train"], [str(ROOT / "train.py")]):
        done = subprocess.run(
            [sys.executable, *call, "--cfg", "job", "seed=7"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )  # fmt: skip
        assert "\nseed: 7\n" in done.stdout
    for script in sorted((ROOT / "scripts").glob("*.py")):
        if script.stem in COMMANDS:
            assert f'command("{script.stem}", sys.argv[1:])' in script.read_text()


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="no bash here")
def test_completion_in_bash(tmp_path: Path) -> None:
    executable = tmp_path / "nst"
    executable.write_text(f"#!{sys.executable}\nfrom nst.cli.main import main\nmain()\n")
    executable.chmod(0o755)
    script = """eval "$(nst -sc install=bash)"
    offer() { COMP_LINE=$1 COMP_CWORD=$2 COMP_POINT=0; export COMP_LINE COMP_POINT; hydra_bash_completion; echo "${COMPREPLY[@]}"; }
    offer "nst tr" 1
    offer "nst train model=resnet5" 2
    offer "nst evaluate prec" 2"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["train", "model=resnet50_cifar model=resnet56", "precision="]
