"""Reading a network's layers in its tests, without the project's own reader."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Capture = Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Tensor]]]


def _capture(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    features: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor, role: str, side: str) -> None:
        features[role] = inputs[0] if side == "input" else output

    roles: dict[str, str] = model.named_layers  # pyright: ignore[reportAssignmentType]
    handles = []
    for role, layer in roles.items():
        name, _, side = layer.partition(":")
        assert side in ("", "input")
        assert name
        handles.append(model.get_submodule(name).register_forward_hook(partial(keep, role=role, side=side)))
    logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, features


@pytest.fixture
def capture() -> Capture:
    """Runs a network on images; gives its logits and the feature of every role in its `layers`."""
    return _capture


@pytest.fixture
def meta():
    """Tensors without data: shapes at no cost."""
    with torch.device("meta"):
        yield
