"""`configs/model` and `configs/teacher`: the same names, each of which composes and builds."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = [
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
    "resnet50_cifar",
    "preact_resnet164",
    "preact_resnet1001",
    "preact_resnet101",
    "wrn16_2",
    "wrn40_1",
    "wrn40_2",
    "vgg8",
    "vgg13",
    "mobilenet_v2_half",
    "shufflenet_v1",
    "shufflenet_v2",
    "inception_bn_small",
    "inception_bn",
    "torchvision",
    "timm",
]


def composed(*overrides: str) -> DictConfig:
    """The two groups below the least of a run."""
    root = {
        "defaults": ["_self_", {"model": "resnet20"}, {"teacher": "none"}],
        "data": {"num_classes": 7, "channels": 1, "size": 64},
    }
    ConfigStore.instance().store(name="models_only", node=OmegaConf.create(root))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("models_only", overrides=list(overrides))


def build(node: DictConfig) -> torch.nn.Module:
    arguments = {str(key): value for key, value in node.items() if key != "name"}
    with torch.device("meta"):
        return instantiate(arguments)


def test_the_groups_hold_the_same_names():
    assert {path.stem for path in (CONFIGS / "model").glob("*.yaml")} == set(NAMES)
    assert {path.stem for path in (CONFIGS / "teacher").glob("*.yaml")} == {*NAMES, "none"}


@pytest.mark.parametrize("name", NAMES)
def test_composes_and_builds(name):
    if name == "timm":
        pytest.importorskip("timm")
    run = composed(f"model={name}", f"teacher={name}")
    assert run.model == run.teacher.model
    assert run.model.name == ("resnet18" if name in ("torchvision", "timm") else name)
    model = build(run.teacher.model)
    assert "last" in model.named_layers
    size = 64 if name in ("inception_bn", "preact_resnet101", "torchvision", "timm") else 8
    with torch.device("meta"):
        assert model.eval()(torch.empty(2, 1, size, size)).shape == (2, 7)


def test_crd_networks_start_as_crds_do():
    """Projections by a key; the fourfold networks, which are CRD's own, start with a drawn bias by default."""
    run = composed("model=resnet20", "model.shortcut=B", "model.init=crd", "teacher=resnet32x4")
    model = instantiate({key: value for key, value in run.model.items() if key != "name"})
    assert "layer2.0.downsample.0.weight" in model.state_dict()
    assert model.fc.bias.all()
    assert run.teacher.model.init == "crd"
    assert composed().model.init == "zero_bias"


def test_no_teacher():
    assert composed().teacher.model is None


def test_external_name_follows_the_architecture_on_both_sides():
    run = composed("model=torchvision", "model.arch=resnet34", "teacher=timm", "teacher.model.arch=resnet101")
    assert (run.model.name, run.teacher.model.name) == ("resnet34", "resnet101")
