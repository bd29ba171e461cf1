import pytest
import torch
from torch import Tensor, nn

import nst.models as models
from nst.models.inception_bn import Factory


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# MXNet's inception-bn-28-small, the paper's CIFAR student: channels of the 1x1 and the 3x3 of a factory; of the 3x3
# alone where it halves the map, its input being concatenated after pooling.
SMALL = [(32, 32), (32, 48), (80,), (112, 48), (96, 64), (80, 80), (48, 96), (96,), (176, 160), (176, 160)]


@pytest.mark.usefixtures("meta")
def test_small_parameters():
    total, inputs = 9 * 3 * 96 + 2 * 96, 96
    for factory in SMALL:
        sizes = (1, 9) if len(factory) == 2 else (9,)
        total += sum(size * inputs * outputs + 2 * outputs for size, outputs in zip(sizes, factory, strict=True))
        inputs = sum(factory) + (inputs if len(factory) == 1 else 0)
    assert inputs == 336
    assert count(models.inception_bn_small(num_classes=10)) == total + 336 * 10 + 10 == 1_651_114


# Caffe's and MXNet's network has biases in its 10,016 convolution channels and counts 11,295,240 (imgclsmob's model
# list: BN-Inception); before a normalisation they do nothing and are left out here.
@pytest.mark.usefixtures("meta")
def test_imagenet_parameters():
    model = models.inception_bn(num_classes=1000)
    biases = sum(module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d))
    assert biases == 10_016
    assert count(model) + biases == 11_295_240


@pytest.mark.usefixtures("meta")
def test_input_bn_adds_a_learnt_shift_alone():
    plain, normalised = models.inception_bn(), models.inception_bn(input_bn=True)
    trained = sum(p.numel() for p in normalised.parameters() if p.requires_grad)
    assert trained == count(plain) + 3


def branch_norms(factory: Factory) -> list[nn.BatchNorm2d]:
    """The last normalisation of each branch, in order of the branches."""
    return [[m for m in branch.modules() if isinstance(m, nn.BatchNorm2d)][-1] for branch in factory.branches.values()]


@pytest.mark.parametrize(
    ("name", "size", "widths"),
    [("inception_bn_small", 8, [176, 160]), ("inception_bn", 64, [352, 320, 224, 128])],
)
def test_tap_is_the_normalised_branches_of_in5b_side_by_side(name, size, widths, capture):
    model = getattr(models, name)().eval()
    outputs: list[Tensor] = []
    for norm in branch_norms(model.in5b):
        norm.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        _, features = capture(model, torch.randn(2, 3, size, size))
    assert [output.shape[1] for output in outputs] == widths
    torch.testing.assert_close(features["last_pre_relu"], torch.cat(outputs, dim=1), rtol=0, atol=0)
    activated = torch.cat([output.relu() for output in outputs], dim=1)
    torch.testing.assert_close(features["last"], activated, rtol=0, atol=0)


def test_pooled_branch_passes_the_common_relu_unchanged():
    model = models.inception_bn_small().eval()
    x = torch.randn(2, 80, 8, 8).relu()
    with torch.no_grad():
        out = model.in3c(x)
    pooled = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
    torch.testing.assert_close(out[:, 80:], pooled, rtol=0, atol=0)


def test_pools_are_those_of_the_paper():
    model = models.inception_bn()
    pools = {name: factory.branches["pool"][0] for name, factory in full_factories(model).items()}
    averaged = {name for name, pool in pools.items() if isinstance(pool, nn.AvgPool2d)}
    assert averaged == {"in3a", "in3b", "in4a", "in4b", "in4c", "in4d", "in5a"}
    assert isinstance(pools["in5b"], nn.MaxPool2d)


def full_factories(model: nn.Module) -> dict[str, Factory]:
    factories = {name: m for name, m in model.named_children() if isinstance(m, Factory)}
    return {name: f for name, f in factories.items() if isinstance(f.branches["pool"], nn.Sequential)}


# MXNet's pooling rounds down where nothing else is said (`pooling_convention=valid`), Caffe's up.
@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("pooling", "sizes"), [("ceil", [112, 56, 28, 14, 7]), ("valid", [112, 55, 27, 14, 7])])
def test_sizes_of_a_224_image(pooling, sizes):
    model = models.inception_bn(num_classes=10, pooling=pooling).eval()
    found: dict[str, tuple[int, ...]] = {}
    for name in ("conv1", "pool1", "pool2", "in3b", "in3c", "in4d", "in4e", "in5b"):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: tuple(output.shape[2:])})
        )
    assert model(torch.empty(1, 3, 224, 224)).shape == (1, 10)
    full, half, quarter, eighth, last = ((size, size) for size in sizes)
    assert found == {
        "conv1": full, "pool1": half, "pool2": quarter, "in3b": quarter, "in3c": eighth, "in4d": eighth,
        "in4e": last, "in5b": last,
    }  # fmt: skip


def test_pooling_and_eps_are_checked():
    with pytest.raises(ValueError, match="pooling='full': use 'ceil'"):
        models.inception_bn(pooling="full")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"bn_eps=0\.0"):
        models.inception_bn(bn_eps=0.0)


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("name", ["inception_bn", "preact_resnet164", "preact_resnet101"])
def test_eps_of_every_normalisation(name):
    build = getattr(models, name)
    arguments = {} if name == "preact_resnet164" else {"input_bn": True}
    for eps, model in ((1e-5, build(**arguments)), (2e-5, build(**arguments, bn_eps=2e-5))):
        assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {eps}
