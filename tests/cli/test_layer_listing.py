"""Listing layers: names, shapes, overwritten outputs, pairs of one map size; what is overwritten is refused in a run."""

import re

import pytest
import torch
from rich.console import Console
from torch import nn

from nst.cli.layers import layers_of, listing, matching
from nst.layers import feature_shapes
from nst.models import resnet8, timm_model, torchvision_model


def test_names_and_shapes() -> None:
    model = resnet8(in_channels=1).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = {layer.names[-1]: layer for layer in layers_of(model, (1, 8, 8))}
    assert (found["layer2.0.conv1"].kind, found["conv1"].shape, found["fc"].shape) == ("Conv2d", (16, 8, 8), (10,))
    assert set(found["layer3"].names[:-1]) == {"last", "stage3", "last_out", "stage3_out"}
    assert all(layer.intact for layer in found.values())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_an_output_that_is_overwritten_is_marked_never_paired_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By a ReLU in place; by a dropout in place for a student, which runs it, not for a teacher."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Flatten())
    found = layers_of(net, (1, 8, 8))
    assert [layer.intact for layer in found] == [False, True, True, True]
    Console(width=100).print(listing("student: own", found, every=True))
    assert re.search(r"0 +Conv2d +4×6×6 +overwritten by what follows: cannot be compared", capsys.readouterr().out)
    assert [(t.names[0], s.names[0]) for t, s in matching(found, found)] == [("2", "2")]
    assert listing("student: own", found, every=False).row_count == 1
    draw, shape = torch.get_rng_state(), (1, 8, 8)
    for layer, trained in (("0", False), ("1:input", False), ("1", True)):
        with pytest.raises(ValueError, match=f"layer '{layer}' of Sequential is overwritten"):
            feature_shapes(net, [layer], shape, trained=trained)
    assert feature_shapes(net, ["1", "2"], shape) == feature_shapes(net, ["2"], shape, trained=True) | {"1": (4, 6, 6)}
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), draw)


def test_short_is_named_layers_and_pairs_are_the_last_of_each_common_size(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = layers_of(torchvision_model("resnet18", 10), (3, 64, 64))
    pairs = matching(teacher, layers_of(resnet8(), (3, 64, 64)))
    assert [(t.names[-1], s.names[-1]) for t, s in pairs] == [("relu", "layer2"), ("layer1", "layer3")]
    assert [layer.names[0] for layer in pairs[-1]] == ["stage1", "last"]
    Console(width=100).print(listing("teacher: resnet18", teacher, every=False))
    text = capsys.readouterr().out
    assert re.search(r"layer4.1.relu:input +ReLU +512×2×2 +stage4_pre_relu, last_pre_relu", text)
    assert "and 63 more layers: all=true lists them" in text


def test_layers_of_a_vit_have_the_shapes_that_hooks_hand_over() -> None:
    pytest.importorskip("timm")
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    model = timm_model("vit_tiny_patch16_224", 5, 3, False, 32, 48, small)
    found = {layer.names[-1]: layer for layer in layers_of(model, (3, 32, 32))}
    assert found["blocks.1"].shape == (24, 3, 3)
    assert set(found["blocks.1"].names[:-1]) == {"block2", "last", "last_out"}
    assert "blocks.0.attn.q_norm" not in found
