"""A network, a data set and a loss of one's own; `configs/` says how they are called."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nst.data.dataset import Dataset
from nst.data.memory import ViewScheme
from nst.losses import Shape, TransferLoss


class SmallNet(nn.Module):
    """Two convolutions, the second with `width` channels, global average, one linear layer."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(in_channels, 16, 3, padding=1), nn.Conv2d(16, width, 3, stride=2, padding=1)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.fc = nn.Linear(width, num_classes)
        # names for layers; any module's name works too
        self.named_layers = {"last": "body", "last_pre_relu": "body.3:input", "last_out": "body", "pooled": "fc:input"}

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.fc(self.body(x).mean((2, 3)))


class Stripes(Dataset):
    """400 training and 200 test images: noise with a bright row; the class is which one. `root` is not needed."""

    def read(self) -> None:
        """Into memory; `self` has the keys of the data set's YAML file."""
        draw = torch.Generator().manual_seed(0)

        def images(labels: Tensor) -> Tensor:
            shape = (len(labels), self.channels, self.size, self.size)
            pixels = torch.randint(0, 128, shape, generator=draw, dtype=torch.uint8)
            pixels[torch.arange(len(labels)), :, labels] += 100
            return pixels

        train, test = (torch.arange(count) % self.num_classes for count in (400, 200))
        self.in_memory(ViewScheme(self.size, pad=0, flip=True), (images(train), train), (images(test), test))


class MappedMeans(TransferLoss):
    """Mean squared difference of the channels' means, the student's through a linear map, which is trained, saved and resumed like the
    student.
    """

    def setup(self, student_shape: Shape, teacher_shape: Shape) -> None:
        """Make the map: shapes are (C, H, W)."""
        self.map = nn.Linear(student_shape[0], teacher_shape[0])

    @property
    def target_key(self) -> str:
        """What the target depends on: lets it be cached."""
        return "means"

    @torch.no_grad()
    def target(self, teacher_feature: Tensor, student_shape: Shape | None = None) -> dict[str, Tensor]:
        """The teacher's side: `[B, C, H, W]` to `means` `[B, C]`."""
        return {"means": teacher_feature.float().mean((2, 3))}

    def forward(self, student_feature: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """The student's side: `[B, C, H, W]` to a scalar."""
        return (self.map(student_feature.float().mean((2, 3))) - target["means"].float()).square().mean()

    def target_shapes(self, student_shape: Shape, teacher_shape: Shape) -> dict[str, Shape]:
        """The shape of each tensor of one image's target."""
        return {"means": (teacher_shape[0],)}
