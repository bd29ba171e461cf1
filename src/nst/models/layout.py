"""How a layer's output becomes a map `[B, C, H, W]`: of timm's and torchvision's networks, and the map of logits of any network.

Tokens `[B, N, C]` lose their class, distillation and register tokens and are laid out on the network's own grid; maps
`[B, H, W, C]` are permuted: only views, so that hooks can be compiled. The layer "logit_map" is W F(x) + b at each position
x before global average pooling, whose mean is the logits (without dropout); "cam" (Zhou et al., 2016) is that without b.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Convert = Callable[[Any, tuple[int, ...]], Any]  # a layer's output, the images' shape [B, C, H, W] → a map

_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.PixelShuffle, nn.PixelUnshuffle)
# Classes whose 4-D output is [B, H, W, C] (True) or [B, C, H, W] (False) although their modules do not show it.
_LAST_BY_CLASS = {
    "gcvit.GlobalContextVitBlock": True,
    "maxxvit.PartitionAttentionCl": True,
    "maxxvit.ParallelPartitionAttention": True,
    "swin_transformer.SwinTransformer": True,
    "vision_transformer_sam.VisionTransformerSAM": True,
    "volo.VOLO": True,
    "volo.PatchEmbed": False,
}
# Which entry of an output that is a tuple or a list is the feature.
_ITEM = {
    "efficientvim.EfficientViM": 0,
    "efficientvim.EfficientViMDistilled": 0,
    "mvitv2.MultiScaleVit": 0,
    "pit.PoolingVisionTransformer": 0,
    "selecsls.SelecSls": 0,
    "tnt.TNT": 1,
}
_PREFIX = {"coat.CoaT": 1, "vision_transformer.VisionTransformer": 1}  # where `num_prefix_tokens` is missing
_BY_HEAD = ("q_norm", "k_norm", "attn_drop")  # in an attention: [B, heads, N, C / heads] or [B, heads, N, N]
_BY_WINDOW = ("nest.TransformerLayer", "hiera.HieraBlock")  # their tokens are not in the order of the image

LOGIT_MAPS = {"logit_map": True, "cam": False}
"""Names of the layers that are maps of logits, and whether they include the bias."""
_TOLERANCE = 1e-3  # of the largest value: what the mean of the map may differ by, since sums run in another order
_NONE = "the network does not end in global average pooling and a linear classifier, so it has no map of logits; take another layer"
_POOLS = ("AdaptiveAvgPool2d", "SelectAdaptivePool2d", "FastAdaptiveAvgPool")  # the last two are timm's
# The module whose output is pooled, in families where the pooling is none; it is followed by a ReLU in DenseNet.
_BEFORE_POOLING = {"densenet.DenseNet": "features", "mlp_mixer.MlpMixer": "norm", "twins.Twins": "norm"}


def qualified(module: nn.Module) -> str:
    """`file.Class` of a module: "swin_transformer.SwinTransformer"."""
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"


def feature_layout(model: nn.Module, path: str) -> Convert:
    """How the output (or, at `"…:input"`, the first input) of a module of timm or torchvision becomes a map.

    Returns:
        A function of the value and the images' shape `[B, C, H, W]`. It gives `[B, C, H, W]` for tokens and maps, and
        values of other ranks as they are. It raises ValueError for what is no map: windows, tokens that are not on the grid.
    """
    name, is_input = path.removesuffix(":input"), path.endswith(":input")
    module: Any = model.get_submodule(name)
    parts = name.split(".") if name else []
    line = [model.get_submodule(".".join(parts[:k])) for k in range(len(parts), -1, -1)]  # from it to the network
    item = _ITEM.get(qualified(model))
    last = _channels_last(line) and not (is_input and hasattr(module, "patch_size"))
    by_window = any(qualified(around) in _BY_WINDOW for around in line)
    by_head = bool(parts) and parts[-1] in _BY_HEAD
    hiera: Any = model if qualified(module) == "hiera.HieraBlock" and not is_input and parts[:1] == ["blocks"] else None

    def convert(value: Any, images: tuple[int, ...]) -> Any:
        if hiera is not None:
            return hiera.reroll(value, int(parts[1])).permute(0, 3, 1, 2)
        if item is not None and isinstance(value, list | tuple):
            value = value[item]
        if not isinstance(value, Tensor) or value.ndim not in (3, 4):
            return value
        if value.shape[0] != images[0] or by_window:
            why = "it has parts of the images (windows), not whole maps"
        elif by_head:
            why = "it has separate attention heads"
        elif value.ndim == 4:
            return value.permute(0, 3, 1, 2) if last else value
        else:
            prefix = getattr(model, "num_prefix_tokens", None)
            prefix = _PREFIX.get(qualified(model), 0) if prefix is None else int(prefix)
            grids = list(dict.fromkeys(_grids(model, images[2], images[3])))
            for height, width in grids:
                for extra in (prefix, 0):  # some families add the class token in their last blocks
                    if value.shape[1] == height * width + extra:
                        return value[:, extra:].transpose(1, 2).unflatten(2, (height, width))
            expected = " or ".join(f"{height}×{width}" for height, width in grids) or "an unknown grid"
            why = f"it has {value.shape[1]} tokens an image, not {expected} plus {prefix}"
        found = f"layer '{path}' of {type(model).__name__} yields {list(value.shape)}, which is no map"
        named = ", ".join(getattr(model, "named_layers", {})) or "another layer"
        raise ValueError(f"{found}: {why}; choose one of {named}")

    return convert


def _grids(model: nn.Module, height: int, width: int) -> Iterator[tuple[int, int]]:
    """The grids of tokens that a network can have for images of this size."""
    embed: Any = getattr(model, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        high, wide = embed.dynamic_feat_size((height, width))
        yield int(high), int(wide)
    steps = [entry["reduction"] for entry in feature_info(model)]
    if isinstance(size := getattr(model, "patch_size", None), int):  # torchvision's VisionTransformer
        steps.append(size)
    for step in steps:
        yield math.ceil(height / step), math.ceil(width / step)


def feature_info(model: nn.Module) -> list[Mapping[str, Any]]:
    """timm's own list of a network's features; [] for other networks."""
    info: Any = getattr(model, "feature_info", None) or []
    return list(info if isinstance(info, list) else info.get_dicts())


def _channels_last(line: list[nn.Module]) -> bool:
    """Whether a 4-D output of a module is `[B, H, W, C]`, by the module or the nearest enclosing one that determines it."""
    for module, parent in zip(line, [*line[1:], None], strict=True):
        known = [module]
        if isinstance(parent, nn.Sequential):  # an activation keeps the layout of the module before it
            known += reversed(list(parent)[: list(parent).index(module)])
        if (last := _first_known(known)) is not None:
            return last
    return False


def _first_known(modules: Iterable[nn.Module]) -> bool | None:
    return next((last for module in modules if (last := _known_layout(module)) is not None), None)


def _known_layout(module: nn.Module) -> bool | None:
    """Whether a module's 4-D output has its channels last, if its class determines it."""
    name = qualified(module)
    if name in _LAST_BY_CLASS:
        return _LAST_BY_CLASS[name]
    if isinstance(module, _FIRST) or re.search("(Norm|Pool).*2d", name):
        return False
    if isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm) or "RmsNorm" in name or "SimpleNorm" in name:
        return True
    if name == "misc.Permute":
        return bool(module.dims[-1] == 1)  # pyright: ignore[reportIndexIssue]
    if (layout := getattr(module, "output_fmt", None)) is not None:
        return str(getattr(layout, "value", layout)).upper() == "NHWC"
    if hasattr(module, "fc1") and hasattr(module, "fc2"):  # a perceptron: linear layers or 1x1 convolutions
        return _known_layout(module.fc2)  # pyright: ignore[reportArgumentType]
    if isinstance(module, nn.Sequential) and len(module):
        return _first_known(reversed(list(module)))
    return None


