"""MobileNetV2 for small images, as CRD's benchmark (Tian et al., 2020; RepDistiller's `models/mobilenetv2.py`) builds it.

It differs from Sandler et al. (2018): ReLU instead of ReLU6, no dropout, strides of 2 in the stem and before the third,
fourth and sixth group only (32x32 images end at 2x2), an expanding convolution in the first block too, widths rounded
down. The last convolution keeps its 1280 channels at half width.

Parameter names are those of that benchmark (`conv1.0`, `blocks.0.0.conv.3`, `classifier.0`), and so is the initialisation.
Its features are the outputs of groups 1, 2, 4 and 6 of `blocks`, "stage1" to "stage4" here, and the 1280 pooled values of the
last convolution. The stages are linear, no ReLU ends them, so there are no names with "_pre_relu".

Shape suffixes: B images, C channels, H and W rows and columns.
"""

from functools import partial

from torch import Tensor, nn

from nst.models.named_layers import name_layers
from nst.models.parts import he_normal_

_GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels at full width, blocks, stride of the first block."""


class InvertedResidual(nn.Module):
    """conv 1x1 - BN - ReLU - depthwise 3x3 - BN - ReLU - conv 1x1 - BN; plus the input where the shapes agree.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the depthwise convolution.
        expansion: how many times wider than the input the depthwise convolution is.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        middle = in_channels * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride], not activated."""
        out = self.conv(x)
        return x + out if self.residual else out


class CifarMobileNetV2(nn.Module):
    """A strided 3x3 stem, seven groups of inverted residuals, a 1x1 convolution, global average, one linear layer.

    Args:
        width: factor of all channels but the last convolution's 1280.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, width: float, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        groups = []
        for expansion, full, blocks, stride in _GROUPS:
            inputs, channels = channels, int(full * width)
            first = InvertedResidual(inputs, channels, stride, expansion)
            rest = (InvertedResidual(channels, channels, 1, expansion) for _ in range(blocks - 1))
            groups.append(nn.Sequential(first, *rest))
        self.blocks = nn.Sequential(*groups)
        self.conv2 = nn.Sequential(nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        linear = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(linear)
        stages = ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]
        self.named_layers = name_layers(stages, pooled="classifier.0:input")
        he_normal_(self)
        nn.init.normal_(linear.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.conv1(x)  # [B, 32 width, H/2, W/2]
        x = self.blocks(x)  # [B, 320 width, H/16, W/16]
        x = self.conv2(x)  # [B, 1280, H/16, W/16]
        return self.classifier(self.avgpool(x).flatten(1))


mobilenet_v2_half = partial(CifarMobileNetV2, 0.5)
