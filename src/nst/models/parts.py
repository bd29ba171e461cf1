"""What the networks built here share: initial weights, the constant of batch normalisation, normalisation of raw pixels; and how
parts of any network are kept fixed."""

import difflib
import math
from collections.abc import Sequence
from types import MethodType

from torch import nn

BN_EPS = 1e-5
"""PyTorch's default. MXNet's pre-activation ResNets and the paper's Inception-BN have 2e-5."""


def he_normal_(model: nn.Module, zero_linear_bias: bool = True) -> None:
    """Draw convolutions from N(0, 2 / fan-out), as the published ResNets, wide ResNets and VGGs do, in place.

    Their biases become zero; linear layers keep PyTorch's draw of the weights. Normalisation layers keep PyTorch's own: scale 1,
    shift 0.

    Args:
        model: the network.
        zero_linear_bias: set the biases of linear layers to zero too, instead of keeping PyTorch's draw of them.
    """
    zeroed = (nn.Conv2d, nn.Linear) if zero_linear_bias else (nn.Conv2d,)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, zeroed) and module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier_gaussian_(model: nn.Module) -> None:
    """Draw convolutions and linear layers from N(0, 2 / fan-in), in place; every bias becomes zero.

    It is MXNet's Xavier (Gaussian, fan-in, magnitude 2), with which the paper's networks start.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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


def input_norm(channels: int, input_bn: bool) -> nn.Module:
    """Batch normalisation of the images (the paper's ImageNet networks) if `input_bn`, or nothing.

    Its shift is learnt, its scale is fixed at 1 (`requires_grad` is off).
    """
    if not input_bn:
        return nn.Identity()
    bn = nn.BatchNorm2d(channels)
    bn.weight.requires_grad_(False)
    return bn


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Fix parts of a network: their parameters need no gradient, their batch norms stay in evaluation mode whenever `train()` is called.

    Args:
        names: of modules or parameters, such as ["conv1", "layer1"]. After a conversion to synchronised batch norm, not before.

    Raises:
        ValueError: there is no such part, or nothing is left to train.
    """
    parts: dict[str, nn.Module | nn.Parameter] = {**dict(model.named_modules()), **dict(model.named_parameters())}
    for name in names:
        part = parts.get(name)
        if part is None or not name:
            nearest = difflib.get_close_matches(name, [known for known in parts if known], n=3, cutoff=0.4)
            raise ValueError(
                f"freeze={list(names)}: {type(model).__name__} has no part {name!r}; nearest: {', '.join(nearest)}"
            )
        if isinstance(part, nn.Parameter):
            part.requires_grad_(False)
            continue
        for parameter in part.parameters():
            parameter.requires_grad_(False)
        part.train = MethodType(_train_without_norms, part)  # a method, so that a deep copy has its own
        part.train(part.training)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze={list(names)}: nothing of {type(model).__name__} is left to train")


def _train_without_norms(self: nn.Module, mode: bool = True) -> nn.Module:
    type(self).train(self, mode)
    for module in self.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = False
    return self
