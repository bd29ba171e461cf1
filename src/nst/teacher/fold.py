"""Batch normalisation folded into the convolution before it: for networks that only run forward, in `eval()` mode."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_weights

from nst.layers import LOGITS, LayerHooks, resolve

TOLERANCE = 1e-3  # of the largest value: folding in float32 moves a deep network's logits by about 1e-4


def fold_batch_norm(model: nn.Module, image: Tensor, keep: Collection[str] = ()) -> int:
    """Fold each `Conv2d → BatchNorm2d` pair in place: the convolution gets a bias, the norm becomes `nn.Identity`.

    Modules keep their names, so layers can be named as before. A network that cannot be traced (data-dependent control
    flow) or whose output or named features move stays as it is. Call it before attaching hooks.

    Args:
        model: in `eval()` mode, on the device of `image`.
        image: `[B, C, H, W]`, to compare output and features before and after.
        keep: layers; a pair is not folded if the value between its two modules is named by the name of one of them.

    Returns:
        How many pairs were folded.
    """
    pairs = _pairs(model, {resolve(model, layer) for layer in keep})
    if not pairs:
        return 0
    originals: list[tuple[str, nn.Module]] = []
    before = _features(model, image, keep)
    for conv, norm in pairs:
        originals += [(conv, model.get_submodule(conv)), (norm, model.get_submodule(norm))]
        model.set_submodule(conv, _folded(model, conv, norm), strict=True)
        model.set_submodule(norm, nn.Identity(), strict=True)
    after = _features(model, image, keep)
    # A named block may end in a pair's convolution, or begin with its norm.
    if all((after[layer] - value).abs().max() <= TOLERANCE * value.abs().max() for layer, value in before.items()):
        return len(pairs)
    for name, module in originals:
        model.set_submodule(name, module, strict=True)
    return 0


@torch.no_grad()
def _features(model: nn.Module, image: Tensor, keep: Collection[str]) -> dict[str, Tensor]:
    """Logits and the features at the layers."""
    layers = LayerHooks(model, keep)
    logits = model(image)
    layers.remove()
    return layers.read() | {LOGITS: logits}


def _pairs(model: nn.Module, keep: set[str]) -> list[tuple[str, str]]:
    """Names of convolution and norm where the norm alone reads the convolution's output, and each is called once.

    A convolution whose weight is computed from others, as by `weight_norm`, is none.
    """
    try:
        nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception:  # a user's forward may raise anything on symbolic values: nothing is folded then
        return []
    modules = dict(model.named_modules())
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs: list[tuple[str, str]] = []
    for node in nodes:
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, name = str(before.target), str(node.target)
        once = calls.count(conv) == 1 and calls.count(name) == 1
        plain = type(modules[conv]) is nn.Conv2d and modules[conv]._parameters.keys() == {"weight", "bias"}
        if plain and once and conv not in keep and f"{name}:input" not in keep:
            pairs.append((conv, name))
    return pairs


def _folded(model: nn.Module, conv_name: str, norm_name: str) -> nn.Module:
    """The convolution with the norm folded in; computed in float64."""
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    bias = None if conv.bias is None else conv.bias.double()
    scale = None if norm.weight is None else norm.weight.double()
    shift = None if norm.bias is None else norm.bias.double()
    mean, var = norm.running_mean.double(), norm.running_var.double()
    weight, new_bias = fuse_conv_bn_weights(conv.weight.double(), bias, mean, var, norm.eps, scale, shift)
    folded = copy.copy(conv)  # shares only what is not written to
    folded._parameters = {
        "weight": nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False),
        "bias": nn.Parameter(new_bias.to(conv.weight.dtype), requires_grad=False),
    }
    return folded
