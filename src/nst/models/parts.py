"""What the networks share: names of layers, stages of blocks, initial weights, normalisation; and parts that stay fixed or are left out."""

import difflib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import nn

BN_EPS = 1e-5
"""PyTorch's default. MXNet's pre-activation ResNets and the paper's Inception-BN have 2e-5."""


class Network(nn.Sequential):
    """Layers by name, one after the other: images [B, in_channels, H, W] -> logits [B, num_classes]."""

    named_layers: dict[str, str]

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__(OrderedDict(layers))


def name_layers(
    stages: Sequence[str], pre_relu: Sequence[str] = (), out: Sequence[str] = (), pooled: str = ""
) -> dict[str, str]:
    """The `named_layers` of a network: "stage1" … "stageN" and "last", which is the last stage, in three places, and "pooled".

    Args:
        stages: a stage's map after the ReLU that ends it: "stage1" …
        pre_relu: what that ReLU sees: "stage1_pre_relu" …; none where stages end without a ReLU.
        out: what the stage hands on to the next one: "stage1_out" …; by default `stages`. In a pre-activation network it is the raw
            sum, and the ReLU comes after the next normalisation.
        pooled: the vector that the classifier sees: "pooled"; none where it is empty.
    """
    named: dict[str, str] = {}
    for suffix, paths in (("", stages), ("_pre_relu", pre_relu), ("_out", out or stages)):
        named |= {f"last{suffix}": paths[-1]} if paths else {}
        named |= {f"stage{k}{suffix}": path for k, path in enumerate(paths, start=1)}
    return named | ({"pooled": pooled} if pooled else {})


def stage(
    block: Callable[..., nn.Module], blocks: int, in_channels: int, out_channels: int, stride: int, *arguments: Any
) -> nn.Sequential:
    """`blocks` blocks in a row, each called with its input's and output's channels, stride (of all but the first 1) and `arguments`."""
    first = block(in_channels, out_channels, stride, *arguments)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1, *arguments) for _ in range(blocks - 1)))


def stages(
    block: Callable[..., nn.Module], blocks: Sequence[int], channels: Sequence[int], stride: int, *arguments: Any
) -> dict[str, nn.Module]:
    """The stages "layer1" … of these numbers of blocks, between these channels; the first has this stride, the others 2."""
    return {
        f"layer{k + 1}": stage(block, count, channels[k], channels[k + 1], 2 if k else stride, *arguments)
        for k, count in enumerate(blocks)
    }


def conv_and_norm(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A square convolution without bias, padded to keep the map's size at stride 1, and its normalisation."""
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs)


def head(name: str, features: int, num_classes: int) -> dict[str, nn.Module]:
    """Global average, and a linear layer of this name."""
    return {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), name: nn.Linear(features, num_classes)}


def he_normal_(model: nn.Module, mode: str = "fan_out", linear: bool = False, zero_linear_bias: bool = True) -> None:
    """Draw convolutions from N(0, 2 / fan), in place; their biases become zero.

    Fan-out is what the published ResNets, wide ResNets and VGGs have; fan-in with `linear` is MXNet's Xavier (Gaussian, magnitude
    2), with which the paper's networks start.

    Args:
        linear: draw the weights of linear layers so, too, instead of keeping PyTorch's draw of them.
        zero_linear_bias: the same for setting their biases to zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or (linear and isinstance(module, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")  # pyright: ignore[reportArgumentType]
        zeroed = nn.Conv2d | nn.Linear if zero_linear_bias else nn.Conv2d
        if isinstance(module, zeroed) and module.bias is not None:
            nn.init.zeros_(module.bias)


def set_bn_eps(model: nn.Module, eps: float) -> None:
    """Set ε, which is added to the variance, in every batch normalisation. Raises ValueError unless it is a positive number."""
    if not 0 < eps < math.inf:
        raise ValueError(f"bn_eps={eps}: a positive number, such as {BN_EPS:g}, is needed")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps


def input_norm(channels: int, input_bn: bool) -> nn.Module:
    """Batch normalisation of the images (the paper's ImageNet networks) if `input_bn`, or nothing: its scale is fixed at 1."""
    if not input_bn:
        return nn.Identity()
    bn = nn.BatchNorm2d(channels)
    bn.weight.requires_grad_(False)
    return bn


class NoClassifier(nn.Identity):
    """Stands where a classifier was left out, so that the names of all layers stay."""


def classifier_names(model: nn.Module, num_classes: int | None) -> list[str]:
    """The modules that give a network's logits: timm's word for them, else the last linear layer or convolution with `num_classes` outputs."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    if (named := getattr(model, "get_classifier", None)) is not None:
        known = named() if isinstance(named(), tuple | list) else [named()]
        return [name for name, module in layers.items() if any(module is one for one in known)]
    # the weight of either kind begins with the outputs
    return [name for name, module in layers.items() if len(module.weight) == num_classes][-1:]


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Fix parts of a network: their parameters need no gradient, their batch norms stay in evaluation mode whenever `train()` is called.

    Args:
        names: of modules or parameters, such as ["conv1", "layer1"]. After a conversion to synchronised batch norm, not before.

    Raises:
        ValueError: there is no such part, or nothing is left to train.
    """
    parts: dict[str, nn.Module | nn.Parameter] = {**dict(model.named_modules()), **dict(model.named_parameters())}
    del parts[""]
    for name in names:
        if name not in parts:
            nearest = ", ".join(difflib.get_close_matches(name, parts, n=3, cutoff=0.4))
            raise ValueError(f"freeze={list(names)}: {type(model).__name__} has no part {name!r}; nearest: {nearest}")
        part = parts[name].requires_grad_(False)
        if isinstance(part, nn.Module):
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
