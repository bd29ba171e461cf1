"""The list of commands, their help, and mistakes on the command line: told at once, in words."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from tests.cli.conftest import Nst
from tests.conftest import ROOT

from nst.cli.compose import EXTRAS, as_override, composed, explain
from nst.cli.main import COMMANDS
from nst.config import EvaluateConfig, ExportConfig, PredictConfig

SCHEMAS = {"evaluate": EvaluateConfig, "export": ExportConfig, "predict": PredictConfig}


def test_every_command_is_listed_and_has_its_own_help(nst: Nst) -> None:
    for words in ((), ("--help",), ("help",)):
        listed = nst(*words).out
        assert all(f"nst {name} " in listed and text in listed for name, text in COMMANDS.items())
    for name in COMMANDS:
        said = nst(name, "--help")
        assert (said.status, f"nst {name}" in said.out) == (0, True)
        others = {other for other in COMMANDS if re.search(rf"\bnst {other}\b", said.out)} - {name, "train"}
        assert not others or name == "train"
        assert not re.search("python (scripts|train.py)", said.out)
        assert all(f"  {field.name}=" in said.out for field in (fields(SCHEMAS[name]) if name in SCHEMAS else ()))
    said = nst("train", "--help").out
    assert all(
        text in said for text in ("[group=choice", "optim=adamw", "tracker=", "layers=[", "nst -sc install=bash")
    )


MISTAKES = (
        (("trian",), "did you mean train?"),
        (("model=resnet8",), "did you mean nst train model=resnet8?"),
        (("train", "modle=resnet8"), "modle: no such key; did you mean model or teacher.model?"),
        (("train", "epoch=3"), "trainer.epochs"),
        (("train", "seed=x"), "'x' of type 'str' could not be converted to Integer"),
        (("train", "model=resnet21"), "resnet20"),
        (("train", "loss=kd,at"), "To sweep over it, add --multirun"),
        (("train", "recipe=cifra10"), "recipe=cifra10: no such choice; did you mean cifar10"),
        (("train", "recipe@teacher.train=foo"), "recipe=foo: no such choice; there are cifar10"),
        (("train", "--epochs", "3"), "--epochs: no such option; settings are written key=value; did you mean trainer.epochs"),
        (("train", "nst_poly"), "'nst_poly': settings are written key=value"),
        (("train", "loss=[kd", "seed=1"), "a bracket is not closed"),
        (("train", "data=folder"), "`data.num_classes` is required: pass data.num_classes=…"),
        (("train", "--config-dir", "nowhere"), "nowhere' not found"),
        (("train", "taps=last"), "the compared layers are now `layers`"),
        (("train", "loss.nst_poly.taps=last"), "it is now loss.nst_poly.layers"),
        (("train", "knowledge=stored", "knowledge.views=4"), "cache.views"),
        (("train", "teacher.recipe.recipe.epochs=4"), "teacher.train.epochs"),
        (("evaluate",), "`run` or `weights` is required"),
        (("export",), "`run` is required: pass run=…"),
        (("export", "zzz=1"), "there are run, weights, to, formats"),
        (("predict",), "`model` is required: pass model=…"),
        (("predict", "model=x", "images=y", "top=many"), "top: Value 'many' of type 'str' could not be converted to Integer"),
        (("predict", "model=x", "images=y", "format=xml"), "format=xml: one of csv, json is needed"),
        (("reproduce", "table=quick/digit"), "did you mean quick/digits"),
)  # fmt: skip
# Each line's exit status and message, in one process in which torch cannot be imported: that would take seconds.
EACH = """
import contextlib, io, json, sys
sys.modules["torch"] = None
from nst.cli.main import main
for words in json.load(sys.stdin):
    sys.argv = ["nst"]
    said, status = io.StringIO(), 0
    try:
        with contextlib.redirect_stderr(said):
            main(words)
    except SystemExit as end:
        status = end.code
    print(json.dumps([status, said.getvalue()]))
