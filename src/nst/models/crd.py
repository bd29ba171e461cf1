"""The other networks of CRD's benchmark (Tian et al., 2020) for small images: VGG, MobileNetV2, ShuffleNetV1 and V2.

Parameter names and initial weights are those of RepDistiller's `models/vgg.py`, `mobilenetv2.py`, `ShuffleNetv1.py` and `ShuffleNetv2.py`, so
that published weights fit; its features f1, f2, … are the named stages here, and the pooled vector.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from nst.models.parts import Network, conv_and_norm, he_normal_, head, name_layers, stage, stages


class CifarVGG(Network):
    """Five blocks of `convolutions` 3x3 with normalisation, max pooling after the first three, global average, one linear layer.

    A block ends in its last normalisation; the ReLU after it is a module of its own (`relu0` ... `relu4`). Blocks 1 to 4 are the
    benchmark's layers, "stage1" to "stage4". Images are at least 8 x 8.
    """

    def __init__(self, convolutions: int, num_classes: int = 10, in_channels: int = 3) -> None:
        channels, parts = in_channels, dict[str, nn.Module]()
        for k, width in enumerate((64, 128, 256, 512, 512)):  # at H, W; H/2, W/2; H/4, W/4; H/8, W/8; H/8, W/8
            layers: list[nn.Module] = []
            for i in range(convolutions):
                layers += [nn.ReLU()] if i else []
                layers += [nn.Conv2d(width if i else channels, width, 3, padding=1), nn.BatchNorm2d(width)]
            parts |= {f"block{k}": nn.Sequential(*layers), f"relu{k}": nn.ReLU()}
            parts |= {f"pool{k}": nn.MaxPool2d(2)} if k < 3 else {}
            channels = width
        super().__init__(**parts, **head("classifier", 512, num_classes))
        relus, blocks = ([f"{name}{k}" for k in range(1, 5)] for name in ("relu", "block"))
        self.named_layers = name_layers(relus, pre_relu=blocks, pooled="classifier:input")
        he_normal_(self)
        nn.init.normal_(self.get_parameter("classifier.weight"), std=0.01)


class InvertedResidual(nn.Module):
    """conv 1x1, `expansion` times wider - BN - ReLU - depthwise 3x3 (with the stride) - BN - ReLU - conv 1x1 - BN.

    The input is added where the shapes agree.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        middle = in_channels * expansion
        expand = conv_and_norm(in_channels, middle, 1)
        depthwise = conv_and_norm(middle, middle, 3, stride, groups=middle)
        self.conv = nn.Sequential(*expand, nn.ReLU(), *depthwise, nn.ReLU(), *conv_and_norm(middle, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride], not activated."""
        out = self.conv(x)
        return x + out if self.residual else out


class CifarMobileNetV2(Network):
    """A strided 3x3 stem, seven groups of inverted residuals, a 1x1 convolution, global average, one linear layer.

    It differs from Sandler et al. (2018): ReLU instead of ReLU6, no dropout, fewer strides (32x32 images end at 2x2), an
    expanding convolution in the first block too, widths rounded down. `width` scales all channels but the last 1280. No
    ReLU ends a stage.
    """

    def __init__(self, width: float, num_classes: int = 10, in_channels: int = 3) -> None:
        channels, groups = int(32 * width), []
        conv1 = nn.Sequential(*conv_and_norm(in_channels, channels, 3, 2), nn.ReLU())
        for expansion, full, blocks, stride in (
            (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            inputs, channels = channels, int(full * width)
            groups.append(stage(InvertedResidual, blocks, inputs, channels, stride, expansion))
        super().__init__(
            conv1=conv1,  # [B, 32 width, H/2, W/2]
            blocks=nn.Sequential(*groups),  # [B, 320 width, H/16, W/16]
            conv2=nn.Sequential(*conv_and_norm(channels, 1280, 1), nn.ReLU()),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(nn.Linear(1280, num_classes)),
        )
        self.named_layers = name_layers(["blocks.1", "blocks.2", "blocks.4", "blocks.6"], pooled="classifier.0:input")
        he_normal_(self)
        nn.init.normal_(self.get_parameter("classifier.0.weight"), std=0.01)


class ShuffleUnit(nn.Module):
    """grouped 1x1 - BN - ReLU - channel shuffle - depthwise 3x3 - BN - ReLU - grouped 1x1 - BN; added to the input, ReLU.

    Three groups, but one in the first convolution behind the stem, whose 24 channels are too few. With stride 2 the input is
    average-pooled and concatenated instead, so its channels count towards the output's.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        branch, groups = out_channels - in_channels if stride == 2 else out_channels, 1 if in_channels == 24 else 3
        middle = branch // 4
        self.conv1, self.bn1 = conv_and_norm(in_channels, middle, 1, groups=groups)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2, self.bn2 = conv_and_norm(middle, middle, 3, stride, groups=middle)
        self.relu2 = nn.ReLU()
        self.conv3, self.bn3 = conv_and_norm(middle, branch, 1, groups=3)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        out = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + x if self.pool is None else torch.cat([out, self.pool(x)], dim=1))


