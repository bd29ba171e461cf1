import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nst.models as models
from nst.models.preact import CifarPreactResNet, PreactBottleneck


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# He et al. (2016), table 4: ResNet-164 1.7 M, ResNet-1001 10.2 M. The second is the count without the normalisations'
# scales and shifts (149,216); with them every published reimplementation counts as here (imgclsmob's model list:
# PreResNet-164(BN) 1,703,258, PreResNet-1001 10,327,706).
@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [("preact_resnet164", 1_703_258, "1.7"), ("preact_resnet1001", 10_327_706, "10.2")],
)
def test_cifar_parameters(name, parameters, published):
    model = getattr(models, name)(num_classes=10)
    assert count(model) == parameters
    norms = sum(count(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert f"{(parameters - norms) / 1e6:.1f}" == published


# Gluon's model zoo gives 44,639,412 for resnet101_v2: parameters and running statistics, an input normalisation of 3
# channels (shift, scale, mean, variance) among them. Without it: timm's resnetv2_101 (44,541,480) and a normalised stem.
@pytest.mark.usefixtures("meta")
def test_imagenet_parameters():
    model = models.preact_resnet101(input_bn=True)
    statistics = sum(b.numel() for name, b in model.named_buffers() if not name.endswith("num_batches_tracked"))
    assert count(model) + statistics == 44_639_412
    assert count(models.preact_resnet101()) == 44_541_480 + 128


def test_input_bn_normalises_with_a_fixed_scale():
    norm = models.preact_resnet101(input_bn=True).input_bn
    assert isinstance(norm, nn.BatchNorm2d)
    assert not norm.weight.requires_grad
    assert norm.bias.requires_grad
    pixels = torch.rand(4, 3, 9, 9) * 255
    out = norm(pixels)
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("inputs", "strides"), [(16, (1, 1)), (32, (2, 1)), (32, (1, 2)), (64, (1, 1))])
def test_block_is_the_stated_function(inputs, strides):
    block = PreactBottleneck(inputs, 64, strides).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64)
    first = F.relu(block.bn1(x))
    out = F.conv2d(first, block.conv1.weight, stride=strides[0])
    out = F.conv2d(F.relu(block.bn2(out)), block.conv2.weight, stride=strides[1], padding=1)
    out = F.conv2d(F.relu(block.bn3(out)), block.conv3.weight)
    if inputs == 64:
        assert block.downsample is None
        expected = x + out
    else:
        assert block.downsample is not None
        expected = F.conv2d(first, block.downsample.weight, stride=strides[0] * strides[1]) + out
    torch.testing.assert_close(block(x), expected)


# Where a stage halves the map: the first 1x1 in the authors' CIFAR code, the 3x3 in the MXNet network.
@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("name", "strided"), [("preact_resnet164", "conv1"), ("preact_resnet101", "conv2")])
def test_place_of_the_stride(name, strided):
    model = getattr(models, name)()
    for stage in (model.layer2, model.layer3):
        convolutions = {n for n, m in stage.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
        assert convolutions == {f"0.{strided}", "0.downsample"}


def test_taps_are_raw_sums_and_their_activations(capture):
    model = CifarPreactResNet(11).eval()
    nn.init.normal_(model.bn1.bias)
    with torch.no_grad():
        logits, features = capture(model, torch.randn(2, 3, 8, 8))
        for k, block in ((1, model.layer2[0]), (2, model.layer3[0])):
            torch.testing.assert_close(features[f"stage{k}_pre_relu"], block.bn1(features[f"stage{k}_out"]))
            torch.testing.assert_close(features[f"stage{k}"], F.relu(features[f"stage{k}_pre_relu"]))
        torch.testing.assert_close(features["last_pre_relu"], model.bn1(features["stage3_out"]))
        torch.testing.assert_close(features["last"], F.relu(features["last_pre_relu"]))
        torch.testing.assert_close(features["stage3"], features["last"])
        torch.testing.assert_close(logits, model.fc(features["last"].mean(dim=(2, 3))))


def test_stored_activations_are_the_least_without_recomputing():
    """A block with C input channels at full size stores C twice (BN input, ReLU output) and C/4 four times."""
    block = PreactBottleneck(64, 64, (1, 1))
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    stored: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.dim() == 4 and storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = tensor.shape[1]
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(torch.randn(2, 64, 8, 8))
    assert sorted(stored.values()) == [16, 16, 16, 16, 64, 64]
    assert out.requires_grad


def test_impossible_depth_is_named():
    with pytest.raises(ValueError, match=r"depth=111: .* 9n \+ 2"):
        CifarPreactResNet(111)
