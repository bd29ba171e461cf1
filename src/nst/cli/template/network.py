"""A small convolutional network."""

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Two convolutions, global average, one linear layer.

    Args:
        width: channels of the second convolution.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.fc = nn.Linear(width, num_classes)
        self.named_layers = {
            "last": "body",
            "last_pre_relu": "body.3:input",
            "last_out": "body",
            "pooled": "fc:input",
        }  # names for layers; any module's name works too

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.fc(self.body(x).mean((2, 3)))
