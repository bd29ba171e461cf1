"""What every network of our own owes: published numbers of parameters and initial weights, shapes of its layers, nothing in place."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from tests.conftest import ROOT, Compose
from tests.models.conftest import capture
from torch import nn

import nst.models as models
from nst.models.inception_bn import Factory
from nst.models.preact import CifarPreactResNet, WideResNet
from nst.models.resnet import CifarResNet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def numbers(text: str) -> dict[str, int]:
    """Name → number of a text `name number, name number`."""
    return {name: int(number) for name, number in (entry.split() for entry in text.split(","))}


# CRD's benchmark (Tian et al., 2020): the networks of its published code, 100 classes.
CRD = numbers("""
    resnet8 83_892, resnet14 181_108, resnet20 278_324, resnet32 472_756, resnet44 667_188, resnet56 861_620, resnet110 1_736_564,
    resnet8x4 1_233_540, resnet32x4 7_433_860, wrn16_2 703_284, wrn40_1 569_780, wrn40_2 2_255_156, vgg8 3_965_028, vgg13 9_462_180,
    resnet50_cifar 23_705_252, mobilenet_v2_half 812_836, shufflenet_v1 949_258, shufflenet_v2 1_355_528
""")
# 10 classes: He et al. (2015), table 6 (option A; the exact numbers of 8 and 14 follow from the same sum), Zagoruyko & Komodakis
# (2016), table 4, and of He et al. (2016), table 4, the counts of every published reimplementation (imgclsmob's PreResNet-164(BN)
# and -1001). inception_bn_small: MXNet's inception-bn-28-small, summed by hand.
PAPERS = numbers("""
    resnet8 75_290, resnet14 172_506, resnet20 269_722, resnet32 464_154, resnet44 658_586, resnet56 853_018, resnet110 1_727_962,
    wrn40_1 563_930, wrn40_2 2_243_546, preact_resnet164 1_703_258, preact_resnet1001 10_327_706, inception_bn_small 1_651_114
""")


def crd(name: str) -> nn.Module:
    """As CRD's experiments have it, 100 classes."""
    resnet = name.startswith("resnet") and name != "resnet50_cifar"
    return getattr(models, name)(num_classes=100, **({"shortcut": "B", "init": "crd"} if resnet else {}))


@pytest.mark.usefixtures("meta")
def test_published_numbers_of_parameters() -> None:
    """Caffe's and MXNet's Inception-BN has biases in its 10,016 convolution channels, which do nothing before a normalisation, and counts
    11,295,240 (imgclsmob: BN-Inception). Gluon's resnet101_v2 counts 44,639,412 with running statistics and an input normalisation."""
    assert {name: count(crd(name)) for name in CRD} == CRD
    inception, resnet = models.inception_bn(), models.preact_resnet101(input_bn=True)
    biases = sum(module.out_channels for module in inception.modules() if isinstance(module, nn.Conv2d))
    assert (biases, count(inception) + biases) == (10_016, 11_295_240)
    statistics = sum(b.numel() for name, b in resnet.named_buffers() if not name.endswith("num_batches_tracked"))
    assert count(resnet) + statistics == 44_639_412


