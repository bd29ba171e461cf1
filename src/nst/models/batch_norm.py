"""The constant ε of batch normalisation, for all layers of a network."""

import math

from torch import nn

BN_EPS = 1e-5
"""PyTorch's default. MXNet's pre-activation ResNets and the paper's Inception-BN have 2e-5."""


def set_bn_eps(model: nn.Module, eps: float) -> None:
    """Set ε, which is added to the variance, in every batch normalisation of `model`.

    Raises:
        ValueError: it is not a positive number.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"bn_eps={eps}: it is added to a variance and must be positive, such as {BN_EPS:g}")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