class LogitMap(nn.Module):
    """The classifier at each position of a map; it has no parameters of its own."""

    output_fmt = "NCHW"

    def __init__(self, classifier: nn.Module, bias: bool, relu: bool = False) -> None:
        super().__init__()
        self.classifier = (classifier,)  # in a tuple: a submodule would own the weights twice
        self.bias, self.relu = bias, relu

    def forward(self, feature: Tensor) -> Tensor:
        """What comes before the pooling → `[B, classes, H, W]`."""
        classifier: Any = self.classifier[0]  # its parameters are plain tensors where a trial calls the network
        weight = classifier.weight.flatten(1)  # [classes, C], of a linear layer or a 1×1 convolution
        return F.conv2d(self.positions(feature), weight[:, :, None, None], classifier.bias if self.bias else None)

    def positions(self, feature: Tensor) -> Tensor:
        """`[B, C, H, W]`, `[B, H, W, C]` or tokens `[B, N, C]` of a square → `[B, C, H, W]`, whose mean the classifier gets."""
        classifier: Any = self.classifier[0]
        channels = classifier.weight.shape[1]
        shape = list(feature.shape) if isinstance(feature, Tensor) else []
        if len(shape) == 3 and (side := round(shape[1] ** 0.5)) ** 2 == shape[1]:
            feature = feature.unflatten(1, (side, side))
        if shape and feature.ndim == 4 and feature.shape[1] != channels:
            feature = feature.movedim(-1, 1)
        if not shape or feature.ndim != 4 or feature.shape[1] != channels:
            raise ValueError(f"its classifier takes {channels} channels, before the pooling come {shape}: {_NONE}")
        return feature.relu() if self.relu else feature

    def feed(self, module: nn.Module, inputs: tuple[Tensor, ...], *output: Tensor) -> None:
        """Hook before the pooling, or after the last layer: computes the map while something listens to it."""
        if self._forward_hooks:
            self(output[0] if output else inputs[0])