ROWS = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ", (ROOT / "docs" / "models.md").read_text(), flags=re.MULTILINE)
PAGE = {name: int(parameters.replace(",", "")) for name, parameters in ROWS}  # of 10 classes, but for ImageNet's
NAMES = sorted(path.stem for path in (ROOT / "configs" / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_composes_on_both_sides_and_builds_with_the_papers_and_the_pages_parameters(
    name: str, compose: Compose
) -> None:
    if name == "timm":
        pytest.importorskip("timm")
    assert {*PAPERS} < {*PAGE} == {*NAMES} - {"timm", "torchvision"}
    run = compose(f"model={name}", f"teacher={name}", "data.num_classes=7")
    # a teacher of timm or torchvision reads its input size from the library's record
    assert {**run.teacher.model, "input_size": None} == {**run.model, "input_size": None}
    assert (run.model.name, run.model.num_classes) == (name if name in PAGE else "resnet18", 7)
    arguments = {key: value for key, value in run.model.items() if key not in ("name", "num_classes", "in_channels")}
    if name in PAPERS or name not in PAGE:
        arguments["num_classes"] = 10
    with torch.device("meta"):
        model = instantiate(arguments)
    assert "last" in model.named_layers
    if name in PAGE:
        assert count(model) == PAGE[name] == PAPERS.get(name, PAGE[name])


# MXNet's pooling rounds down where nothing else is said (`pooling_convention=valid`), Caffe's up.
@pytest.mark.parametrize(("pooling", "side"), [("ceil", 28), ("valid", 27)])
@pytest.mark.usefixtures("meta")
def test_shapes_and_pools_of_inception_bn(pooling: Any, side: int) -> None:
    model = models.inception_bn(num_classes=7, in_channels=1, pooling=pooling).eval()
    logits, features = capture(model, torch.empty(2, 1, 224, 224))
    assert logits.shape == (2, 7)
    stages = {"stage1": (320, side), "stage2": (608, 14), "stage3": (1024, 7), "last": (1024, 7)}
    expected = {f"{role}{end}": (2, c, n, n) for role, (c, n) in stages.items() for end in ("", "_out", "_pre_relu")}
    assert {role: tuple(feature.shape) for role, feature in features.items()} == expected | {"pooled": (2, 1024)}
    averaged = {name for name, m in model.named_children() if isinstance(m, Factory) and "AvgPool2d" in str(m)}
    assert averaged == {"in3a", "in3b", "in4a", "in4b", "in4c", "in4d", "in5a"}


SMALL: dict[str, Any] = {
    name: getattr(models, name)
    for name in ("resnet8", "wrn16_2", "vgg8", "inception_bn_small", "mobilenet_v2_half", "shufflenet_v1", "shufflenet_v2")
} | {"preact": partial(CifarPreactResNet, 11)}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_layers_survive_the_forward_pass_and_channels_last(name: str) -> None:
    """Nothing overwrites a feature, gradients reach every weight before it, and a layout stays."""
    torch.manual_seed(0)
    model, x = SMALL[name](), torch.randn(2, 3, 16, 16)
    _, features = capture(model, x)
    assert {role: feature._version for role, feature in features.items()} == dict.fromkeys(features, 0)
    sum(feature.square().mean() for feature in features.values()).backward()
    classifier = [n for n, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith(classifier))
    with torch.no_grad():
        last = x.contiguous(memory_format=torch.channels_last)
        _, features = capture(model.to(memory_format=torch.channels_last), last)
    for role, feature in features.items():
        assert role == "pooled" or feature.is_contiguous(memory_format=torch.channels_last)


def test_initial_weights_follow_the_stated_law() -> None:
    """N(0, 2 / (outputs · size²)), depthwise too; in Inception-BN by the inputs; in the ShuffleNets uniform within ± 1 / sqrt(fan-in)."""
    torch.manual_seed(0)
    blocks, student = models.mobilenet_v2_half().blocks, models.inception_bn_small()
    deviations = [
        (models.resnet32x4().layer3[1].conv1.weight, 2 / (256 * 9)),
        (models.resnet50_cifar().layer3[1].conv2.weight, 2 / (256 * 9)),
        (blocks.get_submodule("6.0.conv.3").weight, 2 / (480 * 9)),
        (blocks.get_submodule("6.0.conv.6").weight, 2 / 160),
        (student.in5b.branches["conv3"].conv.weight, 2 / (336 * 9)),
        (student.fc.weight, 2 / 336),
        (crd("vgg8").classifier.weight, 0.01**2),
        (crd("mobilenet_v2_half").classifier[0].weight, 0.01**2),
    ]
    for weight, variance in deviations:
        assert weight.std().item() == pytest.approx(variance**0.5, rel=0.05)
    assert all(not [*crd(name).parameters()][-1].any() for name in ("wrn16_2", "vgg8", "mobilenet_v2_half"))
    for name in ("resnet20", "resnet8x4", "shufflenet_v2"):  # PyTorch's own draw, of the last layer
        weight, bias = [*crd(name).parameters()][-2:]
        for values in (weight, bias):
            assert values.abs().max() <= weight.shape[1] ** -0.5
            assert values.std().item() == pytest.approx((3 * weight.shape[1]) ** -0.5, rel=0.2)


def test_input_bn_normalises_with_a_fixed_scale() -> None:
    model = models.preact_resnet101(input_bn=True, bn_eps=2e-5)
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {2e-5}
    norm = model.input_bn
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.weight.requires_grad, norm.bias.requires_grad) == (False, True)
    assert torch.equal(norm.weight, torch.ones(3))


def test_impossible_arguments_are_named() -> None:
    for make, arguments, message in (
        (CifarResNet, {"depth": 18}, r"depth=18.*6n \+ 2"),
        (CifarPreactResNet, {"depth": 111}, r"depth=111.*9n \+ 2"),
        (WideResNet, {"depth": 20, "width": 2}, r"depth=20.*6n \+ 4"),
        (models.inception_bn, {"bn_eps": 0.0}, r"bn_eps=0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**arguments)
