"""ResNet-50 for small images, as CRD's benchmark (Tian et al., 2020; RepDistiller's `models/resnetv2.py`) builds it.

The ImageNet network with a 3x3 stem of stride 1 and no max pooling: its four stages run at 1, 1/2, 1/4 and 1/8 of the
image's resolution. Parameter names are those of that benchmark (`layer1.0.shortcut.0`, `linear`), and so is the
initialisation. Its features are the four stages after their last ReLU, "stage1" to "stage4", and the pooled vector.

Shape suffixes: B images, C channels, H and W rows and columns.
"""

from torch import Tensor, nn

from nst.models.initialise import he_normal_
from nst.models.resnet import projection
from nst.models.roles import name_layers


class Bottleneck(nn.Module):
    """conv 1x1 - BN - ReLU - conv 3x3 - BN - ReLU - conv 1x1 - BN, plus the shortcut, then ReLU.

    Args:
        in_channels: channels of the input.
        middle: channels of the 3x3 convolution, a quarter of the output's.
        stride: of the 3x3 convolution and the projection.
    """

    def __init__(self, in_channels: int, middle: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * middle
        self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else projection(in_channels, out_channels, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, 4 middle, H / stride, W / stride]."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        return self.relu3(self.bn3(self.conv3(out)) + self.shortcut(x))


class CifarBottleneckResNet(nn.Module):
    """A 3x3 stem, four stages of bottlenecks, global average, one linear layer.

    Args:
        blocks: blocks of the four stages.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks[0], 64, 64, 1)
        self.layer2 = _stage(blocks[1], 256, 128, 2)
        self.layer3 = _stage(blocks[2], 512, 256, 2)
        self.layer4 = _stage(blocks[3], 1024, 512, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2048, num_classes)
        self.named_layers = name_layers(
            [f"layer{k}" for k in (1, 2, 3, 4)],
            pre_relu=[f"layer{k}.{count - 1}.relu3:input" for k, count in enumerate(blocks, start=1)],
            pooled="linear:input",
        )
        he_normal_(self, zero_linear_bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu(self.bn1(self.conv1(x)))  # [B, 64, H, W]
        x = self.layer1(x)  # [B, 256, H, W]
        x = self.layer2(x)  # [B, 512, H/2, W/2]
        x = self.layer3(x)  # [B, 1024, H/4, W/4]
        x = self.layer4(x)  # [B, 2048, H/8, W/8]
        return self.linear(self.avgpool(x).flatten(1))


def _stage(blocks: int, in_channels: int, middle: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, middle, stride)
    return nn.Sequential(first, *(Bottleneck(4 * middle, middle, 1) for _ in range(blocks - 1)))


def resnet50_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarBottleneckResNet:
    """ResNet-50 for small images: a teacher of CRD's benchmark."""
    return CifarBottleneckResNet((3, 4, 6, 3), num_classes, in_channels)
