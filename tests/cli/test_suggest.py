"""`next:` proposes a command that can be pasted into a shell: it composes, and its run is refused by nothing."""

import shlex
from pathlib import Path

import pytest
from omegaconf import DictConfig
from tests.cli.conftest import Nst

from nst import build
from nst.cli import train
from nst.config import RunConfig

RUNS = {
    # what was typed: what is proposed
    "loss=kd tracker=[]": "nst export 'run=outputs/a run'",
    "loss=ce teacher=none model=vgg8": "nst train model=vgg8 loss=kd",
    "loss=ce loss.ce.weight=2 ~schedule.warmup": "nst train '~schedule.warmup' loss=kd",
    'experiment=crd/resnet56-resnet20 teacher=none loss=ce "data.root=it\'s here"': "",
    "loss=ce 'outputs=my größe' 'teacher.weights=epoch=6 (best).pt' --config-dir 'else where'": "",
}


@pytest.mark.parametrize("typed", RUNS)
def test_the_proposal_can_be_pasted(typed: str, nst: Nst, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run itself is left out; what a shell makes of the proposal is composed and built."""
    (tmp_path / "else where" / "loss").mkdir(parents=True)
    settings: list[RunConfig] = []
    proposals: list[str] = []

    def run(cfg: DictConfig) -> None:
        settings.append(build.settings(cfg))
        proposals.append(train.next_command(settings[-1], "outputs/a run"))

    monkeypatch.setattr(train, "run", run)
    assert nst("train", *shlex.split(typed)).status == 0
    assert proposals[0] == (RUNS[typed] or proposals[0])
    words = shlex.split(proposals[0])
    if words[1] == "train":
        assert nst(*words[1:]).status == 0
        first, last = settings
        build.networks(last)
        assert set(last.loss) == {"ce", "kd"}
        assert (last.outputs, last.data["root"]) == (first.outputs, first.data["root"])
        assert ("--config-dir" in typed) == any(word.startswith("--config-dir=") for word in words)
        assert ("teacher.weights" in typed) == (last.teacher.weights == "epoch=6 (best).pt")
