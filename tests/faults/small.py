"""A student that compiles in seconds."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Small(nn.Module):
    """A convolution with its norm, and a classifier with dropout."""

    def __init__(self, num_classes: int, in_channels: int, **unused: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, num_classes)
        self.named_layers = {"last": "relu"}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.drop(self.relu(self.bn(self.conv(images))).mean((2, 3))))


class Drawing(Small):
    """Draws from numpy and `random`, and remembers in a buffer that no state dict has and in state of its own."""

    seen: Tensor

    def __init__(self, num_classes: int, in_channels: int, **unused: Any) -> None:
        super().__init__(num_classes, in_channels)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.steps = torch.zeros(())

    def forward(self, images: Tensor) -> Tensor:
        """Logits, scaled by what was drawn and seen."""
        if not self.training:
            return super().forward(images)
        self.seen += images.mean()
        self.steps = self.steps + 1
        return super().forward(images) * (np.random.rand() + random.random() + 0.1 * self.seen + 0.01 * self.steps)  # noqa: NPY002

    def get_extra_state(self) -> Tensor:
        return self.steps

    def set_extra_state(self, state: Tensor) -> None:
        self.steps = state


class Pooled(Small):
    """Normalises after the maps are averaged: a single image gives its batch norm one value a channel."""

    def __init__(self, num_classes: int, in_channels: int, **unused: Any) -> None:
        super().__init__(num_classes, in_channels)
        self.last = nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.last(self.relu(self.bn(self.conv(images))).mean((2, 3))))
