"""Folding batch normalisation changes no output, no layer name, and leaves named layers and odd networks alone."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import pytest
import torch
from tests.models.conftest import capture, with_statistics
from torch import Tensor, nn

from nst.models import preact_resnet164, resnet8, wrn16_2
from nst.teacher.network import fold_batch_norm


def assert_folded(model: nn.Module, folded: int, *, kept: Sequence[str] = (), layers: Sequence[str] = ()) -> None:
    """That so many pairs are folded, and nothing else changes; `kept`: layers that are named to stay."""
    image = torch.randn(2, 3, 8, 8, dtype=torch.double)
    expected = capture(model, image, [*kept, *layers])
    assert fold_batch_norm(model, image, kept) == folded
    torch.testing.assert_close(capture(model, image, [*kept, *layers]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("make", "folded"), [(resnet8, 7), (wrn16_2, 7), (preact_resnet164, 109)])
def test_outputs_and_features_stay_and_all_pairs_are_folded(make: Callable[[], nn.Module], folded: int) -> None:
    model = with_statistics(make())
    assert_folded(model, folded, layers=["last", "last_pre_relu", "stage1"])
    assert_folded(model, 0)


@pytest.mark.parametrize("layer", ["block1", "block1.0", "block2:input"])
def test_a_named_layer_between_a_convolution_and_its_norm_keeps_its_feature(layer: str) -> None:
    block1, block2 = nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    layers = {"block1": nn.Sequential(block1), "block2": block2, "pool": nn.AdaptiveAvgPool2d(1), "end": nn.Flatten()}
    assert_folded(with_statistics(nn.Sequential(OrderedDict(layers))), 0, kept=[layer])


class Reused(nn.Module):
    """One convolution and its norm used twice; or the convolution's output is read elsewhere, too."""

    def __init__(self, elsewhere: bool) -> None:
        super().__init__()
        self.conv, self.bn, self.elsewhere = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), elsewhere

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.bn(x) + x if self.elsewhere else self.bn(self.conv(self.bn(x)))).mean((2, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_odd_networks_keep_their_outputs() -> None:
    """Also where a convolution's weight is computed, and where a norm has no running statistics."""
    assert_folded(with_statistics(Reused(elsewhere=False)), 1)
    assert_folded(with_statistics(Reused(elsewhere=True)), 0)
    for normalised in (nn.utils.weight_norm, nn.utils.spectral_norm):
        norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
        layers = [normalised(nn.Conv2d(3, 4, 3)), norms[0], nn.Conv2d(4, 4, 3), norms[1]]
        assert_folded(with_statistics(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())), 0)
