"""Initial weights of the networks built here."""

from typing import Literal

from torch import nn


def he_normal_(model: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw every convolution's weights from He et al.'s normal distribution, in place.

    Biases become zero. Normalisation layers keep PyTorch's scale 1 and shift 0, linear layers PyTorch's own draw.

    Args:
        model: the network.
        mode: "fan_out" as in the published ResNets, wide ResNets and VGGs; "fan_in" for the paper's networks
            (MXNet's Xavier, Gaussian, fan-in, magnitude 2, is the same distribution).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
