"""The map of logits of every network: its mean is the logits, it is computed when asked for, and a network without it is refused."""

import copy

import pytest
import torch
from tests.models.conftest import capture
from torch import nn

import nst.models
from nst.layers import feature_shapes, resolve
from nst.models import timm_model, torchvision_model

OWN = ("resnet8", "vgg8", "mobilenet_v2_half")
TORCHVISION = ("densenet121", "mnasnet0_5", "swin_t")
TIMM = ("test_efficientnet", "resnetv2_50")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "one's own":
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7))
    if name in TORCHVISION:
        return torchvision_model(name, 7)
    if name in TIMM:
        pytest.importorskip("timm")
        return timm_model(name, 7)
    return getattr(nst.models, name)(num_classes=7)


@pytest.mark.parametrize("name", [*OWN, "inception_bn", *TORCHVISION, *TIMM, "one's own"])
def test_its_mean_is_the_logits(name: str) -> None:
    size = 32 if name in OWN else 64
    model = network(name).eval()
    shapes = feature_shapes(model, ["logit_map", "cam"], (3, size, size))
    logits, maps = capture(model, torch.rand(2, 3, size, size), ["logit_map", "cam"])
    assert {layer: tuple(value.shape[1:]) for layer, value in maps.items()} == shapes
    whole, cam = maps["logit_map"], maps["cam"]
    assert (whole.shape[1], whole.shape[2] > 1) == (7, True)
    torch.testing.assert_close(whole.mean((2, 3)), logits, rtol=1e-3, atol=1e-4)
    bias = (whole - cam).mean((0, 2, 3))
    torch.testing.assert_close(cam + bias[:, None, None], whole, rtol=1e-3, atol=1e-4)


def test_other_endings_are_refused() -> None:
    perceptron = nn.Sequential(nn.Flatten(), nn.Linear(12288, 6), nn.ReLU(), nn.Linear(6, 4))
    for model in (torchvision_model("squeezenet1_1", 5), perceptron, nn.Sequential(nn.Conv2d(3, 6, 3))):
        with pytest.raises(ValueError, match="so it has no map of logits"):
            feature_shapes(model, ["logit_map"], (3, 64, 64))


def test_it_has_no_weights_is_computed_only_while_something_listens_and_copies_follow() -> None:
    model, calls, images = nst.models.resnet8().eval(), [], torch.rand(1, 3, 8, 8)
    model.get_submodule(resolve(model, "logit_map")).register_forward_pre_hook(lambda *_: calls.append(1))
    assert model.state_dict().keys() == nst.models.resnet8().state_dict().keys()
    other = copy.deepcopy(model)
    nn.init.zeros_(other.fc.weight)
    model(images)
    assert not calls
    capture(model, images, ["logit_map"])[1]["logit_map"].square().sum().backward()
    model(images)
    assert calls == [1]
    assert all(p.grad is not None and p.grad.any() for p in (model.fc.weight, model.fc.bias, model.conv1.weight))
    _, zero = capture(other, images, ["logit_map"])
    assert (zero["logit_map"] == other.fc.bias[:, None, None]).all()
