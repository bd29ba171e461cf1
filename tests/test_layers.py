"""Listing layers: names, shapes, roles, overwritten outputs, pairs of one map size."""

import pytest
import torch
from torch import Tensor, nn

from nst.layers import describe, layers, matching, pairs_text
from nst.models import resnet8, torchvision_model
from nst.taps import feature_shapes


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
    found = {layer.name: layer for layer in layers(model, (1, 8, 8))}
    assert found["conv1"].shape == (16, 8, 8)
    assert found["layer2.0.conv1"].kind == "Conv2d"
    assert found["layer3"].shape == (64, 2, 2)
    assert set(found["layer3"].roles) == {"last", "stage3"}
    assert found["fc"].shape == (10,)
    assert all(layer.intact for layer in found.values())
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_an_output_that_is_overwritten_is_marked_and_never_paired() -> None:
    found = layers(Overwriting(), (1, 8, 8))
    assert [layer.intact for layer in found] == [False, True, True]
    assert "conv   Conv2d  6×4×4   overwritten by what follows: do not tap" in describe("student", "own", found)
    assert [(t.name, s.name) for t, s in matching(found, found)] == [("relu", "relu")]


@pytest.mark.parametrize("tap", ["conv", "relu:input"])
def test_a_tap_that_is_overwritten_is_refused(tap: str) -> None:
    with pytest.raises(ValueError, match=f"layer '{tap}' of Overwriting is overwritten"):
        feature_shapes(Overwriting(), [tap], (1, 8, 8))
    assert feature_shapes(Overwriting(), ["relu", "logits"], (1, 8, 8))["relu"] == (6, 4, 4)


def test_pairs_are_the_last_layers_of_each_common_map_size() -> None:
    teacher = layers(torchvision_model("resnet18", 10), (3, 64, 64))
    student = layers(resnet8(), (3, 64, 64))
    pairs = [(t.name, s.name) for t, s in matching(teacher, student)]
    assert pairs == [("relu", "layer2"), ("layer1", "layer3")]
    text = pairs_text(matching(teacher, student), "nst_poly")
    assert "stage1 (64×16×16) → last (64×16×16)" in text
    assert text.endswith("'loss.nst_poly.taps=[{teacher: stage1, student: last}]'")
    assert "no two layers" in pairs_text([], "at")


def test_running_statistics_stay() -> None:
    model = resnet8(in_channels=1).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    layers(model, (1, 8, 8))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
