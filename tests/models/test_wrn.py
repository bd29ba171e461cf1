import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nst.models as models
from nst.models.wrn import WideBlock, WideResNet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Zagoruyko & Komodakis (2016), table 4: WRN-40-1 0.6 M, WRN-40-2 2.2 M (10 classes). Exact numbers: CRD's benchmark
# (Tian et al., 2020), networks of its published code, 100 classes.
@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("name", "parameters"), [("wrn16_2", 703_284), ("wrn40_1", 569_780), ("wrn40_2", 2_255_156)])
def test_parameters(name, parameters):
    assert count(getattr(models, name)(num_classes=100)) == parameters


@pytest.mark.usefixtures("meta")
def test_parameters_of_the_paper():
    assert f"{count(models.wrn40_1(num_classes=10)) / 1e6:.1f}" == "0.6"
    assert f"{count(models.wrn40_2(num_classes=10)) / 1e6:.1f}" == "2.2"


@pytest.mark.parametrize(("inputs", "stride"), [(16, 1), (16, 2), (32, 1)])
def test_block_is_the_stated_function(inputs, stride):
    block = WideBlock(inputs, 32, stride).double().eval()
    nn.init.normal_(block.bn1.bias)
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64)
    first = F.relu(block.bn1(x))
    out = F.conv2d(first, block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(F.relu(block.bn2(out)), block.conv2.weight, padding=1)
    if block.convShortcut is None:
        assert inputs == 32
        expected = x + out
    else:
        expected = F.conv2d(first, block.convShortcut.weight, stride=stride) + out
    torch.testing.assert_close(block(x), expected)


def test_taps_are_raw_sums_and_their_activations(capture):
    model = models.wrn16_2().eval()
    with torch.no_grad():
        _, features = capture(model, torch.randn(2, 3, 8, 8))
        following = {1: model.block2.layer[0].bn1, 2: model.block3.layer[0].bn1, 3: model.bn1}
        for k, bn in following.items():
            torch.testing.assert_close(features[f"stage{k}_pre_relu"], bn(features[f"stage{k}_out"]))
            torch.testing.assert_close(features[f"stage{k}"], F.relu(features[f"stage{k}_pre_relu"]))
        for suffix in ("", "_pre_relu", "_out"):
            assert torch.equal(features[f"last{suffix}"], features[f"stage3{suffix}"])
        torch.testing.assert_close(features["pooled"], features["last"].mean(dim=(2, 3)))


def test_names_are_those_of_crd():
    names = set(models.wrn40_2().state_dict())
    assert {"conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.5.conv2.weight", "bn1.bias"} < names
    assert "block1.layer.0.convShortcut.weight" not in models.wrn40_1().state_dict()


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match=r"depth=20: .* 6n \+ 4"):
        WideResNet(20, 2)
    with pytest.raises(ValueError, match="width=0"):
        WideResNet(16, 0)
