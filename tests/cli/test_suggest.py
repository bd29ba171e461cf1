"""`next:` proposes a command that can be typed: it composes, and its run is refused by nothing."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from nst import build
from nst.cli import suggest
from nst.cli.compose import tidy
from nst.cli.tables import result_table
from nst.config import CONFIGS, RunConfig

Typed = Callable[..., RunConfig]

RUNS = {
    # what was typed: what must be in the proposal
    (): "loss=ce,kd,at,nst_poly,kd_nst_poly",
    ("model=resnet14", "teacher=resnet32", "optim.lr=0.01"): "model=resnet14 teacher=resnet32 optim.lr=0.01",
    ("loss=ce",): "nst train loss=kd",
    ("loss=ce", "teacher=none", "model=vgg8"): "model=vgg8 teacher=resnet20 loss=kd",
    ("loss=ce", "teacher=none", "loss.ce.weight=2", "~schedule.warmup"): "'~schedule.warmup' teacher=resnet20 loss=kd",
    ("experiment=crd/resnet56-resnet20", "teacher=none", "loss=ce"): "nst train experiment=crd/resnet56-resnet20 loss=kd",
    ("loss=kd", "tracker=[tensorboard]"): "tensorboard --logdir outputs",
    ("loss=kd", "tracker=[]"): "nst export 'run=outputs/a run'",
    ("experiment=crd/resnet56-resnet20", "data.root=/data/cifar 100"): "'data.root=/data/cifar 100'",
    ("experiment=crd/resnet56-resnet20", "loss=ce", 'data.root="it\'s here"'): "loss=kd",
    ("layers=[{teacher: stage2, student: stage2}]", "seed=3"): "seed=0,1,2",
    ("loss.nst_poly.layers=[{teacher: stage2, student: stage2}]", "loss.nst_poly.weight=2"): "loss.nst_poly.weight=2 seed=0,1,2",
    ("cache.views=16", "cache.path=cache"): "cache.views=16 cache.path=cache seed=0,1,2",
    ("optim=adamw", "schedule=cosine", "outputs=my runs"): "'outputs=my runs'",
}  # fmt: skip


def jobs(words: list[str]) -> list[RunConfig]:
    """The runs of a command line."""
    words = tidy(words)
    overrides = OverridesParser.create().parse_overrides([word for word in words if not word.startswith("-")])
    found = []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for job in BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]:
            found.append(build.settings(hydra.compose("config", list(job))))
    return found


@pytest.fixture
def as_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Typed]:
    """Settings of a run, as if Hydra had read these words."""
    monkeypatch.chdir(tmp_path)

    def compose(*words: str, mode: RunMode = RunMode.RUN) -> RunConfig:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            settings = build.settings(hydra.compose("config", tidy(words)))
            cfg = hydra.compose("config", tidy(words), return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.mode = mode
            cfg.hydra.runtime.cwd = str(tmp_path)
        HydraConfig.instance().set_config(cfg)
        return settings

    yield compose
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize("typed", RUNS, ids=" ".join)
def test_the_proposal_can_be_typed(typed: tuple[str, ...], as_typed: Typed) -> None:
    settings = as_typed(*typed)
    proposed = suggest.next_command(settings, "outputs/a run")
    assert proposed is not None
    assert RUNS[typed] in proposed
    words = shlex.split(proposed)
    if words[:2] != ["nst", "train"]:
        assert words[-1] in ("outputs", "run=outputs/a run")
        return
    found = jobs(words[2:])
    assert len(found) == (15 if "loss=ce,kd" in proposed else 3 if "-m" in words else 1)
    for run in found if len(found) < 4 else found[::3]:
        build.networks(run)


def test_a_job_of_a_sweep_proposes_nothing(as_typed: Typed) -> None:
    assert suggest.next_command(as_typed("seed=1", mode=RunMode.MULTIRUN), "x") is None


def test_a_folder_of_configurations_stays(as_typed: Typed, tmp_path: Path) -> None:
    settings = as_typed()
    cfg = HydraConfig.instance().cfg
    assert cfg is not None
    own = [tmp_path, tmp_path / "configs", tmp_path / "else where"]
    OmegaConf.set_readonly(cfg.hydra, False)
    OmegaConf.set_readonly(cfg.hydra.runtime, False)
    with open_dict(cfg):
        cfg.hydra.runtime.config_sources = [ConfigSourceInfo(str(p), "own", "x") for p in own]
    proposed = suggest.next_command(settings, "x")
    assert f"'--config-dir={tmp_path}/else where'" in str(proposed)
    assert str(proposed).count("--config-dir") == 1


def test_a_teacher_measured_on_held_out_images_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The images that the student was evaluated on stand below."""
    teacher = {"name": "big", "parameters": 70, "top1": 96.0, "evaluated_on": "val"}
    test = {"top1": 90.0, "images": 360}
    summary = {
        "teacher": teacher, "test": test, "student": {"name": "small", "parameters": 7}, "evaluated_on": "val",
        "best": {"epoch": 1, "top1": 90.0}, "seconds": 1.0, "steps": 2, "folder": "outputs/x",
    }  # fmt: skip
    result_table(RunConfig(), summary)
    assert "96.00 % top-1 (on the val images)" in capsys.readouterr().out
    result_table(RunConfig(), summary | {"teacher": teacher | {"evaluated_on": "test"}})
    assert "(on the val images)" not in capsys.readouterr().out
