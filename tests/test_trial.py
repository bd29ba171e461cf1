"""What training would fail at is said before any work, and by a dry run."""

from typing import Any

import pytest
import torch
from tests.conftest import Compose
from tests.faults.small import Small
from torch import Tensor, nn

from nst import build, run as runs
from nst.cli.train import run


class Viewing(Small):
    """Flattens by `view`, which images in channels_last do not allow."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.relu(self.bn(self.conv(images)))
        return self.fc(maps.view(len(maps), -1).view(len(maps), 8, -1).mean(2))


class TwoOutputs(Small):
    """A second output in training mode."""

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return (logits, logits) if self.training else logits


class Skipping(Small):
    """A block that training skips."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.block = nn.Conv2d(1, 1, 1)
        self.named_layers = {"last": "relu", "deep": "block"}

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if self.training else self.block(images))


KINDS = {
    "Viewing": ([], r"model fails in training mode: view size .*trainer\.channels_last=true, precision=fp32"),
    "TwoOutputs": ([], r"model: in training mode it gives a tuple, not logits"),
    "Skipping": (["layers={last: [{teacher: stage1, student: deep}]}"], "model: layer deep is not reached"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_tried_as_it_is_trained(
    compose: Compose, tiny: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    own, said = KINDS[kind]
    monkeypatch.setattr(runs, "prepare_teacher", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=said):
        run(compose(*tiny, "loss=vid", f"model._target_=tests.test_trial.{kind}", "++model.layers=null", *own))


def test_a_teacher_is_tried_too(compose: Compose, tiny: list[str]) -> None:
    own = [*tiny, "loss=kd", "teacher.model._target_=tests.test_trial.Viewing", "dry_run=true"]
    with pytest.raises(ValueError, match=r"teacher\.model fails in evaluation mode: .*trainer\.channels_last=true"):
        run(compose(*own))
    assert run(compose(*own, "trainer.channels_last=false")) == {}


def test_trying_changes_nothing(compose: Compose, tiny: list[str]) -> None:
    """Neither weights and statistics nor what a network keeps beside them."""
    settings = build.settings(compose(*tiny, "loss=ce", "model._target_=tests.faults.small.Drawing"))
    networks = build.networks(settings)
    before = {name: value.clone() for name, value in networks.distiller.state_dict().items()}
    runs.try_networks(settings, networks.distiller, None)
    after = networks.distiller.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert networks.distiller.student.seen == 0
    assert networks.distiller.hooks.read() == {}
