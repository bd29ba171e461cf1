"""Networks of torchvision and timm: their named layers are the family's own maps, their weights fit, wrong keys are named."""

import copy
import sys
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torchvision
from tests.models.conftest import capture
from torch import Tensor, nn

import nst.models as models
from nst.layers import feature_shapes
from nst.models import external

SIZE = 64
VIT = "vit_tiny_patch16_224"
FOUR = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
TIMM: dict[str, dict[str, Any]] = {
    # feature maps [B, C, H, W]
    "convnext_atto": FOUR, "edgenext_xx_small": {}, "hrnet_w18_small": {}, "mobilevit_xxs": {}, "regnetx_002": {},
    "resnet18": {"channels": FOUR["dims"]}, "test_efficientnet": {}, "vgg11": {"mlp_ratio": 0.01},
    # [B, H, W, C]
    "mambaout_femto": FOUR,
    "swin_tiny_patch4_window7_224": {"depths": FOUR["depths"], "embed_dim": 24, "num_heads": [1, 2, 2, 2]},
    # tokens [B, N, C]
    "cait_xxs24_224": {"depth": 2}, "deit_tiny_distilled_patch16_224": {"depth": 2}, "eva02_tiny_patch14_224": {"depth": 2},
    "hiera_tiny_224": {"embed_dim": 24, "stages": FOUR["depths"]}, "levit_128s": {}, "pit_ti_224": {"depth": [1, 1, 1]},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "embed_dim": 48, "num_heads": 3}, VIT: {"depth": 2},
}  # fmt: skip
OWN_SIZE = {"eva02_tiny_patch14_224": 56, "vit_small_patch14_reg4_dinov2": 56}


@pytest.mark.parametrize("arch", TIMM)
def test_named_layers_are_the_familys_own_maps_with_gradients(arch: str) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    size = OWN_SIZE.get(arch)
    model: Any = models.timm_model(arch, 4, image_size=SIZE, input_size=size, arguments=TIMM[arch]).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        logits, features = capture(model, images)
        at_size = images if size is None else nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        own = model.forward_intermediates(at_size, intermediates_only=True)
    assert "last" in features
    assert {"stage1", "stage2"} <= {*features} or {"block1", "block2"} <= {*features}
    for role, feature in features.items():
        if role.endswith("_pre_relu"):
            assert torch.equal(feature.relu(), features[role.removesuffix("_pre_relu")])
        elif role == "pooled":
            classifier = model.get_submodule(model.named_layers[role].removesuffix(":input"))
            torch.testing.assert_close(classifier(feature), logits)
        elif (arch, role.removesuffix("_out")) != ("hrnet_w18_small", "last"):  # joined from all stages
            assert any(torch.equal(feature, map_) for map_ in own), role
    shapes = {role: tuple(feature.shape[1:]) for role, feature in features.items()}
    assert shapes == feature_shapes(model, [*features], (3, SIZE, SIZE))

    capture(model.train(), images)[1]["last"].square().mean().backward()
    stem = next(p for p in model.parameters() if p.ndim == 4)  # of the first convolution
    assert stem.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "arch", ["convnext_tiny", "densenet121", "googlenet", "maxvit_t", "mnasnet0_5", "resnet18", "swin_t", "vgg11_bn"]
)
@pytest.mark.usefixtures("meta")
def test_torchvision_stages(arch: str) -> None:
    """A quarter of the image on, each stage half as large; nothing in place, no auxiliary outputs."""
    model: Any = models.torchvision_model(arch, num_classes=5, in_channels=1)
    shapes = feature_shapes(model, model.named_layers, (1, 224, 224))
    assert [shapes[f"stage{k}"][1:] for k in range(1, 5)] == [(n, n) for n in (56, 28, 14, 7)]
    assert shapes["last"] == shapes["stage4"]
    assert all(shape[0] not in (7, 14, 28, 56) for shape in shapes.values())
    assert len(shapes["pooled"]) == 1
    assert model(torch.empty(2, 1, 224, 224)).shape == (2, 5)  # in training mode
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


def test_torchvision_tokens_become_maps() -> None:
    vit: Any = models.torchvision_model("vit_b_32", 5, image_size=64).eval()
    tokens: list[Tensor] = []
    vit.encoder.layers[0].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    with torch.no_grad():
        _, features = capture(vit, torch.randn(2, 3, 64, 64))
    assert {"block1", "block12", "last", "pooled"} <= {*features}
    torch.testing.assert_close(features["block1"], tokens[0][:, 1:].transpose(1, 2).reshape(2, 768, 2, 2))


def test_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier is replaced where the classes differ; the images that a network is made for are known."""
    timm = pytest.importorskip("timm")
    original, create = torchvision.models.get_model, timm.create_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: original(name, weights=None))
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **{**options, "pretrained": False}))
    for arch, num_classes in (("resnet18", 5), ("squeezenet1_1", 5), ("resnet18", 1000)):
        model: Any = models.torchvision_model(arch, num_classes=num_classes, pretrained=True)
        assert model.input_format.mean == (0.485, 0.456, 0.406)
        assert (model.input_format.size, model.input_format.interpolation) == (224, "bilinear")
        assert "_Weights.IMAGENET1K_V1" in model.input_format.source
        assert model.eval()(torch.rand(2, 3, 64, 64)).shape == (2, num_classes)
    model = models.timm_model(VIT, 5, pretrained=True, arguments={"depth": 1})
    assert model.input_format == external.InputFormat(
        (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224, "bicubic", "timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k", 1000
    )


def test_weights_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    for module, name in ((torchvision.models, "get_model"), (timm, "create_model")):
        monkeypatch.setattr(module, name, Mock(side_effect=OSError("no network")))
        make = models.timm_model if module is timm else models.torchvision_model
        with pytest.raises(ValueError, match=r"arch=resnet18 .*no network.*pretrained=false"):
            make("resnet18", 1000, pretrained=True)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'nst\[timm\]'"):
        models.timm_model("resnet18", 5)


@pytest.mark.parametrize("make", [models.timm_model, models.torchvision_model])
def test_an_input_size_resizes_the_images_for_this_network(make: Any) -> None:
    pytest.importorskip("timm")
    plain, resizing = make("resnet18", 5).eval(), make("resnet18", 5, image_size=64, input_size=96).eval()
    assert resizing.named_layers == plain.named_layers
    resizing.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    large = nn.functional.interpolate(images, 96, mode="bilinear", antialias=True)
    assert torch.equal(copy.deepcopy(resizing)(images), plain(large))
    assert feature_shapes(resizing, ["last"], (3, 64, 64))["last"] == (512, 3, 3)


@pytest.mark.parametrize(
    ("make", "arch", "arguments", "message"),
    [
        (models.timm_model, "resnet-50", {}, r"arch='resnet-50': .*resnet50"),
        (models.torchvision_model, "resnet18", {"in_channels": 1, "pretrained": True}, "in_channels=1"),
        (models.timm_model, VIT, {"image_size": 40}, "40×40 .*input_size=32"),
        (models.torchvision_model, "vit_b_16", {"pretrained": True, "image_size": 160}, "160×160.*input_size=224"),
        (models.timm_model, VIT, {"arguments": {"drop_path_rte": 1}}, "arch=vit_tiny.*drop_path_rte"),
        (models.timm_model, VIT, {"arguments": {"img_size": 1}}, r"arguments\.img_size"),
    ],
)
def test_wrong_keys_are_named(make: Any, arch: str, arguments: dict[str, Any], message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message):
        make(arch, **{"num_classes": 1000, **arguments})
