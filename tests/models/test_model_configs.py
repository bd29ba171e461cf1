"""`configs/model` and `configs/teacher`: the same names, each of which composes and builds."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def composed(*overrides: str) -> DictConfig:
    """The two groups below the least of a run."""
    root = {
        "defaults": ["_self_", {"model": "resnet20"}, {"teacher": "none"}],
        "data": {"num_classes": 7, "channels": 1, "size": 64},
    }
    ConfigStore.instance().store(name="models_only", node=OmegaConf.create(root))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("models_only", overrides=list(overrides))


@pytest.mark.parametrize("name", NAMES)
def test_composes_and_builds_on_both_sides(name):
    if name == "timm":
        pytest.importorskip("timm")
    run = composed(f"model={name}", f"teacher={name}")
    # a teacher of timm or torchvision reads its input size from the library's record
    assert {**run.teacher.model, "input_size": None} == {**run.model, "input_size": None}
    assert run.model.name == ("resnet18" if name in ("torchvision", "timm") else name)
    size = 64 if name in ("inception_bn", "preact_resnet101", "torchvision", "timm") else 8
    with torch.device("meta"):
        model = instantiate({str(key): value for key, value in run.model.items() if key != "name"})
        assert model.eval()(torch.empty(2, 1, size, size)).shape == (2, 7)
    assert "last" in model.named_layers


def test_the_name_of_an_external_network_is_its_architecture():
    run = composed("model=torchvision", "model.arch=resnet34", "teacher=timm", "teacher.model.arch=resnet101")
    assert (run.model.name, run.teacher.model.name) == ("resnet34", "resnet101")


def test_keys_of_crds_networks():
    """The fourfold networks, which are CRD's own, start with a drawn bias by default."""
    run = composed("model.shortcut=B", "teacher=resnet32x4")
    assert (run.model.shortcut, run.model.init, run.teacher.model.init) == ("B", "zero_bias", "crd")
