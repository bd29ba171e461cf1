"""VGG-8 and VGG-13 with batch normalisation for small images, as CRD's benchmark (Tian et al., 2020) builds them.

Parameter names are those of that benchmark (`block0.0` convolution, `block0.1` normalisation, ..., `classifier`). Its
layers are blocks 1 to 4: "stage1" to "stage4" here.

Shape suffixes: B images, C channels, H and W rows and columns.
"""

from functools import partial

from torch import Tensor, nn

from nst.models.named_layers import name_layers
from nst.models.parts import he_normal_

_WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(nn.Module):
    """Five blocks of 3x3 convolutions, max pooling after the first three, global average, one linear layer.

    A block ends in its last normalisation; the ReLU after it is a module of its own (`relu0` ... `relu4`).

    Args:
        convolutions: convolutions of each block.
        num_classes: number of logits.
        in_channels: channels of the images.
    """

    def __init__(self, convolutions: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.block0 = _block(convolutions, in_channels, _WIDTHS[0])
        self.relu0 = nn.ReLU()
        self.pool0 = nn.MaxPool2d(2)
        self.block1 = _block(convolutions, _WIDTHS[0], _WIDTHS[1])
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.block2 = _block(convolutions, _WIDTHS[1], _WIDTHS[2])
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.block3 = _block(convolutions, _WIDTHS[2], _WIDTHS[3])
        self.relu3 = nn.ReLU()
        self.block4 = _block(convolutions, _WIDTHS[3], _WIDTHS[4])
        self.relu4 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_WIDTHS[4], num_classes)
        self.named_layers = name_layers(
            ["relu1", "relu2", "relu3", "relu4"],
            pre_relu=["block1", "block2", "block3", "block4"],
            pooled="classifier:input",
        )
        he_normal_(self)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W], H and W at least 8 -> logits [B, num_classes]."""
        x = self.pool0(self.relu0(self.block0(x)))  # [B, 64, H/2, W/2]
        x = self.pool1(self.relu1(self.block1(x)))  # [B, 128, H/4, W/4]
        x = self.pool2(self.relu2(self.block2(x)))  # [B, 256, H/8, W/8]
        x = self.relu3(self.block3(x))  # [B, 512, H/8, W/8]
        x = self.relu4(self.block4(x))  # [B, 512, H/8, W/8]
        return self.classifier(self.avgpool(x).flatten(1))


def _block(convolutions: int, in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        if i:
            layers.append(nn.ReLU())
        layers.append(nn.Conv2d(out_channels if i else in_channels, out_channels, 3, padding=1))
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


vgg8 = partial(CifarVGG, 1)
vgg13 = partial(CifarVGG, 2)
