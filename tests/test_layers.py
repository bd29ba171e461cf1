"""LayerHooks hand over the right tensors, leave nothing behind, and name what they cannot find."""

import pytest
import torch
from torch import Tensor, nn

from nst.layers import LOGITS, LayerHooks, feature_shapes, pairs_of, resolve
from nst.models import timm_model


class Net(nn.Module):
    """Convolution, a ReLU used twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, 5)
        self.named_layers = {"last": "relu", "last_pre_relu": "relu:input"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        self.before = -x + 0.1
        return self.fc(self.relu(self.before).mean((2, 3)))


def test_features_are_the_outputs_and_inputs_of_the_last_call() -> None:
    net, x = Net(), torch.randn(2, 3, 6, 6)
    layers = LayerHooks(net, ["last", "last_pre_relu", "conv"])
    net(x)
    features = layers.read()
    assert layers.read() == {}
    layers.remove()
    net(x)
    assert layers.read() == {}
    assert torch.equal(features["conv"], net.conv(x))
    assert torch.equal(features["last_pre_relu"], net.before)
    assert torch.equal(features["last"], net.before.relu())


def test_unknown_layers_get_the_nearest_names_and_unreached_ones_are_named() -> None:
    for layer, near in (("lst", "last"), ("relu:output", "relu")):
        with pytest.raises(ValueError, match=f"{layer}.*{near}"):
            resolve(Net(), layer)
    net = Net()
    net.unused = nn.Identity()
    with pytest.raises(ValueError, match=r"x: YAML reads 0\.1 there.*in quotes"):  # 0.10 is another layer
        pairs_of("x", [{"teacher": "last", "student": 0.1}])
    with pytest.raises(ValueError, match="unused"):
        feature_shapes(net, ["unused"], (3, 4, 4))


def test_shapes_are_found_without_changing_the_model() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(7))
    net(torch.zeros(2, 3, 8, 8))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert feature_shapes(net, ["1", LOGITS], (3, 8, 8)) == {"1": (4, 4, 4), LOGITS: (7,)}
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def vit(**arguments: int) -> nn.Module:
    pytest.importorskip("timm")
    small = {"depth": 2, "embed_dim": 24, "num_heads": 2} | arguments
    return timm_model("vit_tiny_patch16_224", 5, image_size=32, arguments=small)


@pytest.mark.parametrize("registers", [0, 3])
def test_tokens_become_a_map_without_class_and_register_tokens(registers: int) -> None:
    net = vit(reg_tokens=registers).eval()
    layers = LayerHooks(net, ["last", "block1", "blocks.1:input", "norm"])
    net(torch.randn(2, 3, 32, 32))
    features = layers.read()
    assert {tuple(feature.shape) for feature in features.values()} == {(2, 24, 2, 2)}
    assert torch.equal(features["block1"], features["blocks.1:input"])
    tokens = net.norm(features["last"].flatten(2).transpose(1, 2))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(features["norm"], tokens.transpose(1, 2).unflatten(2, (2, 2)))
    other = vit(dynamic_img_size=True).eval()
    layers = LayerHooks(other, ["last"])
    other(torch.randn(1, 3, 48, 32))
    assert layers.read()["last"].shape == (1, 24, 3, 2)  # images of another shape have another grid


def test_a_compiled_student_hands_over_maps_with_gradient() -> None:
    net = vit()
    layers = LayerHooks(net, ["last"])

    def step(images: Tensor) -> Tensor:
        net(images)
        return layers.read()["last"]

    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)(images)
    torch.testing.assert_close(compiled, step(images))
    compiled.square().mean().backward()
    assert net.get_submodule("patch_embed.proj").weight.grad.abs().sum() > 0  # pyright: ignore


def test_windows_and_unknown_grids_are_refused() -> None:
    pytest.importorskip("timm")
    small = {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 1, 1, 1], "window_size": 4}
    swin = timm_model("swin_tiny_patch4_window7_224", 5, image_size=64, arguments=small)
    with pytest.raises(ValueError, match=r"'layers.0.blocks.0.attn' .* parts of the images"):
        feature_shapes(swin, ["layers.0.blocks.0.attn"], (3, 64, 64))
    shapes = feature_shapes(swin, ["patch_embed.proj", "patch_embed", "layers.1.blocks.0.mlp.act"], (3, 64, 64))
    assert [*shapes.values()] == [(24, 16, 16), (24, 16, 16), (192, 8, 8)]
    mixer = timm_model("mixer_s32_224", 5, image_size=64)
    with pytest.raises(ValueError, match=r"q_norm' of VisionTransformer yields .* no map: .*choose one of block1"):
        feature_shapes(vit(), ["blocks.0.attn.q_norm"], (3, 32, 32))
    with pytest.raises(ValueError, match=r"mlp_tokens.* has 512 tokens an image, not 2×2 plus 0"):
        feature_shapes(mixer, ["blocks.0.mlp_tokens"], (3, 64, 64))
