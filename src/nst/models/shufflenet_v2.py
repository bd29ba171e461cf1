"""ShuffleNetV2 for small images, as CRD's benchmark (Tian et al., 2020; RepDistiller's `models/ShuffleNetv2.py`) builds it.

It differs from Ma et al. (2018): a 1x1 stem of stride 1 and no max pooling (32x32 images end at 4x4). Width 1: 116, 232
and 464 channels.

Parameter names are those of that benchmark (`layer1.0.conv1`, `linear`). It sets no initial weights, so all are PyTorch's
draw. Its features are the three stages: after the last unit's ReLU and shuffle ("stage1" to "stage3"), or the input of that
ReLU ("stage1_pre_relu" ...), whose channels are in the order before the shuffle and half of which are activated already.

Shape suffixes: B images, C channels, H and W rows and columns.
"""

import torch
from torch import Tensor, nn

from nst.models.roles import name_layers


class Unit(nn.Module):
    """Half of the channels pass; the other half goes through 1x1 - BN - ReLU - depthwise 3x3 - BN - 1x1 - BN; ReLU, shuffle.

    The ReLU stands after the concatenation, to give the pre-activation a place: the half that passes is not negative, being
    a unit's output, so it is the same function as a ReLU on the other half alone.

    Args:
        channels: of the input and the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W], not negative -> the same shape."""
        passed, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(out)))))
        out = self.bn3(self.conv3(out))
        return self.shuffle(self.relu2(torch.cat([passed, out], dim=1)))


class DownUnit(nn.Module):
    """Halves the map: depthwise 3x3 - BN - 1x1 - BN beside 1x1 - BN - ReLU - depthwise 3x3 - BN - 1x1 - BN; ReLU, shuffle.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, half from each branch.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / 2, W / 2]."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(self.relu1(self.bn3(self.conv3(x)))))
        right = self.bn5(self.conv5(right))
        return self.shuffle(self.relu2(torch.cat([left, right], dim=1)))


class CifarShuffleNetV2(nn.Module):
    """A 1x1 stem of 24 channels, stages of 4, 8 and 4 units, a 1x1 convolution, global average, one linear layer.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(4, 24, 116)
        self.layer2 = _stage(8, 116, 232)
        self.layer3 = _stage(4, 232, 464)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(1024, num_classes)
        self.named_layers = name_layers(
            ["layer1", "layer2", "layer3"],
            pre_relu=["layer1.3.relu2:input", "layer2.7.relu2:input", "layer3.3.relu2:input"],
            pooled="linear:input",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu1(self.bn1(self.conv1(x)))  # [B, 24, H, W]
        x = self.layer1(x)  # [B, 116, H/2, W/2]
        x = self.layer2(x)  # [B, 232, H/4, W/4]
        x = self.layer3(x)  # [B, 464, H/8, W/8]
        x = self.relu2(self.bn2(self.conv2(x)))  # [B, 1024, H/8, W/8]
        return self.linear(self.avgpool(x).flatten(1))


def _stage(units: int, in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(in_channels, out_channels), *(Unit(out_channels) for _ in range(units - 1)))


def shufflenet_v2(num_classes: int = 10, in_channels: int = 3) -> CifarShuffleNetV2:
    """ShuffleNetV2 of width 1 for small images: a student of CRD's benchmark."""
    return CifarShuffleNetV2(num_classes, in_channels)
