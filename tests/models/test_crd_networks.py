"""The networks of CRD's benchmark (Tian et al., 2020): layers, names and initial weights of its published code, RepDistiller.

The layout of each network is written down below from that code, without the modules under test: names and shapes of all
tensors, hence the number of parameters.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import nst.models as models
from nst.models.weights import load_weights

Layout = Iterator[tuple[str, tuple[int, ...]]]  # names and shapes


def conv(name: str, size: int, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> Layout:
    yield f"{name}.weight", (outputs, inputs // groups, size, size)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm(name: str, channels: int) -> Layout:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, inputs: int) -> Layout:
    yield f"{name}.weight", (100, inputs)
    yield f"{name}.bias", (100,)


def resnet(depth: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64)) -> Layout:
    inputs = widths[0]
    yield from conv("conv1", 3, 3, inputs)
    yield from norm("bn1", inputs)
    for stage, width in enumerate(widths[1:], 1):
        for i in range((depth - 2) // 6):
            block = f"layer{stage}.{i}"
            yield from conv(f"{block}.conv1", 3, inputs, width)
            yield from norm(f"{block}.bn1", width)
            yield from conv(f"{block}.conv2", 3, width, width)
            yield from norm(f"{block}.bn2", width)
            if inputs != width:
                yield from conv(f"{block}.downsample.0", 1, inputs, width)
                yield from norm(f"{block}.downsample.1", width)
            inputs = width
    yield from linear("fc", inputs)


def wrn(depth: int, width: int) -> Layout:
    yield from conv("conv1", 3, 3, 16)
    inputs = 16
    for stage in (1, 2, 3):
        outputs = 16 * width * 2 ** (stage - 1)
        for i in range((depth - 4) // 6):
            block = f"block{stage}.layer.{i}"
            yield from norm(f"{block}.bn1", inputs)
            yield from conv(f"{block}.conv1", 3, inputs, outputs)
            yield from norm(f"{block}.bn2", outputs)
            yield from conv(f"{block}.conv2", 3, outputs, outputs)
            if inputs != outputs:
                yield from conv(f"{block}.convShortcut", 1, inputs, outputs)
            inputs = outputs
    yield from norm("bn1", inputs)
    yield from linear("fc", inputs)


def vgg(repeats: int) -> Layout:
    inputs = 3
    for block, width in enumerate((64, 128, 256, 512, 512)):
        for i in range(repeats):
            yield from conv(f"block{block}.{3 * i}", 3, inputs, width, bias=True)
            yield from norm(f"block{block}.{3 * i + 1}", width)
            inputs = width
    yield from linear("classifier", 512)


def resnet50() -> Layout:
    yield from conv("conv1", 3, 3, 64)
    yield from norm("bn1", 64)
    inputs = 64
    for stage, (blocks, middle) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for i in range(blocks):
            block = f"layer{stage}.{i}"
            for k, (size, a, b) in enumerate(((1, inputs, middle), (3, middle, middle), (1, middle, 4 * middle)), 1):
                yield from conv(f"{block}.conv{k}", size, a, b)
                yield from norm(f"{block}.bn{k}", b)
            if i == 0:
                yield from conv(f"{block}.shortcut.0", 1, inputs, 4 * middle)
                yield from norm(f"{block}.shortcut.1", 4 * middle)
            inputs = 4 * middle
    yield from linear("linear", inputs)


def mobilenet() -> Layout:
    """Half of the channels 32; 16, 24, 32, 64, 96, 160, 320; expansion 6 but in the first group."""
    yield from conv("conv1.0", 3, 3, 16)
    yield from norm("conv1.1", 16)
    inputs = 16
    for group, (outputs, blocks) in enumerate(((8, 1), (12, 2), (16, 3), (32, 4), (48, 3), (80, 3), (160, 1))):
        for i in range(blocks):
            middle = inputs * (6 if group else 1)
            block = f"blocks.{group}.{i}.conv"
            yield from conv(f"{block}.0", 1, inputs, middle)
            yield from norm(f"{block}.1", middle)
            yield from conv(f"{block}.3", 3, middle, middle, groups=middle)
            yield from norm(f"{block}.4", middle)
            yield from conv(f"{block}.6", 1, middle, outputs)
            yield from norm(f"{block}.7", outputs)
            inputs = outputs
    yield from conv("conv2.0", 1, inputs, 1280)
    yield from norm("conv2.1", 1280)
    yield from linear("classifier.0", 1280)


def shuffle_v1() -> Layout:
    yield from conv("conv1", 1, 3, 24)
    yield from norm("bn1", 24)
    inputs = 24
    for stage, (width, units) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        for i in range(units):
            unit, branch = f"layer{stage}.{i}", width - inputs if i == 0 else width
            middle = branch // 4
            yield from conv(f"{unit}.conv1", 1, inputs, middle, groups=1 if inputs == 24 else 3)
            yield from norm(f"{unit}.bn1", middle)
            yield from conv(f"{unit}.conv2", 3, middle, middle, groups=middle)
            yield from norm(f"{unit}.bn2", middle)
            yield from conv(f"{unit}.conv3", 1, middle, branch, groups=3)
            yield from norm(f"{unit}.bn3", branch)
            inputs = width
    yield from linear("linear", inputs)


def shuffle_v2() -> Layout:
    yield from conv("conv1", 1, 3, 24)
    yield from norm("bn1", 24)
    inputs = 24
    for stage, (width, units) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
        half = width // 2
        down = ((3, inputs, inputs), (1, inputs, half), (1, inputs, half), (3, half, half), (1, half, half))
        for i in range(units):
            for k, (size, a, b) in enumerate(down if i == 0 else down[2:], 1):
                yield from conv(
                    f"layer{stage}.{i}.conv{k}", size, a if i == 0 else half, b, groups=b if size == 3 else 1
                )
                yield from norm(f"layer{stage}.{i}.bn{k}", b)
        inputs = width
    yield from conv("conv2", 1, inputs, 1024)
    yield from norm("bn2", 1024)
    yield from linear("linear", 1024)


X4 = (32, 64, 128, 256)
RESNETS = (8, 14, 20, 32, 44, 56, 110)
LAYOUTS: dict[str, Callable[[], Layout]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in RESNETS},
    **{f"resnet{depth}x4": partial(resnet, depth, X4) for depth in (8, 32)},
    **{f"wrn{depth}_{width}": partial(wrn, depth, width) for depth, width in ((16, 2), (40, 1), (40, 2))},
    "vgg8": partial(vgg, 1),
    "vgg13": partial(vgg, 2),
    "resnet50_cifar": resnet50,
    "mobilenet_v2_half": mobilenet,
    "shufflenet_v1": shuffle_v1,
    "shufflenet_v2": shuffle_v2,
}
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn16_2": 703_284,
    "wrn40_1": 569_780,
    "wrn40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "resnet50_cifar": 23_705_252,
    "mobilenet_v2_half": 812_836,
    "shufflenet_v1": 949_258,
    "shufflenet_v2": 1_355_528,
}


def network(name: str) -> nn.Module:
    """As CRD's experiments have it, 100 classes."""
    if name in PARAMETERS and name.removeprefix("resnet").isdigit():
        return getattr(models, name)(num_classes=100, shortcut="B", init="crd")
    return getattr(models, name)(num_classes=100, **({"init": "crd"} if name.endswith("x4") else {}))


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layers_names_and_parameters(name: str) -> None:
    layout, model = dict(LAYOUTS[name]()), network(name)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == layout
    learnt = [shape for key, shape in layout.items() if not key.rpartition(".")[2].startswith(("running", "num_"))]
    assert sum(map(math.prod, learnt)) == sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["resnet20", "wrn16_2", "vgg8", "mobilenet_v2_half", "shufflenet_v1", "shufflenet_v2"])
