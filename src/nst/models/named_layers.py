"""Names of a network's layers, and where timm's and torchvision's networks have them: `last`, `stage1` …, `block1` …

Stages are counted from a quarter of the image on, so `stage1` … `stage4` have maps of 1/4, 1/8, 1/16, 1/32 of the
image in most families. Networks whose maps keep one size (ViTs, MLP-Mixers) have no stages but `block1` … `blockN`, and
`last` is the output of the last block, before the final normalisation.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from nst.models.layout import feature_info, qualified

_LAST_RELU = ("act3", "act2", "relu", "act", "activation")  # of a residual block, by library and kind of block
_RELU_LAST = ("regnet", "byobnet")  # families whose blocks end in it, apart from those with `layer1`, `layer2`, …
_STAGES = {  # by torchvision's class
    "densenet.DenseNet": [f"features.denseblock{k}" for k in range(1, 5)],
    "googlenet.GoogLeNet": ["conv3", "inception3b", "inception4e", "inception5b"],
    "inception.Inception3": ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"],
    "convnext.ConvNeXt": [f"features.{k}" for k in (1, 3, 5, 7)],
    "swin_transformer.SwinTransformer": [f"features.{k}" for k in (1, 3, 5, 7)],
    "maxvit.MaxVit": [f"blocks.{k}" for k in range(4)],
    "regnet.RegNet": [f"trunk_output.block{k}" for k in range(1, 5)],
}


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


def timm_layers(model: nn.Module) -> dict[str, str]:
    """The named layers of a network of timm, from its `feature_info`; {} where that names no module that is called."""
    if layers := residual_layers(model):
        return layers
    if getattr(model, "incre_modules", None) is not None:  # HRNet: maps of all sizes in parallel, joined at the end
        count = len(model.incre_modules)  # pyright: ignore[reportArgumentType]
        return _named("stage", [f"incre_modules.{k}" for k in range(count)]) | {"last": "final_layer"}
    if getattr(model, "parallel_blocks", None) is not None:  # CoaT: the same, in one module
        return {}
    info = [entry for entry in feature_info(model) if entry["module"]]
    one_size = len(info) > 1 and len({entry["reduction"] for entry in info}) == 1
    if not one_size:
        info = [entry for entry in info if entry["reduction"] >= 4 and "stem" not in entry["module"]]
    names = [_called(model, entry["module"]) for entry in info]
    modules = [name for name in names if name is not None]
    if len(modules) < len(names) or (qualified(model).startswith("crossvit.")):
        return {}
    layers = _named("block" if one_size else "stage", modules)
    return layers if one_size else layers | _pre_relu(model, layers)


def torchvision_layers(model: nn.Module) -> dict[str, str]:
    """The named layers of a network of torchvision."""
    if layers := residual_layers(model):
        return layers
    kind = qualified(model)
    if kind in _STAGES:
        layers = _named("stage", _STAGES[kind])
        return layers | _pre_relu(model, layers)
    if kind == "vision_transformer.VisionTransformer":
        return _named(
            "block", [f"encoder.layers.{name}" for name, _ in model.get_submodule("encoder.layers").named_children()]
        )
    if kind == "shufflenetv2.ShuffleNetV2":
        return {"stage2": "stage2", "stage3": "stage3", "stage4": "stage4", "last": "conv5"}
    for container in ("features", "layers"):  # `layers` in MNASNet
        body = getattr(model, container, None)
        if isinstance(body, nn.Sequential):
            return _named("stage", [f"{container}.{k}" for k in _stage_ends(body)]) | {"last": container}
    return {}


def further_layers(model: nn.Module, layers: dict[str, str]) -> dict[str, str]:
    """What a stage hands on, "stage1_out" … (its output), and "pooled", the input of a linear classifier."""
    named = {f"{name}_out": path for name, path in layers.items() if re.fullmatch(r"stage\d+|last", name)}
    classifier: Any = getattr(model, "get_classifier", lambda: None)()  # of timm's networks
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if classifier is not None:
        linear = [name for name in linear if model.get_submodule(name) is classifier]
    return named | ({"pooled": f"{linear[-1]}:input"} if linear else {})


def residual_layers(model: nn.Module) -> dict[str, str]:
    """Named layers of a network with stages `layer1`, `layer2`, ... whose blocks end in a ReLU of a known name; else {}."""
    stages = [name for name, _ in model.named_children() if re.fullmatch("layer[1-9]", name)]
    if len(stages) < 3:
        return {}
    layers = _named("stage", stages)
    relus = _pre_relu(model, layers, families=None)
    return layers | relus if len(relus) == len(stages) + 1 else {}


def _named(kind: str, names: list[str]) -> dict[str, str]:
    layers = {f"{kind}{k}": name for k, name in enumerate(names, start=1)}
    return layers | {"last": names[-1]} if names else {}


def _pre_relu(model: nn.Module, layers: dict[str, str], families: Iterable[str] | None = _RELU_LAST) -> dict[str, str]:
    """The inputs of the ReLUs that end the stages, where the family's blocks end in one."""
    if families is not None and qualified(model).partition(".")[0] not in families:
        return {}
    relus: dict[str, str] = {}
    for layer, name in layers.items():
        blocks = list(model.get_submodule(name).named_children())
        if not blocks:
            continue
        inner, block = blocks[-1]
        kinds: Any = nn.Module if families is None else nn.ReLU
        relu = next((r for r in _LAST_RELU if isinstance(getattr(block, r, None), kinds)), None)
        if relu is not None:
            relus[f"{layer}_pre_relu"] = f"{name}.{inner}.{relu}:input"
    return relus


def _called(model: nn.Module, name: str) -> str | None:
    """The module that a name in `feature_info` refers to; of a list of modules, the last one."""
    modules = dict(model.named_modules())
    for start, real in (("block.", "blocks."), ("block.", "stages.")):  # timm's names for Twins, for MViT
        if name not in modules and name.startswith(start) and name.replace(start, real, 1) in modules:
            name = name.replace(start, real, 1)
    while isinstance(modules.get(name), nn.ModuleList):
        name = f"{name}.{len(modules[name]) - 1}"  # pyright: ignore[reportArgumentType]
    return name if name in modules else None


def _stage_ends(body: nn.Sequential) -> list[int]:
    """The children after which the maps shrink, and the last one, from a quarter of the image on."""
    ends, reduction = [], 1
    for k, child in enumerate(body):
        step = max((_stride(module) for module in child.modules()), default=1)
        if step > 1 and reduction >= 4:
            ends.append(k - 1)
        reduction *= step
    return [*ends, len(body) - 1] if reduction >= 4 else []


def _stride(module: nn.Module) -> int:
    step = getattr(module, "stride", 1) if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) else 1
    return step if isinstance(step, int) else step[0]
