"""What every network built here owes: logits, layers at the stated places and of the stated shapes, nothing in place."""

import pytest
import torch
from torch import nn

import nst.models as models

RESNET = {"stage1": (16, 1), "stage2": (32, 2), "stage3": (64, 4)}  # channels, how many times smaller than the image
RESNET_X4 = {"stage1": (64, 1), "stage2": (128, 2), "stage3": (256, 4)}
PREACT = {"stage1": (64, 1), "stage2": (128, 2), "stage3": (256, 4)}
VGG = {"stage1": (128, 2), "stage2": (256, 4), "stage3": (512, 8), "stage4": (512, 8)}
CIFAR = {
    **dict.fromkeys(["resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"], RESNET),
    **dict.fromkeys(["resnet8x4", "resnet32x4"], RESNET_X4),
    **dict.fromkeys(["preact_resnet164", "preact_resnet1001"], PREACT),
    "wrn16_2": {"stage1": (32, 1), "stage2": (64, 2), "stage3": (128, 4)},
    "wrn40_1": {"stage1": (16, 1), "stage2": (32, 2), "stage3": (64, 4)},
    "wrn40_2": {"stage1": (32, 1), "stage2": (64, 2), "stage3": (128, 4)},
    "vgg8": VGG,
    "vgg13": VGG,
    "inception_bn_small": {"stage1": (80, 1), "stage2": (144, 2), "stage3": (336, 4)},
    "resnet50_cifar": {"stage1": (256, 1), "stage2": (512, 2), "stage3": (1024, 4), "stage4": (2048, 8)},
    "mobilenet_v2_half": {"stage1": (12, 2), "stage2": (16, 4), "stage3": (48, 8), "stage4": (160, 16)},
    "shufflenet_v1": {"stage1": (240, 2), "stage2": (480, 4), "stage3": (960, 8)},
    "shufflenet_v2": {"stage1": (116, 2), "stage2": (232, 4), "stage3": (464, 8)},
}
LINEAR = ["mobilenet_v2_half"]  # stages without a ReLU at their end: no "_pre_relu" roles
POOLED = {"mobilenet_v2_half": 1280, "shufflenet_v2": 1024}  # of a convolution behind the last stage
IMAGENET = {
    "preact_resnet101": {"stage1": (256, 4), "stage2": (512, 8), "stage3": (1024, 16), "stage4": (2048, 32)},
    "inception_bn": {"stage1": (320, 8), "stage2": (608, 16), "stage3": (1024, 32)},
}


def check_shapes(name, stages, size, channels, capture):
    model = getattr(models, name)(num_classes=7, in_channels=channels).eval()
    logits, features = capture(model, torch.empty(2, channels, size, size))
    assert logits.shape == (2, 7)
    expected = {role: (2, c, max(1, size // r), max(1, size // r)) for role, (c, r) in stages.items()}
    expected["last"] = expected[f"stage{len(stages)}"]
    suffixes = ("_out",) if name in LINEAR else ("_out", "_pre_relu")
    expected |= {f"{role}{suffix}": shape for role, shape in expected.items() for suffix in suffixes}
    expected["pooled"] = (2, POOLED.get(name, expected["last"][1]))
    assert {role: tuple(feature.shape) for role, feature in features.items()} == expected
    assert not [n for n, module in model.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1)])
@pytest.mark.parametrize(("name", "stages"), CIFAR.items(), ids=list(CIFAR))
def test_small_images(name, stages, size, channels, capture):
    check_shapes(name, stages, size, channels, capture)


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("name", "stages"), IMAGENET.items(), ids=list(IMAGENET))
def test_imagenet(name, stages, capture):
    check_shapes(name, stages, 224, 3, capture)


POST_ACTIVATION = ["resnet8", "resnet8x4", "vgg8", "inception_bn_small", "resnet50_cifar", "shufflenet_v1"]


@pytest.mark.parametrize("name", POST_ACTIVATION)
def test_roles_are_the_two_sides_of_one_relu(name, capture):
    model = getattr(models, name)().eval()
    with torch.no_grad():
        _, features = capture(model, torch.randn(2, 3, 16, 16))
    before = [role for role in features if role.endswith("_pre_relu")]
    assert 3 * len(before) == len(features) - 1  # each place has three names
    torch.testing.assert_close(features["pooled"], features["last"].mean(dim=(2, 3)))
    for role in before:
        assert torch.equal(features[role.replace("_pre_relu", "_out")], features[role.removesuffix("_pre_relu")])
        assert features[role].min() < 0
        torch.testing.assert_close(features[role.removesuffix("_pre_relu")], features[role].relu(), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*POST_ACTIVATION, "wrn16_2", "preact_resnet164", "shufflenet_v2", *LINEAR])
def test_nothing_overwrites_a_tapped_feature(name, capture):
    model = getattr(models, name)()
    logits, features = capture(model, torch.randn(2, 3, 16, 16))
    assert {role: feature._version for role, feature in features.items()} == dict.fromkeys(features, 0)
    sum(feature.square().mean() for feature in features.values()).backward()
    behind = ("fc.", "classifier.", "linear.")
    if name in ("mobilenet_v2_half", "shufflenet_v2"):
        behind += ("conv2.", "bn2.")
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith(behind))
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["resnet8", "wrn16_2", "vgg8", "inception_bn_small", "shufflenet_v2"])
def test_compiles_to_one_graph(name):
    model = getattr(models, name)().eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        logits = torch.compile(model, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_2", "inception_bn_small"])
def test_channels_last_changes_nothing_and_stays(name, capture):
    model = getattr(models, name)().eval().double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        logits, features = capture(model, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected)
    for role, feature in features.items():
        assert role == "pooled" or feature.is_contiguous(memory_format=torch.channels_last)


def test_initial_weights_follow_the_stated_law():
    torch.manual_seed(0)
    fan_out = models.resnet32x4().layer3[1].conv1.weight  # 256 x 256 x 3 x 3
    assert fan_out.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    student = models.inception_bn_small()
    fan_in = student.in5b.branches["conv3"].conv.weight  # 160 x 336 x 3 x 3
    assert fan_in.std().item() == pytest.approx((2 / (336 * 9)) ** 0.5, rel=0.01)
    assert student.fc.weight.std().item() == pytest.approx((2 / 336) ** 0.5, rel=0.05)
    for name, parameter in student.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    assert all(bool((m.weight == 1).all()) for m in student.modules() if isinstance(m, nn.BatchNorm2d))
