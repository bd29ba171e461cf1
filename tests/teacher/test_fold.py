"""Folding batch normalisation changes no output, no layer name, and leaves named layers and odd networks alone."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from nst.layers import LayerHooks
from nst.models import preact_resnet164, resnet8, wrn16_2
from nst.teacher.network import fold_batch_norm


def with_statistics(model: nn.Module) -> nn.Module:
    """With batch statistics that are not the identity."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval().double()


def features(model: nn.Module, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    hooks = LayerHooks(model, layers)
    logits = model(image)
    hooks.remove()
    return {**hooks.read(), "logits": logits}


def assert_folded(model: nn.Module, folded: int, *, kept: Sequence[str] = (), layers: Sequence[str] = ()) -> None:
    """That so many pairs are folded, and nothing else changes; `kept`: layers that are named to stay."""
    image = torch.randn(2, 3, 8, 8, dtype=torch.double)
    expected = features(model, image, [*kept, *layers])
    assert fold_batch_norm(model, image, kept) == folded
    torch.testing.assert_close(features(model, image, [*kept, *layers]), expected, rtol=1e-9, atol=1e-9)


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


class Shared(nn.Module):
    """One convolution and norm used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.bn(self.conv(x)))).mean((2, 3))


class Twice(Shared):
    """The convolution's output is read elsewhere, too."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.bn(x) + x).mean((2, 3))


@pytest.mark.parametrize(("network", "folded"), [(Shared, 1), (Twice, 0)])
def test_layers_used_twice(network: type[nn.Module], folded: int) -> None:
    assert_folded(with_statistics(network()), folded)


@pytest.mark.parametrize("normalised", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_convolution_whose_weight_is_computed_is_not_folded(normalised: Callable[[nn.Module], nn.Module]) -> None:
    """Nor one whose norm has no running statistics."""
    norms = nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False)
    layers = [normalised(nn.Conv2d(3, 4, 3)), norms[0], nn.Conv2d(4, 4, 3), norms[1]]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert_folded(with_statistics(model), 0)
