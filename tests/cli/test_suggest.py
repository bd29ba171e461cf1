"""`next:` proposes a command that can be pasted into a shell: it composes, and its run is refused by nothing."""

import shlex
from pathlib import Path

import pytest
from omegaconf import DictConfig
from tests.cli.conftest import Nst

from nst import build
from nst.cli import train
from nst.cli.compose import composed
from nst.config import RunConfig

RUNS = {
    # what was typed: what must be in the proposal
    ("model=resnet14", "teacher=resnet32", "optim=adamw", "outputs=my größe", "teacher.weights=epoch=6 (best).pt"): "loss=ce,kd,at,nst_poly,kd_nst_poly",
    ("loss=ce", "teacher=none", "model=vgg8"): "nst train model=vgg8 loss=kd",
    ("loss=ce", "teacher=none", "loss.ce.weight=2", "~schedule.warmup"): "'~schedule.warmup' loss=kd",
    ("experiment=crd/resnet56-resnet20", "teacher=none", "loss=ce", "data.root=x"): "nst train experiment=crd/resnet56-resnet20 data.root=x loss=kd",
    ("loss=kd", "tracker=[]"): "nst export 'run=outputs/a run'",
    ("experiment=crd/resnet56-resnet20", "loss=ce", "data.root=it's here"): "loss=kd",
    ("cache.views=16", "cache.path=cache"): "cache.views=16 cache.path=cache seed=0,1,2",
}  # fmt: skip


@pytest.mark.parametrize("typed", RUNS, ids=" ".join)
def test_the_proposal_can_be_pasted(typed: tuple[str, ...], nst: Nst, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run itself is left out; what a shell makes of the proposal is composed, and built where it is one run."""
    proposals: list[str | None] = []

    def run(cfg: object) -> None:
        proposals.append(train.next_command(build.settings(cfg), "outputs/a run"))  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(train, "run", run)
    assert nst("train", *typed).status == 0
    [proposed] = proposals
    assert proposed is not None
    assert RUNS[typed] in proposed
    words = shlex.split(proposed)
    if words[:2] != ["nst", "train"]:
        assert words[-1] == "run=outputs/a run"
        return
    jobs: list[DictConfig] = []
    monkeypatch.setattr(train, "task", jobs.append)
    assert nst("train", *words[2:]).status == 0
    assert len(jobs) == (15 if "loss=ce,kd" in proposed else 3 if "-m" in words else 1)
    first, last = build.settings(composed(typed)), build.settings(jobs[-1])
    build.networks(last)
    assert (last.outputs, last.data["root"]) == (first.outputs, first.data["root"])
    assert first.teacher.model is None or last.teacher.weights == first.teacher.weights


def test_a_folder_of_configurations_stays(nst: Nst, tmp_path: Path) -> None:
    (tmp_path / "else where" / "loss").mkdir(parents=True)
    proposals: list[str | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run", lambda cfg: proposals.append(train.next_command(build.settings(cfg), "x")))
        assert nst("train", "--config-dir", "else where").status == 0
    assert f"'--config-dir={tmp_path}/else where'" in str(proposals[0])


def test_a_teacher_measured_on_held_out_images_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The images that the student was evaluated on stand below."""
    teacher = {"name": "big", "parameters": 70, "top1": 96.0, "evaluated_on": "val"}
    summary = {
        "teacher": teacher, "test": {"top1": 90.0, "images": 360}, "student": {"name": "small", "parameters": 7}, "evaluated_on": "val",
        "best": {"epoch": 1, "top1": 90.0}, "seconds": 1.0, "steps": 2, "folder": "outputs/x",
    }  # fmt: skip
    train.print_result(RunConfig(), summary)
    assert "top-1 96.00 % (on the val images)" in capsys.readouterr().out
    train.print_result(RunConfig(), summary | {"teacher": teacher | {"evaluated_on": "test"}})
    assert "(on the val images)" not in capsys.readouterr().out
