"""Converts the output of a layer of timm's or torchvision's networks to a map `[B, C, H, W]`.

Tokens `[B, N, C]` lose their class, distillation and register tokens and are laid out on the network's own grid; maps
`[B, H, W, C]` are permuted. The information comes from the network: `num_prefix_tokens`, `patch_embed`, `feature_info`,
`output_fmt`, and the kinds of its modules. Only views are made, so that hooks cost nothing and can be compiled.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

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


def qualified(module: nn.Module) -> str:
    """`file.Class` of a module: "swin_transformer.SwinTransformer"."""
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"


def feature_layout(model: nn.Module, path: str) -> Convert:
    """How the output (or, at `"…:input"`, the first input) of a module becomes a map.

    Args:
        model: of timm or torchvision.
        path: a module's name, with or without ":input".

    Returns:
        A function of the value and the images' shape `[B, C, H, W]`. It gives `[B, C, H, W]` for tokens and maps, and
        values of other ranks as they are. It raises ValueError for what is no map: windows of the images apart, tokens
        that are not on the network's grid.
    """
    name, side = path.removesuffix(":input"), "input" if path.endswith(":input") else "output"
    module = model.get_submodule(name)
    if qualified(module) == "hiera.HieraBlock" and side == "output" and name.startswith("blocks."):
        return _hiera_block(model, int(name.rpartition(".")[2]))
    item = _ITEM.get(qualified(model))
    last = _channels_last(model, name) and not (side == "input" and hasattr(module, "patch_size"))
    by_window = any(qualified(around) in _BY_WINDOW for around in _enclosing(model, name))
    by_head = name.rpartition(".")[2] in _BY_HEAD

    def convert(value: Any, images: tuple[int, ...]) -> Any:
        if item is not None and isinstance(value, list | tuple):
            value = value[item]
        if not isinstance(value, Tensor) or value.ndim not in (3, 4):
            return value
        if value.shape[0] != images[0] or by_window:
            raise _no_map(model, path, value, "it has parts of the images (windows), not whole maps")
        if by_head:
            raise _no_map(model, path, value, "it has separate attention heads")
        if value.ndim == 4:
            return value.permute(0, 3, 1, 2) if last else value
        return _unfolded(model, path, value, images)

    return convert


def _unfolded(model: nn.Module, path: str, tokens: Tensor, images: tuple[int, ...]) -> Tensor:
    """`[B, prefix + H · W, C]` → `[B, C, H, W]`."""
    prefix = getattr(model, "num_prefix_tokens", None)
    prefix = _PREFIX.get(qualified(model), 0) if prefix is None else int(prefix)
    grids = list(dict.fromkeys(_grids(model, images[2], images[3])))
    for height, width in grids:
        for extra in (prefix, 0):  # some families add the class token in their last blocks
            if tokens.shape[1] == height * width + extra:
                return tokens[:, extra:].transpose(1, 2).unflatten(2, (height, width))
    expected = " or ".join(f"{height}×{width}" for height, width in grids) or "an unknown grid"
    raise _no_map(model, path, tokens, f"it has {tokens.shape[1]} tokens an image, not {expected} plus {prefix}")


def _grids(model: nn.Module, height: int, width: int) -> Iterator[tuple[int, int]]:
    """The grids of tokens that a network can have for images of this size."""
    embed = getattr(model, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        high, wide = embed.dynamic_feat_size((height, width))  # pyright: ignore[reportOptionalMemberAccess]
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


def _hiera_block(model: nn.Module, index: int) -> Convert:
    def convert(value: Any, images: tuple[int, ...]) -> Any:
        return model.reroll(value, index).permute(0, 3, 1, 2)  # pyright: ignore[reportCallIssue]

    return convert


def _enclosing(model: nn.Module, name: str) -> list[nn.Module]:
    """A module and the modules that contain it, the network last."""
    parts = name.split(".") if name else []
    return [model.get_submodule(".".join(parts[:k])) for k in range(len(parts), -1, -1)]


def _channels_last(model: nn.Module, name: str) -> bool:
    """Whether a 4-D output of a module is `[B, H, W, C]`, by the module or the nearest enclosing one that determines it."""
    line = _enclosing(model, name)
    for module, parent in zip(line, [*line[1:], None], strict=True):
        if (last := _known_layout(module)) is not None:
            return last
        if isinstance(parent, nn.Sequential):  # an activation keeps the layout of the module before it
            before = list(parent)[: list(parent).index(module)]
            if (last := next((t for m in reversed(before) if (t := _known_layout(m)) is not None), None)) is not None:
                return last
    return False


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
        return next((t for m in reversed(list(module)) if (t := _known_layout(m)) is not None), None)
    return None


def _no_map(model: nn.Module, path: str, value: Tensor, why: str) -> ValueError:
    named = getattr(model, "named_layers", {})
    return ValueError(
        f"layer '{path}' of {type(model).__name__} yields {list(value.shape)}, which is no map: {why}; "
        f"choose {'one of ' + ', '.join(named) if named else 'another layer'}"
    )
