"""Listing layers: names, shapes, roles, overwritten outputs, pairs of one map size."""

import re

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from nst.cli.layers import layers_of, listing, matching
from nst.layers import feature_shapes
from nst.models import resnet8, timm_model, torchvision_model


class Overwriting(nn.Module):
    """Its ReLU works in place, so the convolution's output is gone after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.conv(x)).mean((2, 3)))


def test_names_shapes_and_roles() -> None:
    model = resnet8(in_channels=1).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = {layer.name: layer for layer in layers_of(model, (1, 8, 8))}
    assert found["conv1"].shape == (16, 8, 8)
    assert found["layer2.0.conv1"].kind == "Conv2d"
    assert found["layer3"].shape == (64, 2, 2)
    assert set(found["layer3"].names) == {"last", "stage3", "last_out", "stage3_out"}
    assert found["fc"].shape == (10,)
    assert all(layer.intact for layer in found.values())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_an_output_that_is_overwritten_is_marked_and_never_paired(capsys: pytest.CaptureFixture[str]) -> None:
    found = layers_of(Overwriting(), (1, 8, 8))
    assert [layer.intact for layer in found] == [False, True, True]
    Console(width=100).print(listing("student: own", found, every=True))
    assert re.search(r"conv +Conv2d +6×4×4 +overwritten by what follows: cannot be compared", capsys.readouterr().out)
    assert [(t.name, s.name) for t, s in matching(found, found)] == [("relu", "relu")]


@pytest.mark.parametrize("layer", ["conv", "relu:input"])
def test_a_layer_that_is_overwritten_is_refused(layer: str) -> None:
    with pytest.raises(ValueError, match=f"layer '{layer}' of Overwriting is overwritten"):
        feature_shapes(Overwriting(), [layer], (1, 8, 8))
    assert feature_shapes(Overwriting(), ["relu", "logits"], (1, 8, 8))["relu"] == (6, 4, 4)


def test_a_layer_that_dropout_overwrites_in_training_is_refused_for_a_student() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.5, inplace=True), nn.BatchNorm2d(4), nn.Flatten())
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in net.state_dict().items()}
    assert feature_shapes(net, ["1"], (1, 8, 8))["1"] == (4, 6, 6)  # as a teacher it runs without dropout
    with pytest.raises(ValueError, match="layer '1' of Sequential is overwritten by what follows, such as an in-place"):
        feature_shapes(net, ["1"], (1, 8, 8), trained=True)
    assert feature_shapes(net, ["2", "3"], (1, 8, 8), trained=True)["2"] == (4, 6, 6)
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_pairs_are_the_last_layers_of_each_common_map_size() -> None:
    teacher = layers_of(torchvision_model("resnet18", 10), (3, 64, 64))
    student = layers_of(resnet8(), (3, 64, 64))
    pairs = [(t.name, s.name) for t, s in matching(teacher, student)]
    assert pairs == [("relu", "layer2"), ("layer1", "layer3")]
    assert [(t.short, s.short) for t, s in matching(teacher, student)][-1] == ("stage1", "last")


def test_short_is_named_layers_or_the_ends_of_map_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    found = layers_of(torchvision_model("resnet18", 10), (3, 64, 64))
    Console(width=100).print(listing("student: resnet18", found, every=False))
    text = capsys.readouterr().out
    assert re.search(r"layer4.1.relu:input +ReLU +512×2×2 +stage4_pre_relu, last_pre_relu", text)
    assert "and 63 more layers: all=true lists them" in text
    assert listing("student: own", layers_of(Overwriting(), (1, 8, 8)), every=False).row_count == 1


def test_layers_of_a_vit_have_the_shapes_that_hooks_hand_over() -> None:
    pytest.importorskip("timm")
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    found = {
        layer.name: layer
        for layer in layers_of(timm_model("vit_tiny_patch16_224", 5, 3, False, 32, 48, small), (3, 32, 32))
    }
    assert found["blocks.1"].shape == (24, 3, 3)
    assert set(found["blocks.1"].names) == {"block2", "last", "last_out"}
    assert "blocks.0.attn.q_norm" not in found
