"""The other networks of CRD's benchmark (Tian et al., 2020) for small images: VGG, MobileNetV2, ShuffleNetV1 and V2.

Parameter names and initial weights are those of RepDistiller's `models/vgg.py`, `mobilenetv2.py`, `ShuffleNetv1.py` and `ShuffleNetv2.py`, so
that published weights fit; its features f1, f2, … are the named stages here, and the pooled vector.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nst.models.parts import Network, he_normal_, head, name_layers, stage, stages


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


class CifarMobileNetV2(Network):
    """A strided 3x3 stem, seven groups of inverted residuals, a 1x1 convolution, global average, one linear layer.

    It differs from Sandler et al. (2018): ReLU instead of ReLU6, no dropout, strides of 2 in the stem and before the third,
    fourth and sixth group only (32x32 images end at 2x2), an expanding convolution in the first block too, widths rounded
    down; `width` scales all channels but the last convolution's 1280. Its features are the outputs of groups 1, 2, 4 and 6, "stage1"
    to "stage4": linear, no ReLU ends them.
    """

    def __init__(self, width: float, num_classes: int = 10, in_channels: int = 3) -> None:
        channels, groups = int(32 * width), []
        stem = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        conv1 = nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU())
        for expansion, full, blocks, stride in (
            (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            inputs, channels = channels, int(full * width)
            groups.append(stage(InvertedResidual, blocks, inputs, channels, stride, expansion))
        super().__init__(
            conv1=conv1,  # [B, 32 width, H/2, W/2]
            blocks=nn.Sequential(*groups),  # [B, 320 width, H/16, W/16]
            conv2=nn.Sequential(nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU()),
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
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, branch, 1, groups=3, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
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

    Half of the output's channels come from each branch.
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


class _ShuffleNet(Network):
    """A 1x1 stem of 24 channels, stages of 4, 8 and 4 units at half, quarter and eighth resolution, global average, linear.

    No max pooling: 32x32 images end at 4x4. The benchmark sets no initial weights, so all are PyTorch's draw.
    """

    def __init__(
        self,
        unit: Callable[[int, int, int], nn.Module],
        widths: tuple[int, int, int],
        last_relu: str,
        features: int | None,  # of a last 1x1 convolution
        num_classes: int,
        in_channels: int,
    ) -> None:
        stem = {"conv1": nn.Conv2d(in_channels, 24, 1, bias=False), "bn1": nn.BatchNorm2d(24), "relu1": nn.ReLU()}
        parts: dict[str, nn.Module] = {**stem, **stages(unit, (4, 8, 4), (24, *widths), 2)}
        if features is not None:
            parts |= {"conv2": nn.Conv2d(widths[2], features, 1, bias=False)}
            parts |= {"bn2": nn.BatchNorm2d(features), "relu2": nn.ReLU()}
        super().__init__(**parts, **head("linear", features or widths[2], num_classes))
        self.named_layers = name_layers(
            ["layer1", "layer2", "layer3"],
            pre_relu=[f"layer{k}.{last}.{last_relu}:input" for k, last in ((1, 3), (2, 7), (3, 3))],
            pooled="linear:input",
        )


class CifarShuffleNetV1(_ShuffleNet):
    """ShuffleNet with three groups, 240, 480 and 960 channels.

    It differs from Zhang et al. (2018) by its stem and by a ReLU after the depthwise convolution too.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(ShuffleUnit, (240, 480, 960), "relu3", None, num_classes, in_channels)


class CifarShuffleNetV2(_ShuffleNet):
    """ShuffleNetV2 of width 1, 116, 232 and 464 channels, and a 1x1 convolution of 1024 behind the stages.

    It differs from Ma et al. (2018) by its stem. The input of a stage's last ReLU ("stage1_pre_relu" ...) has its channels in the order
    before the shuffle, and half of them are activated already.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(_v2_unit, (116, 232, 464), "relu2", 1024, num_classes, in_channels)


def _v2_unit(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return DownUnit(in_channels, out_channels) if stride == 2 else SplitUnit(out_channels)