def add_logit_map(model: nn.Module, layer: str) -> str:
    """The module path of the layer "logit_map" or "cam"; the module is added below the classifier the first time.

    Raises:
        ValueError: the network has no linear classifier, or nothing is known of what comes before its pooling.
    """
    modules, kind = dict(model.named_modules()), qualified(model)
    known = model.get_classifier() if hasattr(model, "get_classifier") else None  # pyright: ignore[reportCallIssue]
    known = known if isinstance(known, nn.Linear | nn.Conv2d) else None
    linear = [n for n, m in modules.items() if (isinstance(m, nn.Linear) if known is None else m is known)]
    if linear and f"{linear[-1]}.{layer}" in modules:
        return f"{linear[-1]}.{layer}"
    pools = [m for m in modules.values() if type(m).__name__ in _POOLS and getattr(m, "output_size", 1) in (1, (1, 1))]
    last: str = getattr(model, "named_layers", {}).get("last", "")
    body = modules.get(_BEFORE_POOLING.get(kind) or last.removesuffix(":input") or "nothing")
    place = pools[-1] if pools else body
    if not linear or place is None:
        raise ValueError(f"layer '{layer}' of {type(model).__name__}: {_NONE}")
    classifier = modules[linear[-1]]
    logit_map = LogitMap(classifier, LOGIT_MAPS[layer], relu=not pools and kind == "densenet.DenseNet")
    register = place.register_forward_pre_hook if pools else place.register_forward_hook
    register(logit_map.feed)
    classifier.add_module(layer, logit_map)
    return f"{linear[-1]}.{layer}"


@torch.no_grad()
def check_logit_map(model: nn.Module, layer: str, image_shape: tuple[int, int, int]) -> None:
    """Check on one image of noise that the classifier gets the mean of the map and gives the logits.

    Raises:
        ValueError: it does not: the network ends in something else.
    """
    logit_map: Any = model.get_submodule(add_logit_map(model, layer))
    found: dict[str, Tensor] = {}

    def note_map(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        found["map"] = logit_map.positions(inputs[0]).mean(dim=(2, 3))

    def note_classifier(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found["input"], found["output"] = inputs[0], output

    parameter, training = next(model.parameters()), model.training
    noise = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0))
    handles = [logit_map.register_forward_hook(note_map)]
    handles.append(logit_map.classifier[0].register_forward_hook(note_classifier))
    try:
        logits = model.eval()(noise.to(parameter))
        pairs = [(found["map"], found["input"]), (logits, found["output"])] if len(found) == 3 else []
        if not pairs or not all(
            a.numel() == b.numel() and (a.flatten() - b.flatten()).abs().max() <= _TOLERANCE * b.abs().max()
            for a, b in pairs
        ):
            raise ValueError(_NONE)
    except ValueError as error:
        raise ValueError(f"layer '{layer}' of {type(model).__name__}: {error}") from error
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