def test_its_checkpoints_load(name: str, tmp_path: Path) -> None:
    """Files `ckpt_epoch_*.pth` and `*_best.pth`: the state in `model`, beside it epoch, accuracy and optimizer."""
    state = {key: torch.zeros(shape) if not shape else torch.rand(shape) for key, shape in LAYOUTS[name]()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(1)}}, "param_groups": [{"lr": 0.05, "params": [0]}]}
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": state, "accuracy": torch.tensor([72.34]), "optimizer": optimizer}, path)
    model = network(name)
    assert load_weights(model, path) == {}
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=0, check_dtype=bool(tensor.dim()))


# Where RepDistiller leaves PyTorch's draw: weights and biases uniform within ± 1 / sqrt(fan-in).
DRAWN = {
    "resnet20": "fc",
    "resnet8x4": "fc",
    "resnet50_cifar": "linear",
    "shufflenet_v1": "linear",
    "shufflenet_v2": "linear",
}


@pytest.mark.parametrize(("name", "last"), DRAWN.items())
def test_last_layer_as_pytorch_draws_it(name: str, last: str) -> None:
    torch.manual_seed(0)
    layer = network(name).get_submodule(last)
    assert isinstance(layer, nn.Linear)
    bound = layer.in_features**-0.5
    for values in (layer.weight, layer.bias):
        assert 0.9 * bound < values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


@pytest.mark.parametrize("name", ["wrn16_2", "vgg8", "mobilenet_v2_half"])
def test_last_layer_with_zero_bias(name: str) -> None:
    model = network(name)
    weight, bias = list(model.parameters())[-2:]
    assert not bias.any()
    if name != "wrn16_2":
        assert weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_convolutions_are_drawn_as_there() -> None:
    """N(0, 2 / (outputs · size²)), depthwise too; in the ShuffleNets PyTorch's uniform within ± 1 / sqrt(fan-in)."""
    torch.manual_seed(0)
    block = models.mobilenet_v2_half().blocks.get_submodule("6.0.conv")
    assert isinstance(block, nn.Sequential)
    depthwise, last = block[3].weight, block[6].weight  # 480 x 1 x 3 x 3, 160 x 480 x 1 x 1
    assert depthwise.std().item() == pytest.approx((2 / (480 * 9)) ** 0.5, rel=0.05)
    assert last.std().item() == pytest.approx((2 / 160) ** 0.5, rel=0.02)
    bottleneck = models.resnet50_cifar().layer3[1]
    assert bottleneck.conv2.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    pointwise = models.shufflenet_v2().conv2.weight  # 1024 x 464
    assert 0.99 * 464**-0.5 < pointwise.abs().max() <= 464**-0.5


def test_init_changes_the_last_bias_alone() -> None:
    """Weights of recorded runs stay: a seed draws the same ones whatever `init` says, and the default bias is zero."""
    states = {}
    for init in ("zero_bias", "crd"):
        torch.manual_seed(3)
        states[init] = models.resnet20(shortcut="B", init=init).state_dict()
    torch.manual_seed(3)
    default = models.resnet20(shortcut="B").state_dict()
    for key, tensor in default.items():
        torch.testing.assert_close(tensor, states["zero_bias"][key], rtol=0, atol=0)
        if key != "fc.bias":
            torch.testing.assert_close(tensor, states["crd"][key], rtol=0, atol=0)
    assert not default["fc.bias"].any()
    assert states["crd"]["fc.bias"].all()
    with pytest.raises(ValueError, match="init='zero'"):
        models.resnet20(init="zero")  # pyright: ignore[reportArgumentType]
