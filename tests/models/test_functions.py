"""Every network of our own is the stated function of its weights, in float64, by the names that published checkpoints have.

Each network is written out below from the published code of its source (RepDistiller for CRD's benchmark, the authors' code for
the pre-activation ResNets), with the feature of every named layer. A reference reads every tensor of the state dict by its
published name: none is left over, so a published checkpoint that loads gives the published logits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.models.conftest import capture, with_statistics
from torch import Tensor, nn

import nst.models as models


class Reference:
    """Layers by name from a state dict, evaluated with their running statistics; remembers which tensors were read."""

    def __init__(self, model: nn.Module) -> None:
        self.state = with_statistics(model).state_dict()
        self.read: set[str] = set()
        self.expected: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        self.read.add(name)
        return self.state[name]

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.get(f"{name}.weight")
        bias = self.get(f"{name}.bias") if f"{name}.bias" in self.state else None
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, bias, stride, weight.shape[2] // 2, groups=groups)

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale, shift, mean, variance = (
            self.get(f"{name}.{part}")[:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def linear(self, name: str, x: Tensor) -> Tensor:
        self.expected["pooled"] = x.mean(dim=(2, 3))
        return self.expected["pooled"] @ self.get(f"{name}.weight").T + self.get(f"{name}.bias")

    def stage(self, number: int, before: Tensor, out: Tensor | None = None) -> Tensor:
        """A stage that ends in a ReLU of `before`; `out` is what it hands on, else the ReLU's output."""
        for name in (f"stage{number}", "last"):
            self.expected[f"{name}_pre_relu"], self.expected[name] = before, before.relu()
            self.expected[f"{name}_out"] = before.relu() if out is None else out
        return before.relu()


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel j of group g goes to place j · groups + g."""
    size = x.shape[1] // groups
    return torch.stack([x[:, g * size + j] for j in range(size) for g in range(groups)], dim=1)


def resnet(
    net: Reference, x: Tensor, blocks: tuple[int, ...], shortcut: str = "downsample", last: str = "fc"
) -> Tensor:
    """Of two or three convolutions a block. Option A where there is no projection: every second pixel, between channels of zeros."""
    x = net.norm("bn1", net.conv("conv1", x)).relu()
    for stage, count in enumerate(blocks, 1):
        for i in range(count):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            convolutions, out = 3 if f"{name}.conv3.weight" in net.state else 2, x
            for k in range(1, convolutions + 1):  # the stride stands on the first 3x3
                out = out if k == 1 else out.relu()
                out = net.norm(
                    f"{name}.bn{k}", net.conv(f"{name}.conv{k}", out, stride if k == convolutions - 1 else 1)
                )
            if f"{name}.{shortcut}.0.weight" in net.state:
                x = net.norm(f"{name}.{shortcut}.1", net.conv(f"{name}.{shortcut}.0", x, stride))
            elif stride == 2:
                zeros = torch.zeros(len(x), (out.shape[1] - x.shape[1]) // 2, *out.shape[2:], dtype=x.dtype)
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            before = out + x
            x = before.relu()
        net.stage(stage, before)
    return net.linear(last, x)


def wrn(net: Reference, x: Tensor, blocks: int) -> Tensor:
    """A group's sum is raw; the normalisation and the ReLU after it are the next group's first ones."""
    x = net.conv("conv1", x)
    for stage in (1, 2, 3):
        for i in range(blocks):
            name, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            first = net.norm(f"{name}.bn1", x).relu()
            if stage > 1 and i == 0:
                net.stage(stage - 1, net.norm(f"{name}.bn1", x), x)
            out = net.norm(f"{name}.bn2", net.conv(f"{name}.conv1", first, stride)).relu()
            project = f"{name}.convShortcut.weight" in net.state
            x = (net.conv(f"{name}.convShortcut", first, stride) if project else x) + net.conv(f"{name}.conv2", out)
    return net.linear("fc", net.stage(3, net.norm("bn1", x), x))


def preact(net: Reference, x: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """The stride stands on the first 1x1 in the authors' CIFAR code, on the 3x3 in MXNet's network for ImageNet."""
    x, large = net.conv("conv0", x, 2 if len(blocks) == 4 else 1), len(blocks) == 4
    if large:
        x = F.max_pool2d(net.norm("bn0", x).relu(), 3, 2, 1)
    for stage, count in enumerate(blocks, 1):
        for i in range(count):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            before = net.norm(f"{name}.bn1", x)
            if stage > 1 and i == 0:
                net.stage(stage - 1, before, x)
            out = net.norm(f"{name}.bn2", net.conv(f"{name}.conv1", before.relu(), 1 if large else stride)).relu()
            out = net.norm(f"{name}.bn3", net.conv(f"{name}.conv2", out, stride if large else 1)).relu()
            shortcut = net.conv(f"{name}.downsample", before.relu(), stride) if i == 0 else x
            x = shortcut + net.conv(f"{name}.conv3", out)
    return net.linear("fc", net.stage(len(blocks), net.norm("bn1", x), x))


def vgg(net: Reference, x: Tensor, repeats: int) -> Tensor:
    for block in range(5):
        for i in range(repeats):
            x = net.norm(f"block{block}.{3 * i + 1}", net.conv(f"block{block}.{3 * i}", x if i == 0 else x.relu()))
        if block:
            net.stage(block, x)
        x = F.max_pool2d(x.relu(), 2) if block < 3 else x.relu()
    return net.linear("classifier", x)


def mobilenet_v2(net: Reference, x: Tensor) -> Tensor:
    """Its stages end without a ReLU."""
    x, outputs = net.norm("conv1.1", net.conv("conv1.0", x, 2)).relu(), []
    for group, (blocks, first) in enumerate(((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))):
        for i in range(blocks):
            name = f"blocks.{group}.{i}.conv"
            out = net.norm(f"{name}.1", net.conv(f"{name}.0", x)).relu()
            out = net.norm(f"{name}.4", net.conv(f"{name}.3", out, first if i == 0 else 1)).relu()
            out = net.norm(f"{name}.7", net.conv(f"{name}.6", out))
            x = out + x if i else out  # no first block keeps its number of channels
        outputs.append(x)
    for name, k in {"stage1": 1, "stage2": 2, "stage3": 4, "stage4": 6, "last": 6}.items():
        net.expected |= {name: outputs[k], f"{name}_out": outputs[k]}
    return net.linear("classifier.0", net.norm("conv2.1", net.conv("conv2.0", x)).relu())


def shufflenet_v1(net: Reference, x: Tensor) -> Tensor:
    x = net.norm("bn1", net.conv("conv1", x)).relu()
    for stage, units in enumerate((4, 8, 4), 1):
        for i in range(units):
            name, stride = f"layer{stage}.{i}", 2 if i == 0 else 1
            out = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x)).relu()
            out = shuffled(out, 1 if (stage, i) == (1, 0) else 3)
            out = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", out, stride)).relu()
            out = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", out))
            x = net.stage(stage, torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], dim=1) if i == 0 else out + x)
    return net.linear("linear", x)


def shufflenet_v2(net: Reference, x: Tensor) -> Tensor:
    """The ReLU of a unit stands on its branches alone here, and after their concatenation there: the same function."""
    x = net.norm("bn1", net.conv("conv1", x)).relu()
    for stage, units in enumerate((4, 8, 4), 1):
        name = f"layer{stage}.0"
        left = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", x, 2))
        left = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", left)).relu()
        right = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", x)).relu()
        right = net.norm(f"{name}.bn4", net.conv(f"{name}.conv4", right, 2))
        right = net.norm(f"{name}.bn5", net.conv(f"{name}.conv5", right)).relu()
        x = shuffled(torch.cat([left, right], dim=1), 2)
        for i in range(1, units):
            name = f"layer{stage}.{i}"
            passed, out = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
            out = net.norm(f"{name}.bn1", net.conv(f"{name}.conv1", out)).relu()
            out = net.norm(f"{name}.bn2", net.conv(f"{name}.conv2", out))
            out = net.norm(f"{name}.bn3", net.conv(f"{name}.conv3", out))
            before = torch.cat([passed, out], dim=1)
            x = shuffled(before.relu(), 2)
        for name in (f"stage{stage}", "last"):
            net.expected |= {name: x, f"{name}_out": x, f"{name}_pre_relu": before}
    return net.linear("linear", net.norm("bn2", net.conv("conv2", x)).relu())


def inception_bn_small(net: Reference, x: Tensor) -> Tensor:
    """MXNet's factories: a 1x1 and a 3x3 side by side; a strided 3x3 and max pooling where the map is halved."""
    x = net.norm("conv1.bn", net.conv("conv1.conv", x)).relu()
    for name in ("in3a", "in3b", "in3c", "in4a", "in4b", "in4c", "in4d", "in4e", "in5a", "in5b"):
        down = name in ("in3c", "in4e")
        branch = f"{name}.branches.conv3"
        out = net.norm(f"{branch}.bn", net.conv(f"{branch}.conv", x, 2 if down else 1))
        if down:
            x = torch.cat([out, F.max_pool2d(x, 3, 2, 1)], dim=1).relu()
            continue
        other = f"{name}.branches.conv1"
        before = torch.cat([net.norm(f"{other}.bn", net.conv(f"{other}.conv", x)), out], dim=1)
        x = before.relu()
        if name in ("in3b", "in4d", "in5b"):
            net.stage({"in3b": 1, "in4d": 2, "in5b": 3}[name], before)
    return net.linear("fc", x)


