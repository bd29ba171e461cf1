"""An exponential moving average of a network's weights: evaluated and saved with `trainer.ema`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights(nn.Module):
    """The network with averaged weights: average ← decay · average + (1 − decay) · weights, after each step.

    It starts from the initial weights. Floating buffers (BN statistics) are averaged, too; the others are copied.
    `torch.optim.swa_utils.AveragedModel` is not used for two reasons: its copy of the network also copies the hooks of layers, and
    on a GPU its counter is a host sync at each step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Raises ValueError unless 0 < decay < 1."""
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"trainer.ema={decay}: a decay above 0 and below 1, or null, is needed")
        self._network = (network,)  # in a tuple, so that it is no submodule
        self._average = get_ema_multi_avg_fn(decay)
        self.values = {name: value.detach().clone() for name, value in self._weights()}

    def _weights(self) -> list[tuple[str, Tensor]]:
        (network,) = self._network
        return list(chain(network.named_parameters(), network.named_buffers()))

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Add the network's weights to the average, unless `skipped` (a bool scalar on the device) is true; no host sync."""
        averaged: list[Tensor] = []
        weights: list[Tensor] = []
        for name, value in self._weights():
            average = self.values[name]
            new = torch.where(skipped, average, value)  # an average with itself is itself
            if average.is_floating_point():
                averaged.append(average)
                weights.append(new)
            else:
                average.copy_(new)
        self._average(averaged, weights, 0)

    def forward(self, images: Tensor) -> Tensor:
        """The network's output `[B, classes]` with the averaged weights, in the network's own mode."""
        return functional_call(self._network[0], self.values, (images,))

    def train(self, mode: bool = True) -> "AveragedWeights":
        """Also sets the network's mode."""
        super().train(mode)
        self._network[0].train(mode)
        return self

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from `values` of an earlier start."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def adopt(self) -> None:
        """Copy the averaged weights into the network."""
        for name, value in self._weights():
            value.copy_(self.values[name])

    @contextmanager
    def adopted(self) -> Iterator[None]:
        """A block in which the network has its averaged weights; its own are restored afterwards."""
        originals = [(value, value.detach().clone()) for _, value in self._weights()]
        self.adopt()
        try:
            yield
        finally:
            with torch.no_grad():
                for value, before in originals:
                    value.copy_(before)
