"""Pre-activation ResNets: a block normalises and activates its input, and a stage hands on the raw sum.

Bottlenecks of He et al. (2016, "Identity Mappings in Deep Residual Networks"), the paper's teachers, whose layer is the
output of the last normalisation, `bn1`; wide ResNets (Zagoruyko & Komodakis, 2016) with CRD's parameter names.
"""

from collections import OrderedDict

from torch import Tensor, nn

from nst.models.parts import BN_EPS, Network, he_normal_, head, input_norm, name_layers, set_bn_eps, stages


class PreactBottleneck(nn.Module):
    """Three times BN - ReLU - conv (1x1, 3x3, 1x1), added to the raw input.

    Where the width or size changes, the shortcut is a bare 1x1 convolution of the block's first activation. The 3x3 convolution
    has a quarter of the output's channels; the stride stands on it, or with `stride_first` on the first 1x1.
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


class CifarPreactResNet(Network):
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
            raise ValueError(f"depth={depth}: a pre-activation ResNet for CIFAR has 9n + 2 layers (164, 1001)")
        super().__init__(
            conv0=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            **stages(PreactBottleneck, [(depth - 2) // 9] * 3, (16, 64, 128, 256), 1, True),
            bn1=nn.BatchNorm2d(256),
            relu1=nn.ReLU(),
            **head("fc", 256, num_classes),
        )
        self.named_layers = _layers("layer", 3, ".0", "relu1")
        he_normal_(self)
        set_bn_eps(self, bn_eps)


class PreactResNet(Network):
    """The ImageNet network: a 7x7 stem and max pooling, four stages, BN - ReLU, global average, one linear layer.

    The stride stands on a stage's first 3x3 convolution, as in MXNet's network, the teacher of the paper's code.

    Args:
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
            input_bn=input_norm(in_channels, input_bn),
            conv0=nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
            bn0=nn.BatchNorm2d(64),
            relu0=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            **stages(PreactBottleneck, blocks, (64, 256, 512, 1024, 2048), 1),  # at 1/4, 1/8, 1/16, 1/32
            bn1=nn.BatchNorm2d(2048),
            relu1=nn.ReLU(),
            **head("fc", 2048, num_classes),
        )
        self.named_layers = _layers("layer", 4, ".0", "relu1")
        he_normal_(self, mode="fan_in", linear=True)
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


class WideResNet(Network):
    """A 16-channel stem, three groups of 16, 32 and 64 times `width` channels, BN - ReLU, global average, linear layer.

    Args:
        depth: 6n + 4 convolutions, n blocks a group.
        width: how many times wider than the thin network; where `width` is 1 the first group needs no projection.

    Raises:
        ValueError: the depth is not 6n + 4, or the width is below 1.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_channels: int = 3) -> None:
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(f"depth={depth}, width={width}: a wide ResNet has 6n + 4 layers, width 1 or more")
        conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        groups = stages(WideBlock, [(depth - 4) // 6] * 3, (16, 16 * width, 32 * width, 64 * width), 1).values()
        super().__init__(
            conv1=conv1,
            **{f"block{k}": nn.Sequential(OrderedDict(layer=group)) for k, group in enumerate(groups, start=1)},
            bn1=nn.BatchNorm2d(64 * width),
            relu=nn.ReLU(),
            **head("fc", 64 * width, num_classes),
        )
        self.named_layers = _layers("block", 3, ".layer.0", "relu")
        he_normal_(self)


def _layers(group: str, count: int, first: str, last_relu: str) -> dict[str, str]:
    """A stage's sum is raw; the BN and ReLU that follow it are those of the next stage's first block, or the network's last."""
    starts = [f"{group}{k}{first}." for k in range(2, count + 1)]
    return name_layers(
        [*(f"{start}relu1" for start in starts), last_relu],
        pre_relu=[*(f"{start}bn1" for start in starts), "bn1"],
        out=[f"{group}{k}" for k in range(1, count + 1)],
        pooled="fc:input",
    )
