"""`configs/model` and `configs/teacher`: the same names, each of which composes and builds."""

import pytest
import torch
from hydra.utils import instantiate
from tests.conftest import ROOT, Compose
from torch import nn


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml")))
def test_composes_and_builds_on_both_sides(name: str, compose: Compose) -> None:
    if name == "timm":
        pytest.importorskip("timm")
    run = compose(f"model={name}", f"teacher={name}", "data.num_classes=7")
    # a teacher of timm or torchvision reads its input size from the library's record
    assert {**run.teacher.model, "input_size": None} == {**run.model, "input_size": None}
    assert run.model.name == ("resnet18" if name in ("torchvision", "timm") else name)
    with torch.device("meta"):
        model = instantiate({str(key): value for key, value in run.model.items() if key != "name"})
    channels = next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    classes = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert (channels, classes) == (1, 7)
    assert "last" in model.named_layers


def test_names_and_keys_of_networks_of_others(compose: Compose) -> None:
    """An external network is called by its architecture; the fourfold networks, which are CRD's own, start with a drawn bias."""
    run = compose("model=torchvision", "model.arch=resnet34", "teacher=timm", "teacher.model.arch=resnet101")
    assert (run.model.name, run.teacher.model.name) == ("resnet34", "resnet101")
    run = compose("model=resnet20", "model.shortcut=B", "teacher=resnet32x4")
    assert (run.model.shortcut, run.model.init, run.teacher.model.init) == ("B", "zero_bias", "crd")
