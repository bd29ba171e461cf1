"""The map of logits of every network: its mean is the logits, it is computed when asked for, and a network without it is refused."""

import copy

import pytest
import torch
from torch import nn

import nst.models
from nst.layers import LayerHooks, feature_shapes, resolve
from nst.models import torchvision_model

OWN = sorted(
    name
    for name in nst.models.__all__
    if name.islower() and not name.endswith("_model") and "preact_resnet10" not in name
)
TORCHVISION = (
    "densenet121",
    "mnasnet0_5",
    "mobilenet_v2",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "swin_t",
)


def maps_of(model: nn.Module, images: torch.Tensor, *layers: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    hooks = LayerHooks(model, layers)
    logits = model(images)
    hooks.remove()
    return logits, hooks.read()


@pytest.mark.parametrize("name", OWN)
def test_its_mean_is_the_logits_of_our_networks(name):
    torch.manual_seed(0)
    size = 64 if name in ("inception_bn",) else 32
    model = getattr(nst.models, name)(num_classes=7).eval()
    shapes = feature_shapes(model, ["logit_map", "cam"], (3, size, size))
    logits, maps = maps_of(model, torch.rand(2, 3, size, size), "logit_map", "cam")
    assert {layer: tuple(value.shape[1:]) for layer, value in maps.items()} == shapes
    assert maps["logit_map"].shape[1] == 7
    assert maps["logit_map"].shape[2] > 1
    torch.testing.assert_close(maps["logit_map"].mean((2, 3)), logits, rtol=1e-4, atol=1e-4)
    bias = (maps["logit_map"] - maps["cam"]).mean((0, 2, 3))
    torch.testing.assert_close(maps["cam"] + bias[:, None, None], maps["logit_map"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", TORCHVISION)
def test_torchvision(arch):
    model = torchvision_model(arch, 5).eval()
    feature_shapes(model, ["logit_map"], (3, 64, 64))
    logits, maps = maps_of(model, torch.rand(1, 3, 64, 64), "logit_map")
    torch.testing.assert_close(maps["logit_map"].mean((2, 3)), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet", "convnext_atto", "resnetv2_50", "mixer_s32_224"])
def test_timm(arch):
    timm_model = pytest.importorskip("nst.models.external").timm_model
    pytest.importorskip("timm")
    model = timm_model(arch, 5).eval()
    size = 224 if arch.startswith("mixer") else 64
    if arch in ("convnext_atto",):  # a normalisation after its pooling
        with pytest.raises(ValueError, match=r"'logit_map' of ConvNeXt: .*global average pooling"):
            feature_shapes(model, ["logit_map"], (3, size, size))
        return
    feature_shapes(model, ["logit_map"], (3, size, size))
    logits, maps = maps_of(model, torch.rand(1, 3, size, size), "logit_map")
    torch.testing.assert_close(maps["logit_map"].mean((2, 3)), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["alexnet", "mobilenet_v3_small", "squeezenet1_1"])
def test_other_endings_are_refused(arch):
    with pytest.raises(ValueError, match="no map of logits"):
        feature_shapes(torchvision_model(arch, 5), ["logit_map"], (3, 64, 64))


def test_the_gradient_reaches_classifier_and_features():
    model = nst.models.resnet8().eval()
    _, maps = maps_of(model, torch.rand(2, 3, 8, 8), "logit_map")
    maps["logit_map"].square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in (model.fc.weight, model.fc.bias, model.conv1.weight)
    )


def test_it_is_computed_only_while_something_listens():
    model, calls = nst.models.resnet8().eval(), []
    path = resolve(model, "logit_map")
    model.get_submodule(path).register_forward_pre_hook(lambda *_: calls.append(1))
    model(torch.rand(1, 3, 8, 8))
    assert not calls
    _, maps = maps_of(model, torch.rand(1, 3, 8, 8), "logit_map")
    assert calls == [1]
    assert maps["logit_map"].shape == (1, 10, 2, 2)
    model(torch.rand(1, 3, 8, 8))
    assert calls == [1]


def test_it_has_no_weights_of_its_own_and_copies_follow():
    model = nst.models.resnet8().eval()
    keys, count = set(model.state_dict()), len(list(model.parameters()))
    assert resolve(model, "logit_map") == resolve(model, "logit_map") == "fc.logit_map"
    assert (set(model.state_dict()), len(list(model.parameters()))) == (keys, count)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight.zero_()
    images = torch.rand(1, 3, 8, 8)
    for network, zero in ((model, False), (other, True)):
        _, maps = maps_of(network, images, "logit_map")
        assert bool(((maps["logit_map"] - network.fc.bias[:, None, None]) == 0).all()) == zero


def test_networks_of_ones_own():
    sequential = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()
    images = torch.rand(2, 3, 8, 8)
    feature_shapes(sequential, ["logit_map"], (3, 8, 8))
    logits, maps = maps_of(sequential, images, "logit_map")
    torch.testing.assert_close(maps["logit_map"].mean((2, 3)), logits)
    two = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)
    )
    with pytest.raises(ValueError, match="no map of logits"):
        feature_shapes(two, ["logit_map"], (3, 8, 8))
    with pytest.raises(ValueError, match="no linear classifier"):
        resolve(nn.Sequential(nn.Conv2d(3, 6, 3)), "logit_map")
