"""Taps hand over the right tensors, leave nothing behind, and name what they cannot find."""

import pytest
import torch
from torch import Tensor, nn

from nst.taps import LOGITS, Taps, feature_shapes, resolve


class Net(nn.Module):
    """Convolution, a ReLU used twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 5)
        self.taps = {"last": "relu", "last_pre_relu": "relu:input"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        self.before = -x + 0.1
        return self.fc(self.relu(self.before).mean((2, 3)))


def test_features_are_the_outputs_and_inputs_of_the_last_call() -> None:
    net, x = Net(), torch.randn(2, 3, 6, 6)
    taps = Taps(net, ["last", "last_pre_relu", "conv"])
    net(x)
    features = taps.read()
    assert torch.equal(features["conv"], net.conv(x))
    assert torch.equal(features["last_pre_relu"], net.before)
    assert torch.equal(features["last"], net.before.relu())


def test_reading_hands_over_and_removing_detaches() -> None:
    net = Net()
    taps = Taps(net, ["last"])
    net(torch.randn(1, 3, 4, 4))
    assert set(taps.read()) == {"last"}
    assert taps.read() == {}
    taps.remove()
    net(torch.randn(1, 3, 4, 4))
    assert taps.read() == {}


def test_gradients_flow_through_a_tap() -> None:
    net = Net()
    taps = Taps(net, ["last_pre_relu"])
    net(torch.randn(2, 3, 4, 4))
    taps.read()["last_pre_relu"].sum().backward()
    assert net.conv.weight.grad is not None
    assert net.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("tap", "near"), [("lst", "last"), ("conv1", "conv"), ("relu:output", "relu")])
def test_unknown_layers_get_the_nearest_names(tap: str, near: str) -> None:
    with pytest.raises(ValueError, match=near) as caught:
        resolve(Net(), tap)
    assert tap in str(caught.value)


def test_shapes_are_found_without_changing_the_model() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(7))
    net(torch.zeros(2, 3, 8, 8))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert feature_shapes(net, ["1", LOGITS], (3, 8, 8)) == {"1": (4, 4, 4), LOGITS: (7,)}
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_layer_that_is_not_reached_is_an_error() -> None:
    net = Net()
    net.unused = nn.Identity()
    with pytest.raises(ValueError, match="unused"):
        feature_shapes(net, ["unused"], (3, 4, 4))
