"""The constant ε of batch normalisation, which the publishers of a network may have chosen for all its layers."""

import math

from torch import nn

BN_EPS = 1e-5
"""PyTorch's default. MXNet's pre-activation ResNets and the paper's Inception-BN have 2e-5."""


def set_bn_eps(model: nn.Module, eps: float) -> None:
    """Give every batch normalisation of `model` the ε that is added to the variance.

    Raises:
        ValueError: it is not a positive number.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"bn_eps={eps}: it is added to a variance and must be positive, such as {BN_EPS:g}")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
