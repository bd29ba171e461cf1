"""Inception-BN (Ioffe & Szegedy, 2015): the paper's students, small for CIFAR and full for ImageNet.

The branches of a factory end in their normalisation; one ReLU follows their concatenation. That is the same function as a
ReLU a branch (pooled inputs are not negative), and gives the paper's ImageNet layer a place: the input of `in5b.relu`.
"""

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from nst.models.parts import BN_EPS, Network, conv_and_norm, he_normal_, head, input_norm, name_layers, set_bn_eps

Pooling = Literal["ceil", "valid"]


def conv_bn(in_channels: int, out_channels: int, size: int, stride: int = 1, relu: bool = False) -> nn.Sequential:
    """A square convolution, padded to keep the size at stride 1, and its normalisation: children `conv`, `bn`, and with it `relu`."""
    conv, bn = conv_and_norm(in_channels, out_channels, size, stride)
    layers: dict[str, nn.Module] = {"conv": conv, "bn": bn}
    return nn.Sequential(OrderedDict(layers | ({"relu": nn.ReLU()} if relu else {})))


class Factory(nn.Module):
    """Branches [B, in_channels, H, W] -> [B, C_i, H', W'] of the same input, concatenated over the channels, then ReLU."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, sum of C_i, H', W']."""
        return self.relu(torch.cat([branch(x) for branch in self.branches.values()], dim=1))


def _simple(in_channels: int, conv1: int, conv3: int) -> Factory:
    """The CIFAR network's factory: 1x1 and 3x3 side by side; with `conv1` 0, which halves the map, strided 3x3 and max pooling."""
    if not conv1:
        return Factory(conv3=conv_bn(in_channels, conv3, 3, stride=2), pool=nn.MaxPool2d(3, stride=2, padding=1))
    return Factory(conv1=conv_bn(in_channels, conv1, 1), conv3=conv_bn(in_channels, conv3, 3))


def _full(
    in_channels: int, conv1: int, conv3: tuple[int, int], double3: tuple[int, int], proj: int, average: bool = True
) -> Factory:
    """Four branches: 1x1; 1x1 - 3x3; 1x1 - 3x3 - 3x3; average or max pool - 1x1. Pairs are channels of the 1x1 and of the 3x3.

    With `conv1` 0 it halves the map: no first branch, a stride of 2 in the last 3x3, a bare max pool.
    """
    stride = 1 if conv1 else 2
    branches: dict[str, nn.Module] = {"conv1": conv_bn(in_channels, conv1, 1)} if conv1 else {}
    first = conv_bn(in_channels, conv3[0], 1, relu=True)
    branches["conv3"] = nn.Sequential(first, conv_bn(*conv3, 3, stride))
    first, middle = conv_bn(in_channels, double3[0], 1, relu=True), conv_bn(*double3, 3, relu=True)
    branches["double3"] = nn.Sequential(first, middle, conv_bn(double3[1], double3[1], 3, stride))
    pool = nn.AvgPool2d(3, stride, padding=1) if average and conv1 else nn.MaxPool2d(3, stride, padding=1)
    branches["pool"] = nn.Sequential(pool, conv_bn(in_channels, proj, 1)) if conv1 else pool
    return Factory(**branches)


_STAGES = ["in3b", "in4d", "in5b"]
_LAYERS = name_layers(_STAGES, pre_relu=[f"{name}.relu:input" for name in _STAGES], pooled="fc:input")


class InceptionBNSmall(Network):
    """The paper's CIFAR student: MXNet's `inception-bn-28-small`, 336 channels at a quarter of the resolution."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(
            conv1=conv_bn(in_channels, 96, 3, relu=True),  # [B, 96, H, W]
            in3a=_simple(96, 32, 32),
            in3b=_simple(64, 32, 48),  # [B, 80, H, W]
            in3c=_simple(80, 0, 80),  # [B, 160, H/2, W/2]
            in4a=_simple(160, 112, 48),
            in4b=_simple(160, 96, 64),
            in4c=_simple(160, 80, 80),
            in4d=_simple(160, 48, 96),  # [B, 144, H/2, W/2]
            in4e=_simple(144, 0, 96),  # [B, 240, H/4, W/4]
            in5a=_simple(240, 176, 160),
            in5b=_simple(336, 176, 160),  # [B, 336, H/4, W/4]
            **head("fc", 336, num_classes),
        )
        self.named_layers = dict(_LAYERS)
        he_normal_(self, mode="fan_in", linear=True)


class InceptionBN(Network):
    """The paper's ImageNet student (its code's `inception_bn`): 1024 channels at 7x7 from 224x224 images.

    Args:
        input_bn: normalise raw pixels in the network, with a fixed scale, as the paper's code does.
        pooling: size after the two max poolings of the stem, rounded up ("ceil": 112, 56, 28, 14, 7, as Ioffe & Szegedy
            have it) or down ("valid": 112, 55, 27, 14, 7, as the paper's code has it).
        bn_eps: ε of every batch normalisation; 2e-5 in the paper's code.

    Raises:
        ValueError: `pooling` is none of its values, or `bn_eps` is not positive.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        input_bn: bool = False,
        pooling: Pooling = "ceil",
        bn_eps: float = BN_EPS,
    ) -> None:
        if pooling not in ("ceil", "valid"):
            raise ValueError(f"pooling={pooling!r}: use 'ceil' (sizes rounded up) or 'valid' (rounded down)")
        super().__init__(
            input_bn=input_norm(in_channels, input_bn),
            conv1=conv_bn(in_channels, 64, 7, stride=2, relu=True),  # [B, 64, H/2, W/2]
            pool1=nn.MaxPool2d(3, stride=2, ceil_mode=pooling == "ceil"),
            conv2_reduce=conv_bn(64, 64, 1, relu=True),  # [B, 64, H/4, W/4]
            conv2=conv_bn(64, 192, 3, relu=True),
            pool2=nn.MaxPool2d(3, stride=2, ceil_mode=pooling == "ceil"),  # [B, 192, H/8, W/8]
            in3a=_full(192, 64, (64, 64), (64, 96), 32),
            in3b=_full(256, 64, (64, 96), (64, 96), 64),
            in3c=_full(320, 0, (128, 160), (64, 96), 0),  # [B, 576, H/16, W/16]
            in4a=_full(576, 224, (64, 96), (96, 128), 128),
            in4b=_full(576, 192, (96, 128), (96, 128), 128),
            in4c=_full(576, 160, (128, 160), (128, 160), 128),
            in4d=_full(608, 96, (128, 192), (160, 192), 128),  # [B, 608, H/16, W/16]
            in4e=_full(608, 0, (128, 192), (192, 256), 0),  # [B, 1056, H/32, W/32]
            in5a=_full(1056, 352, (192, 320), (160, 224), 128),
            in5b=_full(1024, 352, (192, 320), (192, 224), 128, average=False),
            **head("fc", 1024, num_classes),
        )
        self.named_layers = dict(_LAYERS)
        he_normal_(self, mode="fan_in", linear=True)
        set_bn_eps(self, bn_eps)
