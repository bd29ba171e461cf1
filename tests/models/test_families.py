"""A small network of each family of timm: its roles, its maps, and a step of NST with it as teacher and as student."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nst.models as models
from nst.layers import LayerHooks, feature_shapes
from nst.losses import NST

pytest.importorskip("timm")

SIZE = 64
SMALL_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    # feature maps [B, C, H, W]
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "densenet121": {"block_config": [1, 1, 1, 1]},
    "edgenext_xx_small": {},
    "efficientvim_m1": {},
    "fastvit_t8": {},
    "ghostnet_050": {},
    "hrnet_w18_small": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "mobilevit_xxs": {},
    "poolformer_s12": {},
    "regnetx_002": {},
    "repvit_m0_9": {},
    "resnet18": {"channels": [8, 16, 24, 32]},
    "test_byobnet": {},
    "test_efficientnet": {},
    "test_maxvit": {},
    "vgg11": {"mlp_ratio": 0.01},
    # [B, H, W, C]
    "mambaout_femto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "sequencer2d_s": {"layers": [1, 1, 1, 1], "embed_dims": [16, 24, 24, 24]},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 2, 2, 2]},
    "volo_d1_224": {},
    # tokens [B, N, C]
    "beit_base_patch16_224": SMALL_VIT,
    "cait_xxs24_224": {"depth": 2},
    "coat_lite_tiny": {},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "efficientformer_l1": {"depths": [1, 1, 1, 1]},
    "eva02_tiny_patch14_224": {"depth": 2},
    "hiera_tiny_224": {"embed_dim": 24, "stages": [1, 1, 1, 1]},
    "levit_128s": {},
    "mvitv2_tiny": {},
    "pit_ti_224": {"depth": [1, 1, 1]},
    "tnt_s_legacy_patch16_224": {"depth": 2},
    "twins_svt_small": {"depths": [2, 2, 2, 2]},
    "vit_small_patch14_reg4_dinov2": SMALL_VIT,
    "vit_small_patch16_dinov3": SMALL_VIT,
    "vit_tiny_patch16_224": {"depth": 2},
    "xcit_nano_12_p16_224": {"depth": 2},
}
OWN_SIZE = {"eva02_tiny_patch14_224": 56, "vit_small_patch14_reg4_dinov2": 56, "efficientformer_l1": 224}


def looked_at(model: nn.Module, roles: list[str], images: Tensor) -> dict[str, Tensor]:
    layers = LayerHooks(model, roles)
    model(images)
    layers.remove()
    return layers.read()


@pytest.mark.parametrize("arch", FAMILIES)
def test_roles_are_the_familys_own_maps_and_nst_takes_a_step(arch: str) -> None:
    torch.manual_seed(0)
    size = OWN_SIZE.get(arch)
    model = models.timm_model(arch, 4, image_size=SIZE, input_size=size, arguments=FAMILIES[arch]).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    roles = list(model.named_layers)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert "last" in roles
    assert {"stage1", "stage2"} <= {*roles} or {"block1", "block2"} <= {*roles}
    with torch.no_grad():
        features, logits = looked_at(model, roles, images), model(images)
        at_size = images if size is None else nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        own = model.forward_intermediates(at_size, intermediates_only=True)  # pyright: ignore[reportCallIssue]
    for role in roles:
        if role.endswith("_pre_relu"):
            assert torch.equal(features[role].relu(), features[role.removesuffix("_pre_relu")])
        elif role == "pooled":
            classifier = model.get_submodule(model.named_layers[role].removesuffix(":input"))
            if arch != "volo_d1_224":  # whose logits are those of two heads
                torch.testing.assert_close(classifier(features[role]), logits)
        elif (arch, role.removesuffix("_out")) != ("hrnet_w18_small", "last"):  # joined from all stages
            assert any(torch.equal(features[role], map_) for map_ in own), role
    shapes = feature_shapes(model, roles, (3, SIZE, SIZE))
    assert {role: tuple(feature.shape[1:]) for role, feature in features.items()} == shapes

    cnn, loss = models.resnet8(4), NST()
    for teacher, student in ((model, cnn), (cnn, model)):
        role = "stage2" if "stage2" in student.named_layers else "block2"  # pyright: ignore[reportOperatorIssue]
        other = "stage2" if "stage2" in teacher.named_layers else "block2"  # pyright: ignore[reportOperatorIssue]
        with torch.no_grad():
            learned = looked_at(teacher.eval(), [other], images)[other]
        feature = looked_at(student.train(), [role], images)[role]
        loss(feature, loss.target(learned, tuple(feature.shape[1:]))).backward()
        stem = next(p for p in student.parameters() if p.ndim == 4)  # of the first convolution
        assert stem.grad is not None
        assert stem.grad.abs().sum() > 0
