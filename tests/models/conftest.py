"""What a network's tests look at: its features; its function with batch statistics that are not the identity."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nst.layers import LayerHooks


def capture(model: nn.Module, images: Tensor, layers: Iterable[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """A network's logits, and the features of these layers (all of its named ones)."""
    named: Any = model.named_layers if layers is None else list(layers)
    hooks = LayerHooks(model, named)
    logits = model(images)
    hooks.remove()
    return logits, hooks.read()


def with_statistics(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, its batch norms drawn."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, *[module.running_var] * module.track_running_stats):
                nn.init.uniform_(tensor, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
            for tensor in (module.bias, *[module.running_mean] * module.track_running_stats):
                nn.init.normal_(tensor, std=0.3)  # pyright: ignore[reportArgumentType]
    return model.double().eval()


@pytest.fixture
def meta() -> Iterator[None]:
    """Tensors without data."""
    with torch.device("meta"):
        yield