"""


def test_mistakes_are_clear_errors_without_importing_torch(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    typed = json.dumps([words for words, _ in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", EACH], cwd=tmp_path, env=environment, input=typed, capture_output=True, text=True, check=True
    )  # fmt: skip
    for (words, told), line in zip(MISTAKES, done.stdout.splitlines(), strict=True):
        status, said = json.loads(line)
        assert (status, "error: " in said, told in said, "Traceback" in said) == (2, True, True, False), (words, said)
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_says_its_error_alone(nst: Nst) -> None:
    said = nst("train", "teacher.weights=größe=(1) [2]/ü.pt", "loss=kd")
    assert said.status == 1
    assert said.err.startswith("error: teacher.weights=größe=(1) [2]/ü.pt: no such file")


def test_runs_before_any_run_and_a_word_that_is_no_filter(nst: Nst) -> None:
    assert "0 runs yet" in nst("runs").out
    assert "0 runs match" in nst("runs", "data=digits", "loss=*kd*", "sort=best").out
    assert "'finished': key=value is needed" in nst("runs", "finished").error


@pytest.mark.parametrize(
    "text",
    ["epoch=6.ckpt", "epoch=6 (best).pt", "[best] epoch.pt", "größe/ü.pt", "it's.pt", 'a "b".pt', "back\\slash=1", "#1!.pt", "x{1}.pt"],
)  # fmt: skip
def test_a_path_is_accepted_as_the_shell_hands_it_over(text: str) -> None:
    """Also where it is pasted from the `next:` line, which has it as an override."""
    override = as_override(f"teacher.weights={text}")
    assert composed([f"teacher.weights={text}"]).teacher.weights == text
    assert composed([override]).teacher.weights == text


def test_what_hydra_reads_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for argument in ("loss=[kd,nst_poly]", "~schedule.warmup", "outputs='a b'", "x=choice(1,2)"):
        assert as_override(argument) == argument
    assert as_override("outputs=~/runs") == "outputs=/home/me/runs"


def test_extras_are_named_as_they_are_installed() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for plugin, extra in EXTRAS.items():
        error = MissingConfigException(f"In 'hydra/launcher/x': Could not load 'hydra/launcher/{plugin}'.", "")
        assert f"pip install 'nst[{extra}]'" in explain(error)
        assert f"\n{extra} = [" in project


def test_a_folder_of_ones_own_beside_its_outputs(nst: Nst, tmp_path: Path) -> None:
    """`outputs/` holds folders called `digits`, which are no groups of configurations."""
    (tmp_path / "outputs" / "data").mkdir(parents=True)
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("huberish: {weight: 1.0, delta: 2.0, _target_: mine.Huberish}\n")
    assert "  huberish:" in nst("train", "loss=mine", "--cfg", "job").out
    assert "outputs:" not in nst("train", "--help").out
    assert "did you mean mine?" in nst("train", "loss=mime").error
    assert "did you mean loss.huberish.delta" in nst("train", "loss=mine", "loss.huberish.detla=1").error
    assert "mine" in nst("train", "--config-dir", ".", "--help").out


@pytest.mark.parametrize("above", ["", "\ufeff", "# mine\n\n", "\ufeff# mine\n"])
def test_a_file_may_have_a_byte_order_mark_or_comments_above_its_package(above: str, nst: Nst, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text(f"{above}# @package _global_\ndefaults: [override /loss: kd]\nseed: 7\n", "utf-8")
    said = nst("train", "experiment=mine", "--cfg", "job")
    assert "\nseed: 7\n" in said.out, said.err
    assert "  kd:" in said.out


@pytest.mark.parametrize("content", [b"a: [1\n", b"\xff\xfe\x00a", b"a: !!python/object/apply:os.mkdir [ran]\n"])
def test_a_file_that_is_no_plain_yaml_is_named(content: bytes, nst: Nst, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_bytes(content)
    assert "own.yaml" in nst("train", "model=own").error
    assert not (tmp_path / "ran").exists()


def test_layers_never_download_and_list_all_when_asked(nst: Nst) -> None:
    words = ("teacher=torchvision", "teacher.model.pretrained=true", "data=cifar10")
    short = nst("layers", *words)
    assert "teacher: resnet18" in short.out, short.err
    assert re.search(r"use the last: 'layers=\[\{teacher: \"\w+\", student: \"\w+\"\}\]'", short.out)
    assert len(nst("layers", *words, "all=True").out.splitlines()) > len(short.out.splitlines()) + 20
    own = nst("layers", "loss.nst_poly.layers=[{teacher: stage2, student: stage2}]")
    assert "use the last: 'loss.nst_poly.layers=[" in own.out


def test_python_m_nst_and_train_py_from_any_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for call in (["-m", "nst", "train"], [str(ROOT / "train.py")]):
        done = subprocess.run(
            [sys.executable, *call, "--cfg", "job", "seed=7"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )  # fmt: skip
        assert "\nseed: 7\n" in done.stdout


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