class SplitUnit(nn.Module):
    """Half of the channels pass; the other half goes through 1x1 - BN - ReLU - depthwise 3x3 - BN - 1x1 - BN; ReLU, shuffle.

    The ReLU after the concatenation gives the pre-activation a place; the half that passes is not negative, being a unit's output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = conv_and_norm(half, half, 1)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_and_norm(half, half, 3, groups=half)
        self.conv3, self.bn3 = conv_and_norm(half, half, 1)
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

    Half of the output's channels come from each branch.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1, self.bn1 = conv_and_norm(in_channels, in_channels, 3, 2, groups=in_channels)
        self.conv2, self.bn2 = conv_and_norm(in_channels, half, 1)
        self.conv3, self.bn3 = conv_and_norm(in_channels, half, 1)
        self.relu1 = nn.ReLU()
        self.conv4, self.bn4 = conv_and_norm(half, half, 3, 2, groups=half)
        self.conv5, self.bn5 = conv_and_norm(half, half, 1)
        self.relu2 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / 2, W / 2]."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(self.relu1(self.bn3(self.conv3(x)))))
        right = self.bn5(self.conv5(right))
        return self.shuffle(self.relu2(torch.cat([left, right], dim=1)))


class CifarShuffleNet(Network):
    """A 1x1 stem of 24 channels, stages of 4, 8 and 4 units at half, quarter and eighth resolution, global average, linear layer.

    They differ from Zhang et al. (2018) and Ma et al. (2018, width 1) by the stem, without max pooling (32x32 images end at
    4x4), and version 1 by a ReLU after the depthwise convolution too. All initial weights are PyTorch's draw. In version 2
    "stage1_pre_relu" has its channels in the order before the shuffle, and half of them are activated already.
    """

    def __init__(self, version: Literal[1, 2], num_classes: int = 10, in_channels: int = 3) -> None:
        first = version == 1
        widths = (240, 480, 960) if first else (116, 232, 464)

        def unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
            if first:
                return ShuffleUnit(in_channels, out_channels, stride)
            return DownUnit(in_channels, out_channels) if stride == 2 else SplitUnit(out_channels)

        stem = {"conv1": nn.Conv2d(in_channels, 24, 1, bias=False), "bn1": nn.BatchNorm2d(24), "relu1": nn.ReLU()}
        parts: dict[str, nn.Module] = {**stem, **stages(unit, (4, 8, 4), (24, *widths), 2)}
        if not first:
            parts |= {"conv2": nn.Conv2d(464, 1024, 1, bias=False), "bn2": nn.BatchNorm2d(1024), "relu2": nn.ReLU()}
        super().__init__(**parts, **head("linear", 960 if first else 1024, num_classes))
        last = "relu3:input" if first else "relu2:input"
        pre_relu = [f"layer1.3.{last}", f"layer2.7.{last}", f"layer3.3.{last}"]
        self.named_layers = name_layers(["layer1", "layer2", "layer3"], pre_relu=pre_relu, pooled="linear:input")
