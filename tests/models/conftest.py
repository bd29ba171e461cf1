"""What a network's tests look at: its features, and its shapes at no cost."""

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


@pytest.fixture
def meta() -> Iterator[None]:
    """Tensors without data."""
    with torch.device("meta"):
        yield
