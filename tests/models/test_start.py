"""How a network starts: `weights`, `drop`, `freeze`, and the size at which it looks at images."""

import copy
from pathlib import Path

import pytest
import torch
from tests.conftest import Compose
from torch import nn

from nst import build
from nst.cli.train import run
from nst.export import finished_run
from nst.models import resnet8
from nst.models.parts import freeze
from nst.models.weights import read_weights, save_weights


def test_a_run_starts_from_weights_and_keeps_what_is_frozen(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    start = resnet8(num_classes=7, in_channels=1)
    save_weights(tmp_path / "start.safetensors", start)
    words = [f"++model.weights={tmp_path}/start.safetensors", "++model.drop=[fc]", "++model.freeze=[conv1,bn1,layer1]"]
    folder = run(compose(*tiny, "loss=ce", "trainer.epochs=1", *words))["folder"]
    (tmp_path / "start.safetensors").unlink()  # the run has its own weights
    trained, before = finished_run(folder).student().state_dict(), start.state_dict()
    kept = {name for name, value in trained.items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if name.startswith(("conv1", "bn1", "layer1"))}


def test_only_named_parts_may_be_missing_from_weights(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    backbone = resnet8(num_classes=10, in_channels=1)
    backbone.set_submodule("fc", nn.Identity())
    save_weights(tmp_path / "backbone", backbone)
    weights, drop = f"++model.weights={tmp_path}/backbone", "++model.drop=[fc]"
    for words, message in (
        ([weights], r"missing: fc\.weight, fc\.bias.*model\.drop=\[fc\]"),
        ([drop], r"drop=\['fc'\].* no weights"),
        (["++model.freeze=[layer9]"], r"model: freeze=\['layer9'\].*nearest: layer"),
    ):
        with pytest.raises(ValueError, match=message):
            build.networks(build.settings(compose(*tiny, *words)))
    build.networks(build.settings(compose(*tiny, weights, drop)))


def test_a_teacher_of_another_size_looks_at_images_of_its_own(
    compose: Compose, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The size is stored with weights; `teacher.input_size` overrides it."""
    teacher = resnet8(num_classes=10, in_channels=1)
    save_weights(tmp_path / "teacher.safetensors", teacher, {"mean": "0.3", "std": "0.4", "size": "16"})
    words = ["loss=[kd,nst_poly]", "trainer.epochs=1", f"teacher.weights={tmp_path}/teacher.safetensors"]
    shapes = build.networks(build.settings(compose(*tiny, *words))).teacher_shapes
    assert shapes["last"] == (64, 4, 4)
    own = build.networks(build.settings(compose(*tiny, *words, "teacher.input_size=8"))).teacher_shapes
    assert own["last"] == (64, 2, 2)
    folder = Path(run(compose(*tiny, *words))["folder"])
    assert "mean 0.3, std 0.4, as stored with its weights; looked at as 16×16" in capsys.readouterr().out
    assert read_weights(folder / "student.safetensors")[1]["size"] == "8"


def test_frozen_parts_stay_as_they_are() -> None:
    """Whatever mode is set, and in a deep copy (of an average of the weights) too."""
    model = resnet8()
    model.layer1.add_module("drop", nn.Dropout())
    freeze(model, ["conv1", "bn1", "layer1", "fc.bias"])
    model.train()
    model = copy.deepcopy(model).train().eval().train()
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.1).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("layer2", "layer3"))} | {"fc.weight"}
    assert model.layer2.training
    assert model.layer1.drop.training  # is drawn as before
    with pytest.raises(ValueError, match="nothing of Linear is left to train"):
        freeze(nn.Linear(2, 2), ["weight", "bias"])
