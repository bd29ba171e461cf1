"""Pre-activation ResNets: a block normalises and activates its input, and a stage hands on the raw sum.

Bottlenecks of He et al. (2016, "Identity Mappings in Deep Residual Networks"), the paper's teachers: ResNet-1001 on CIFAR, ResNet-101 on
ImageNet. The paper's layer is the output of the last normalisation, `bn1`, before the last ReLU. And wide ResNets
(Zagoruyko & Komodakis, 2016) as CRD's benchmark (Tian et al., 2020) builds them, with its parameter names
(`block1.layer.0.convShortcut`), so that its published weights fit.

Training memory: a normalisation keeps its input, a ReLU its output, and the normalisation's output is kept by nobody,
so ReLUs that are not in place cost no stored activation. Training ResNet-1001 keeps 153 MB a 32x32 image in float32,
77 MB under bf16 autocast: 20 and 10 GB for a batch of 128.
"""

from collections import OrderedDict

from torch import Tensor, nn

from nst.models.parts import BN_EPS, he_normal_, input_norm, name_layers, set_bn_eps, stage, xavier_gaussian_


class PreactBottleneck(nn.Module):
    """Three times BN - ReLU - conv (1x1, 3x3, 1x1), added to the raw input.

    Where the width or size changes, the shortcut is a bare 1x1 convolution of the block's first activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, four times those of the 3x3 convolution.
        stride: of the block.
        stride_first: it stands on the first 1x1 convolution instead of the 3x3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, stride_first: bool = False) -> None:
        super().__init__()
        middle, strides = out_channels // 4, (stride, 1) if stride_first else (1, stride)
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


class CifarPreactResNet(nn.Sequential):
    """A 3x3 stem, three stages of pre-activation bottlenecks, BN - ReLU, global average, one linear layer.

    The stride stands on the first 1x1 convolution of a stage, as in the authors' code.

    Args:
        depth: 9n + 2 weighted layers, n blocks a stage.
        bn_eps: ε of every batch normalisation.

    Raises:
        ValueError: the depth is not 9n + 2, or `bn_eps` is not positive.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3, bn_eps: float = BN_EPS) -> None:
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(
                f"depth={depth}: a pre-activation bottleneck ResNet for CIFAR has 9n + 2 layers (164, 1001)"
            )
        blocks = (depth - 2) // 9
        super().__init__(
            OrderedDict(
                conv0=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),  # [B, 16, H, W]
                layer1=stage(PreactBottleneck, blocks, 16, 64, 1, True),  # [B, 64, H, W]
                layer2=stage(PreactBottleneck, blocks, 64, 128, 2, True),  # [B, 128, H/2, W/2]
                layer3=stage(PreactBottleneck, blocks, 128, 256, 2, True),  # [B, 256, H/4, W/4]
                bn1=nn.BatchNorm2d(256),
                relu1=nn.ReLU(),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(256, num_classes),
            )
        )
        self.named_layers = _layers("layer", 3, ".0", "relu1")
        he_normal_(self)
        set_bn_eps(self, bn_eps)


class PreactResNet(nn.Sequential):
    """The ImageNet network: a 7x7 stem and max pooling, four stages, BN - ReLU, global average, one linear layer.

    The stride stands on a stage's first 3x3 convolution, as in the MXNet network that the paper's code
    takes for a teacher.

    Args:
        blocks: blocks of the four stages.
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
        super().__init__(
            OrderedDict(
                input_bn=input_norm(in_channels, input_bn),
                conv0=nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),  # [B, 64, H/2, W/2]
                bn0=nn.BatchNorm2d(64),
                relu0=nn.ReLU(),
                maxpool=nn.MaxPool2d(3, stride=2, padding=1),
                layer1=stage(PreactBottleneck, blocks[0], 64, 256, 1),  # [B, 256, H/4, W/4]
                layer2=stage(PreactBottleneck, blocks[1], 256, 512, 2),  # [B, 512, H/8, W/8]
                layer3=stage(PreactBottleneck, blocks[2], 512, 1024, 2),  # [B, 1024, H/16, W/16]
                layer4=stage(PreactBottleneck, blocks[3], 1024, 2048, 2),  # [B, 2048, H/32, W/32]
                bn1=nn.BatchNorm2d(2048),
                relu1=nn.ReLU(),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(2048, num_classes),
            )
        )
        self.named_layers = _layers("layer", 4, ".0", "relu1")
        xavier_gaussian_(self)
        set_bn_eps(self, bn_eps)


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


class WideResNet(nn.Sequential):
    """A 16-channel stem, three groups of 16, 32 and 64 times `width` channels, BN - ReLU, global average, linear layer.

    Args:
        depth: 6n + 4 convolutions, n blocks a group.
        width: how many times wider than the thin network; where `width` is 1 the first group needs no projection.

    Raises:
        ValueError: the depth is not 6n + 4, or the width is below 1.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: a wide ResNet has 6n + 4 layers (16, 22, 28, 40, ...)")
        if width < 1:
            raise ValueError(f"width={width}: a wide ResNet is at least 1 time as wide as the thin one")
        blocks = (depth - 4) // 6
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),  # [B, 16, H, W]
                block1=_group(blocks, 16, 16 * width, 1),  # [B, 16 width, H, W]
                block2=_group(blocks, 16 * width, 32 * width, 2),  # [B, 32 width, H/2, W/2]
                block3=_group(blocks, 32 * width, 64 * width, 2),  # [B, 64 width, H/4, W/4]
                bn1=nn.BatchNorm2d(64 * width),
                relu=nn.ReLU(),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(64 * width, num_classes),
            )
        )
        self.named_layers = _layers("block", 3, ".layer.0", "relu")
        he_normal_(self)


def _group(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layer=stage(WideBlock, blocks, in_channels, out_channels, stride)))


def _layers(group: str, count: int, first: str, last_relu: str) -> dict[str, str]:
    """A stage's sum is raw; the BN and ReLU that follow it are the next stage's first ones, or the network's last.

    Args:
        group: what a stage is called: "layer" of "layer1" …
        first: from a stage to its first block: ".0".
        last_relu: the network's last ReLU.
    """
    starts = [f"{group}{k}{first}." for k in range(2, count + 1)]
    return name_layers(
        [*(f"{start}relu1" for start in starts), last_relu],
        pre_relu=[*(f"{start}bn1" for start in starts), "bn1"],
        out=[f"{group}{k}" for k in range(1, count + 1)],
        pooled="fc:input",
    )
