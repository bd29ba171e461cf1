"""Wide ResNets for small images (Zagoruyko & Komodakis, 2016), as CRD's benchmark builds them.

Parameter names are those of that benchmark (`block1.layer.0.convShortcut`), so that its published weights fit. Its features
are the raw sums of the three groups, "stage1_out" to "stage3_out" here, and the pooled vector after the last BN and ReLU.

Shape suffixes: B images, C channels, H and W rows and columns.
"""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from nst.models.named_layers import name_layers
from nst.models.parts import he_normal_


class WideBlock(nn.Module):
    """Twice BN - ReLU - 3x3 conv, added to the raw input, or to a 1x1 convolution of the first activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride], not activated."""
        out = self.relu1(self.bn1(x))
        if self.convShortcut is not None:
            x = self.convShortcut(out)
        return x + self.conv2(self.relu2(self.bn2(self.conv1(out))))


class WideResNet(nn.Module):
    """A 16-channel stem, three groups of 16, 32 and 64 times `width` channels, BN - ReLU, global average, linear layer.

    Args:
        depth: 6n + 4 convolutions, n blocks a group.
        width: how many times wider than the thin network; where `width` is 1 the first group needs no projection.
        num_classes: number of logits.
        in_channels: channels of the images.

    Raises:
        ValueError: the depth is not 6n + 4, or the width is below 1.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: a wide ResNet has 6n + 4 layers (16, 22, 28, 40, ...)")
        if width < 1:
            raise ValueError(f"width={width}: a wide ResNet is at least 1 time as wide as the thin one")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = _group(blocks, 16, 16 * width, 1)
        self.block2 = _group(blocks, 16 * width, 32 * width, 2)
        self.block3 = _group(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        # A group's sum is raw; the BN and ReLU that follow it are the next group's first ones, or the network's last.
        self.named_layers = name_layers(
            ["block2.layer.0.relu1", "block3.layer.0.relu1", "relu"],
            pre_relu=["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"],
            out=["block1", "block2", "block3"],
            pooled="fc:input",
        )
        he_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.block1(self.conv1(x))  # [B, 16 width, H, W]
        x = self.block2(x)  # [B, 32 width, H/2, W/2]
        x = self.block3(x)  # [B, 64 width, H/4, W/4]
        x = self.relu(self.bn1(x))
        return self.fc(self.avgpool(x).flatten(1))


def _group(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride)
    layer = nn.Sequential(first, *(WideBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
    return nn.Sequential(OrderedDict(layer=layer))


wrn16_2 = partial(WideResNet, 16, 2)
wrn40_1 = partial(WideResNet, 40, 1)
wrn40_2 = partial(WideResNet, 40, 2)
