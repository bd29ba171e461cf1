"""ResNets for small images: He et al. (2015, section 4.2), and the four times wider ones of CRD's benchmark.

Parameter names (`conv1`, `bn1`, `layer1.0.conv1`, ..., `fc`) are those that most published weights use; with projection
shortcuts (`layer2.0.downsample.0`) those of CRD's benchmark load.

Shape suffixes: B images, C channels, H and W rows and columns.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from nst.models.initialise import he_normal_
from nst.models.roles import name_layers

Shortcut = Literal["A", "B"]
Init = Literal["zero_bias", "crd"]


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (option A): every stride-th position, zero channels added equally on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Shortcut with parameters (option B): a strided 1x1 convolution and its normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """conv - BN - ReLU - conv - BN, plus the shortcut, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.downsample = nn.Identity()
        elif shortcut == "A":
            self.downsample = PaddedShortcut(in_channels, out_channels, stride)
        else:
            self.downsample = projection(in_channels, out_channels, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.downsample(x))


class CifarResNet(nn.Module):
    """A stem, three stages of basic blocks at full, half and quarter resolution, global average, one linear layer.

    CRD's benchmark (Tian et al., 2020; RepDistiller's `models/resnet.py`) has `shortcut="B"` and `init="crd"`.

    Args:
        depth: 6n + 2 weighted layers, n blocks a stage.
        widths: channels of the stem and of the three stages.
        shortcut: where the width or size changes, "A" pads with zeros, "B" projects.
        num_classes: number of logits.
        in_channels: channels of the images.
        init: the linear layer's bias starts at zero ("zero_bias") or as PyTorch draws it, uniformly within
            ±1 / sqrt(fan-in) ("crd"). All other weights of a seed are the same.

    Raises:
        ValueError: the depth is not 6n + 2, or `shortcut` or `init` is none of its values.
    """

    def __init__(
        self,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        shortcut: Shortcut = "A",
        num_classes: int = 10,
        in_channels: int = 3,
        init: Init = "zero_bias",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth={depth}: a CIFAR ResNet has 6n + 2 layers, n >= 1 (8, 14, 20, 32, 44, 56, 110, ...)"
            )
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r}: use 'A' (zero padding) or 'B' (1x1 convolution)")
        if init not in ("zero_bias", "crd"):
            raise ValueError(f"init={init!r}: use 'zero_bias' or 'crd' (the linear layer's bias drawn as PyTorch does)")
        blocks = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, stem, stages[0], 1, shortcut)
        self.layer2 = _stage(blocks, stages[0], stages[1], 2, shortcut)
        self.layer3 = _stage(blocks, stages[1], stages[2], 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[2], num_classes)
        self.named_layers = name_layers(
            ["layer1", "layer2", "layer3"],
            pre_relu=[f"layer{k}.{blocks - 1}.relu2:input" for k in (1, 2, 3)],
            pooled="fc:input",
        )
        he_normal_(self, zero_linear_bias=init == "zero_bias")

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))  # [B, stem, H, W]
        x = self.layer1(x)  # [B, C1, H, W]
        x = self.layer2(x)  # [B, C2, H/2, W/2]
        x = self.layer3(x)  # [B, C3, H/4, W/4]
        return self.fc(self.avgpool(x).flatten(1))


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)))


def resnet8(
    num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A", init: Init = "zero_bias"
) -> CifarResNet:
    """ResNet-8 for small images; `shortcut="B"`, `init="crd"` is the network of CRD's benchmark."""
    return CifarResNet(8, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels, init=init)


def resnet14(
    num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A", init: Init = "zero_bias"
) -> CifarResNet:
    """ResNet-14 for small images; `shortcut="B"`, `init="crd"` is the network of CRD's benchmark."""
    return CifarResNet(14, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels, init=init)


def resnet20(
    num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A", init: Init = "zero_bias"
) -> CifarResNet:
    """ResNet-20 for small images; `shortcut="B"`, `init="crd"` is the network of CRD's benchmark."""
    return CifarResNet(20, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels, init=init)


def resnet32(
    num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A", init: Init = "zero_bias"
) -> CifarResNet:
    """ResNet-32 for small images; `shortcut="B"`, `init="crd"` is the network of CRD's benchmark."""
    return CifarResNet(32, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels, init=init)


def resnet44(
    num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A", init: Init = "zero_bias"
) -> CifarResNet:
    """ResNet-44 for small images; `shortcut="B"`, `init="crd"` is the network of CRD's benchmark."""
    return CifarResNet(44, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels, init=init)


def resnet56(
    num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A", init: Init = "zero_bias"
) -> CifarResNet:
    """ResNet-56 for small images; `shortcut="B"`, `init="crd"` is the network of CRD's benchmark."""
    return CifarResNet(56, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels, init=init)


def resnet110(
    num_classes: int = 10, in_channels: int = 3, shortcut: Shortcut = "A", init: Init = "zero_bias"
) -> CifarResNet:
    """ResNet-110 for small images; `shortcut="B"`, `init="crd"` is the network of CRD's benchmark."""
    return CifarResNet(110, shortcut=shortcut, num_classes=num_classes, in_channels=in_channels, init=init)


def resnet8x4(num_classes: int = 10, in_channels: int = 3, init: Init = "zero_bias") -> CifarResNet:
    """ResNet-8, four times as wide, with projections: with `init="crd"` the network of CRD's benchmark."""
    return CifarResNet(8, (32, 64, 128, 256), "B", num_classes, in_channels, init)


def resnet32x4(num_classes: int = 10, in_channels: int = 3, init: Init = "zero_bias") -> CifarResNet:
    """ResNet-32, four times as wide, with projections: with `init="crd"` the network of CRD's benchmark."""
    return CifarResNet(32, (32, 64, 128, 256), "B", num_classes, in_channels, init)
