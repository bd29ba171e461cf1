"""Heat maps of single channels: a column is the same thing for teacher and student."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nst.report.heatmaps import LEFT, SIZE, TOP, features, heatmaps, nearest
from nst.teacher import Normalization

NORMALIZATION = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Net(nn.Module):
    """Six channels after a ReLU, in the order `order`."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.named_layers = {"last": "stage"}
        convolution = nn.Conv2d(3, 6, 3, padding=1)
        weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        convolution.weight.data, convolution.bias.data = weight[order], torch.zeros(6)  # type: ignore[union-attr]
        self.stage = nn.Sequential(convolution, nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.stage(images).mean((2, 3))


@torch.no_grad()
def test_a_column_is_the_nearest_channel() -> None:
    """A student whose channels are the teacher's in another order has the same ones under other numbers, and the same pictures."""
    images, order = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)), [3, 0, 5, 1, 4, 2]
    teacher, student = Net([*range(6)]), Net(order)
    found, cosines = nearest(features(student, images, "last"), features(teacher, images, "last"))
    assert [order[channel] for channel in found] == [*range(6)]
    assert cosines == pytest.approx([1.0] * 6)
    networks = {"student": student, "teacher": teacher, "own": nn.Conv2d(3, 2, 1)}
    first, again = (heatmaps(images, networks, NORMALIZATION, labels=["猫", "$x$", "c"]) for _ in range(2))
    assert first.keys() == {"student", "teacher"}
    assert first == again
    maps = [np.asarray(picture)[TOP : TOP + 3 * SIZE, LEFT:] for picture in first.values()]
    assert np.array_equal(*maps)
    shown = (
        np.moveaxis(maps[0][:SIZE, :SIZE], 2, 0) / 255
        - images[0].repeat_interleave(6, 1).repeat_interleave(6, 2).numpy()
    )
    assert abs(shown).max() < 1 / 255
    assert heatmaps(images, {"own": networks["own"]}, NORMALIZATION, ["a", "b", "c"]) == {}
