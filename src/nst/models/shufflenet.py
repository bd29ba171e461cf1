"""ShuffleNetV1 and V2 for small images, as CRD's benchmark (Tian et al., 2020; RepDistiller's `models/ShuffleNetv1.py`, `…v2.py`) builds them.

Both have a 1x1 stem of stride 1 and no max pooling (32x32 images end at 4x4). Parameter names are those of that benchmark
(`layer1.0.conv1`, `linear`). It sets no initial weights, so all are PyTorch's draw. The features are the three stages after
their last ReLU, "stage1" to "stage3", and the pooled vector.

Shape suffixes: B images, C channels, H and W rows and columns.
"""

import torch
from torch import Tensor, nn

from nst.models.named_layers import name_layers


class ShuffleUnit(nn.Module):
    """grouped 1x1 - BN - ReLU - channel shuffle - depthwise 3x3 - BN - ReLU - grouped 1x1 - BN; added to the input, ReLU.

    With stride 2 the input is average-pooled and concatenated instead, so its channels count towards the output's.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: 1 or 2, of the depthwise convolution.
        first_groups: groups of the first convolution and of the shuffle.
        groups: groups of the last convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, first_groups: int, groups: int) -> None:
        super().__init__()
        branch = out_channels - in_channels if stride == 2 else out_channels
        middle = branch // 4
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(first_groups)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        out = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + x if self.pool is None else torch.cat([out, self.pool(x)], dim=1))


class CifarShuffleNetV1(nn.Module):
    """A 1x1 stem of 24 channels, stages of 4, 8 and 4 units at half, quarter and eighth resolution, global average, linear.

    It differs from Zhang et al. (2018) by its stem and by a ReLU after the depthwise convolution too. Three groups, 240, 480
    and 960 channels.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1 = _stage_v1(4, 24, 240, first_groups=1)  # 24 channels are too few to group
        self.layer2 = _stage_v1(8, 240, 480)
        self.layer3 = _stage_v1(4, 480, 960)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(960, num_classes)
        self.named_layers = name_layers(
            ["layer1", "layer2", "layer3"],
            pre_relu=["layer1.3.relu3:input", "layer2.7.relu3:input", "layer3.3.relu3:input"],
            pooled="linear:input",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))  # [B, 24, H, W]
        x = self.layer1(x)  # [B, 240, H/2, W/2]
        x = self.layer2(x)  # [B, 480, H/4, W/4]
        x = self.layer3(x)  # [B, 960, H/8, W/8]
        return self.linear(self.avgpool(x).flatten(1))


def _stage_v1(units: int, in_channels: int, out_channels: int, first_groups: int = 3) -> nn.Sequential:
    first = ShuffleUnit(in_channels, out_channels, 2, first_groups, 3)
    return nn.Sequential(first, *(ShuffleUnit(out_channels, out_channels, 1, 3, 3) for _ in range(units - 1)))


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

    It differs from Ma et al. (2018) by its stem. Width 1: 116, 232 and 464 channels. The input of a stage's last ReLU
    ("stage1_pre_relu" ...) has its channels in the order before the shuffle, and half of them are activated already.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu1 = nn.ReLU()
        self.layer1 = _stage_v2(4, 24, 116)
        self.layer2 = _stage_v2(8, 116, 232)
        self.layer3 = _stage_v2(4, 232, 464)
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


def _stage_v2(units: int, in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(DownUnit(in_channels, out_channels), *(Unit(out_channels) for _ in range(units - 1)))


shufflenet_v1 = CifarShuffleNetV1
shufflenet_v2 = CifarShuffleNetV2
