"""Heat maps of single channels: labelled, and a column the same thing for teacher and student."""

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor, nn

from nst.report.heatmaps import SIZE, Channels, choose, drawing, heatmaps, last_maps, nearest
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


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def test_a_column_is_the_nearest_channel(images: Tensor):
    """A student whose channels are the teacher's in another order shows the same channels under other numbers."""
    order = [3, 0, 5, 1, 4, 2]
    networks = {"student": (Net(order), images), "teacher": (Net([*range(6)]), images)}
    found = choose(networks, {name: last_maps(*given) for name, given in networks.items()}, 4)
    teacher, student = found["teacher"], found["student"]
    assert [order[channel] for channel in student.chosen] == teacher.chosen
    assert student.cosines == pytest.approx([1.0] * 4)
    assert teacher.cosines is None
    activity = teacher.maps.mean((0, 2, 3))
    assert teacher.chosen == activity.argsort(descending=True)[:4].tolist()


def test_maps_of_other_sizes_are_compared():
    maps = torch.rand(3, 5, 4, 4)
    larger = nn.functional.interpolate(maps, (8, 8), mode="bilinear", align_corners=False)
    indices, cosines = nearest(maps, larger[:, [4, 0]])
    assert indices == [4, 0]
    assert cosines == pytest.approx([1.0, 1.0])


def test_everything_is_named(images: Tensor):
    pictures = torch.rand(3, 3, SIZE, SIZE)
    maps = torch.rand(3, 6, 4, 4)
    channels = Channels("stage3.2", maps, [5, 1], [0.83, 0.4], ("teacher", [40, 7]))
    shown = texts(drawing("student", pictures, channels, ["cat", "$5 note", "a very long name of some class"]))
    for text in (
        "student: layer stage3.2, 2 of 6 channels", "cat", "$5 note", "a very long name …", "channel 5",
        f"max. {maps[:, 5].max():.3g}", "for teacher 40\ncosine 0.83", "for teacher 7\ncosine 0.40", "channel's max.",
    ):  # fmt: skip
        assert text in shown
    assert "image 2" in texts(drawing("student", pictures, channels, None))


def test_pictures(images: Tensor):
    """One a network with a last stage, the same each time, whatever the script of the class names."""
    networks = {"student": (Net([*range(6)]), images), "teacher": (Net([*range(6)]), images), "own": (nn.Conv2d(3, 2, 1), images)}  # fmt: skip
    found = [heatmaps(images, networks, NORMALIZATION, labels=["猫", "$x$", "c"]) for _ in range(2)]
    assert found[0].keys() == {"neurons/student", "neurons/teacher"}
    for name, picture in found[0].items():
        assert picture.shape[0] == 3
        assert 0 <= picture.min() < picture.max() <= 1
        assert torch.equal(picture, found[1][name])
    assert heatmaps(images, {"own": networks["own"]}, NORMALIZATION) == {}
