"""ResNets for small images: He et al. (2015, section 4.2), and those of CRD's benchmark (Tian et al., 2020).

Parameter names (`conv1`, `bn1`, `layer1.0.conv1`, ..., `fc`) are those that most published weights use; with projection
shortcuts (`layer2.0.downsample.0`) those of CRD's benchmark load.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from nst.models.parts import Network, conv_and_norm, he_normal_, head, name_layers, stages

Shortcut = Literal["A", "B"]
Init = Literal["zero_bias", "crd"]


class PaddedShortcut(nn.Module):
    """Shortcut without parameters (option A): every stride-th position, zero channels added equally on both sides."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, added = stride, out_channels - in_channels
        self.before, self.after = added // 2, added - added // 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def shortcut_of(in_channels: int, out_channels: int, stride: int, kind: Shortcut = "B") -> nn.Module:
    """The input itself where the shape stays; else padded with zeros ("A"), or a strided 1x1 convolution and its normalisation ("B")."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "A":
        return PaddedShortcut(in_channels, out_channels, stride)
    return nn.Sequential(*conv_and_norm(in_channels, out_channels, 1, stride))


class BasicBlock(nn.Module):
    """conv - BN - ReLU - conv - BN, plus the shortcut, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_and_norm(in_channels, out_channels, 3, stride)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_and_norm(out_channels, out_channels, 3)
        self.downsample = shortcut_of(in_channels, out_channels, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.downsample(x))


class CifarResNet(Network):
    """A stem, three stages of basic blocks at full, half and quarter resolution, global average, one linear layer.

    CRD's benchmark (RepDistiller's `models/resnet.py`) has `shortcut="B"` and `init="crd"`.

    Args:
        depth: 6n + 2 weighted layers, n blocks a stage.
        shortcut: where the width or size changes, "A" pads with zeros, "B" projects.
        init: the linear layer's bias starts at zero ("zero_bias") or as PyTorch draws it, uniformly within
            ±1 / sqrt(fan-in) ("crd"). All other weights of a seed are the same.
        widths: channels of the stem and of the three stages.

    Raises:
        ValueError: the depth is not 6n + 2, or `shortcut` or `init` is none of its values.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: Shortcut = "A",
        init: Init = "zero_bias",
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth}: a CIFAR ResNet has 6n + 2 layers, n >= 1 (8, 14, 20, 32, ...)")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r}: use 'A' (zero padding) or 'B' (1x1 convolution)")
        if init not in ("zero_bias", "crd"):
            raise ValueError(f"init={init!r}: use 'zero_bias' or 'crd' (the linear layer's bias drawn as PyTorch does)")
        blocks = (depth - 2) // 6
        super().__init__(
            conv1=nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(widths[0]),
            relu=nn.ReLU(),
            **stages(BasicBlock, [blocks] * 3, widths, 1, shortcut),
            **head("fc", widths[3], num_classes),
        )
        self.named_layers = name_layers(
            ["layer1", "layer2", "layer3"],
            pre_relu=[f"layer{k}.{blocks - 1}.relu2:input" for k in (1, 2, 3)],
            pooled="fc:input",
        )
        he_normal_(self, zero_linear_bias=init == "zero_bias")


class Bottleneck(nn.Module):
    """conv 1x1 - BN - ReLU - conv 3x3 (with the stride) - BN - ReLU - conv 1x1, four times wider - BN, plus the shortcut, then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        middle = out_channels // 4
        self.conv1, self.bn1 = conv_and_norm(in_channels, middle, 1)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_and_norm(middle, middle, 3, stride)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3 = conv_and_norm(middle, out_channels, 1)
        self.shortcut = shortcut_of(in_channels, out_channels, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.relu3(self.bn3(self.conv3(out)) + self.shortcut(x))


class CifarBottleneckResNet(Network):
    """ResNet-50 for small images, as CRD's benchmark builds it (RepDistiller's `models/resnetv2.py`): a teacher there.

    The ImageNet network with a 3x3 stem of stride 1 and no max pooling: its four stages run at 1, 1/2, 1/4 and 1/8 of the
    image's resolution. Parameter names and initialisation are those of that benchmark (`layer1.0.shortcut.0`, `linear`).
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    ) -> None:
        super().__init__(
            conv1=nn.Conv2d(in_channels, 64, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(),
            **stages(Bottleneck, blocks, (64, 256, 512, 1024, 2048), 1),
            **head("linear", 2048, num_classes),
        )
        self.named_layers = name_layers(
            [f"layer{k}" for k in (1, 2, 3, 4)],
            pre_relu=[f"layer{k}.{count - 1}.relu3:input" for k, count in enumerate(blocks, start=1)],
            pooled="linear:input",
        )
        he_normal_(self, zero_linear_bias=False)