NETWORKS: dict[str, tuple[Any, Callable[..., Tensor]]] = {  # the network, its function
    "resnet20": (models.resnet20, partial(resnet, blocks=(3, 3, 3))),
    "resnet20 with projections": (partial(models.resnet20, shortcut="B"), partial(resnet, blocks=(3, 3, 3))),
    "resnet8x4": (models.resnet8x4, partial(resnet, blocks=(1, 1, 1))),
    "wrn16_2": (models.wrn16_2, partial(wrn, blocks=2)),
    "wrn40_1": (models.wrn40_1, partial(wrn, blocks=6)),
    "preact_resnet164": (models.preact_resnet164, partial(preact, blocks=(18, 18, 18))),
    "preact_resnet101": (models.preact_resnet101, partial(preact, blocks=(3, 4, 23, 3))),
    "vgg8": (models.vgg8, partial(vgg, repeats=1)),
    "vgg13": (models.vgg13, partial(vgg, repeats=2)),
    "resnet50_cifar": (models.resnet50_cifar, partial(resnet, blocks=(3, 4, 6, 3), shortcut="shortcut", last="linear")),
    "mobilenet_v2_half": (models.mobilenet_v2_half, mobilenet_v2),
    "shufflenet_v1": (models.shufflenet_v1, shufflenet_v1),
    "shufflenet_v2": (models.shufflenet_v2, shufflenet_v2),
    "inception_bn_small": (models.inception_bn_small, inception_bn_small),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_logits_and_named_layers_are_the_stated_function(name: str) -> None:
    make, function = NETWORKS[name]
    model = make()
    net = Reference(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(capture(model, x), (function(net, x), net.expected))
    assert net.read == {key for key in net.state if not key.endswith("num_batches_tracked")}
