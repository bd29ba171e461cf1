"""The map of logits of every network: its mean is the logits, it is computed when asked for, and a network without it is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import nst.models
from nst.layers import LayerHooks, feature_shapes, resolve
from nst.models import timm_model, torchvision_model

OWN = ("resnet8", "wrn16_2", "preact_resnet164", "vgg8", "inception_bn_small", "mobilenet_v2_half", "shufflenet_v1")
TORCHVISION = ("densenet121", "mnasnet0_5", "regnet_y_400mf", "resnet18", "swin_t")
TIMM = ("test_resnet", "test_efficientnet", "resnetv2_50")


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


def maps_of(model: nn.Module, images: torch.Tensor, *layers: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    hooks = LayerHooks(model, layers)
    logits = model(images)
    hooks.remove()
    return logits, hooks.read()


@pytest.mark.parametrize("name", [*OWN, "inception_bn", *TORCHVISION, *TIMM, "one's own"])
def test_its_mean_is_the_logits(name):
    size = 32 if name in OWN else 64
    model = network(name).eval()
    shapes = feature_shapes(model, ["logit_map", "cam"], (3, size, size))
    logits, maps = maps_of(model, torch.rand(2, 3, size, size), "logit_map", "cam")
    assert {layer: tuple(value.shape[1:]) for layer, value in maps.items()} == shapes
    assert maps["logit_map"].shape[1] == 7
    assert maps["logit_map"].shape[2] > 1
    torch.testing.assert_close(maps["logit_map"].mean((2, 3)), logits, rtol=1e-3, atol=1e-4)
    bias = (maps["logit_map"] - maps["cam"]).mean((0, 2, 3))
    torch.testing.assert_close(maps["cam"] + bias[:, None, None], maps["logit_map"], rtol=1e-3, atol=1e-4)


TWO_LAYERS = (nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))
OTHERS: dict[str, tuple[Any, str]] = {
    "alexnet": (lambda: torchvision_model("alexnet", 5), "no map of logits"),
    "mobilenet_v3_small": (lambda: torchvision_model("mobilenet_v3_small", 5), "no map of logits"),
    "squeezenet1_1": (lambda: torchvision_model("squeezenet1_1", 5), "no map of logits"),
    "two layers": (lambda: nn.Sequential(*TWO_LAYERS), "no map of logits"),
    "no classifier": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3)), "no linear classifier"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_endings_are_refused(name):
    make, message = OTHERS[name]
    with pytest.raises(ValueError, match=message):
        feature_shapes(make(), ["logit_map"], (3, 64, 64))


def test_it_has_no_weights_is_computed_only_while_something_listens_and_copies_follow():
    model, calls, images = nst.models.resnet8().eval(), [], torch.rand(1, 3, 8, 8)
    keys, count = set(model.state_dict()), len(list(model.parameters()))
    path = resolve(model, "logit_map")
    assert (set(model.state_dict()), len(list(model.parameters()))) == (keys, count)
    other = copy.deepcopy(model)
    model.get_submodule(path).register_forward_pre_hook(lambda *_: calls.append(1))
    model(images)
    assert not calls
    _, maps = maps_of(model, images, "logit_map")
    model(images)
    assert calls == [1]
    maps["logit_map"].square().sum().backward()
    weights = (model.fc.weight, model.fc.bias, model.conv1.weight)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)
    nn.init.zeros_(other.fc.weight)
    _, zero = maps_of(other, images, "logit_map")
    assert ((zero["logit_map"] - other.fc.bias[:, None, None]) == 0).all()
    assert model.fc.weight.any()
