"""Pre-activation bottleneck ResNets (He et al., 2016, "Identity Mappings in Deep Residual Networks").

The paper's teachers: ResNet-1001 on CIFAR, ResNet-101 on ImageNet. Its layer is the output of the last normalisation,
`bn1`, before the last ReLU.

Training memory: a normalisation keeps its input, a ReLU its output, and the normalisation's output is kept by nobody,
so ReLUs that are not in place cost no stored activation. Training ResNet-1001 keeps 153 MB a 32x32 image in float32,
77 MB under bf16 autocast: 20 and 10 GB for a batch of 128.

Shape suffixes: B images, C channels, H and W rows and columns.
"""

from functools import partial

from torch import Tensor, nn

from nst.models.named_layers import name_layers
from nst.models.parts import BN_EPS, he_normal_, input_norm, set_bn_eps, xavier_gaussian_


class PreactBottleneck(nn.Module):
    """Three times BN - ReLU - conv (1x1, 3x3, 1x1), added to the raw input.

    Where the width or size changes, the shortcut is a bare 1x1 convolution of the block's first activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, four times those of the 3x3 convolution.
        strides: strides of the first 1x1 and of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, strides: tuple[int, int]) -> None:
        super().__init__()
        middle = out_channels // 4
        stride = strides[0] * strides[1]
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, middle, 1, stride=strides[0], bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=strides[1], padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(middle)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.downsample: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride], not activated."""
        out = self.relu1(self.bn1(x))
        if self.downsample is not None:
            x = self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(self.relu2(self.bn2(out)))
        out = self.conv3(self.relu3(self.bn3(out)))
        return x + out


class CifarPreactResNet(nn.Module):
    """A 3x3 stem, three stages of pre-activation bottlenecks, BN - ReLU, global average, one linear layer.

    The stride stands on the first 1x1 convolution of a stage, as in the authors' code.

    Args:
        depth: 9n + 2 weighted layers, n blocks a stage.
        num_classes: number of logits.
        in_channels: channels of the images.
        bn_eps: ε of every batch normalisation.

    Raises:
        ValueError: the depth is not 9n + 2, or `bn_eps` is not positive.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, bn_eps: float = BN_EPS) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(
                f"depth={depth}: a pre-activation bottleneck ResNet for CIFAR has 9n + 2 layers (164, 1001)"
            )
        blocks = (depth - 2) // 9
        self.conv0 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, 16, 64, (1, 1))
        self.layer2 = _stage(blocks, 64, 128, (2, 1))
        self.layer3 = _stage(blocks, 128, 256, (2, 1))
        self.bn1 = nn.BatchNorm2d(256)
        self.relu1 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, num_classes)
        self.named_layers = _layers(stages=3)
        he_normal_(self)
        set_bn_eps(self, bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.layer1(self.conv0(x))  # [B, 64, H, W]
        x = self.layer2(x)  # [B, 128, H/2, W/2]
        x = self.layer3(x)  # [B, 256, H/4, W/4]
        x = self.relu1(self.bn1(x))
        return self.fc(self.avgpool(x).flatten(1))


class PreactResNet(nn.Module):
    """The ImageNet network: a 7x7 stem and max pooling, four stages, BN - ReLU, global average, one linear layer.

    The stride stands on a stage's first 3x3 convolution, as in the MXNet network that the paper's code
    takes for a teacher.

    Args:
        blocks: blocks of the four stages.
        num_classes: number of logits.
        in_channels: channels of the images.
        input_bn: normalise raw pixels in the network, with a fixed scale, as the paper's code does.
        bn_eps: ε of every batch normalisation; 2e-5 in the MXNet network.

    Raises:
        ValueError: `bn_eps` is not positive.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_channels: int = 3,
        input_bn: bool = False,
        bn_eps: float = BN_EPS,
    ) -> None:
        super().__init__()
        self.input_bn = input_norm(in_channels, input_bn)
        self.conv0 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn0 = nn.BatchNorm2d(64)
        self.relu0 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(blocks[0], 64, 256, (1, 1))
        self.layer2 = _stage(blocks[1], 256, 512, (1, 2))
        self.layer3 = _stage(blocks[2], 512, 1024, (1, 2))
        self.layer4 = _stage(blocks[3], 1024, 2048, (1, 2))
        self.bn1 = nn.BatchNorm2d(2048)
        self.relu1 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)
        self.named_layers = _layers(stages=4)
        xavier_gaussian_(self)
        set_bn_eps(self, bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_channels, H, W] -> logits [B, num_classes]."""
        x = self.relu0(self.bn0(self.conv0(self.input_bn(x))))  # [B, 64, H/2, W/2]
        x = self.layer1(self.maxpool(x))  # [B, 256, H/4, W/4]
        x = self.layer2(x)  # [B, 512, H/8, W/8]
        x = self.layer3(x)  # [B, 1024, H/16, W/16]
        x = self.layer4(x)  # [B, 2048, H/32, W/32]
        x = self.relu1(self.bn1(x))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(blocks: int, in_channels: int, out_channels: int, strides: tuple[int, int]) -> nn.Sequential:
    first = PreactBottleneck(in_channels, out_channels, strides)
    return nn.Sequential(first, *(PreactBottleneck(out_channels, out_channels, (1, 1)) for _ in range(blocks - 1)))


def _layers(stages: int) -> dict[str, str]:
    """A stage's sum is raw; the BN and ReLU that follow it are the next stage's first ones, or the network's last."""
    starts = [f"layer{k}.0." for k in range(2, stages + 1)] + [""]
    return name_layers(
        [f"{start}relu1" for start in starts],
        pre_relu=[f"{start}bn1" for start in starts],
        out=[f"layer{k}" for k in range(1, stages + 1)],
        pooled="fc:input",
    )


preact_resnet164 = partial(CifarPreactResNet, 164)
preact_resnet1001 = partial(CifarPreactResNet, 1001)  # the paper's CIFAR teacher
preact_resnet101 = partial(PreactResNet, (3, 4, 23, 3))  # the paper's ImageNet teacher
