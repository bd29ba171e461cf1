"""Networks of torchvision and timm by name, prepared for layers.

Activations work out of place. Stages are counted from a quarter of the image on: mostly `stage1` … `stage4` have maps of
1/4 … 1/32 of it. Networks whose maps keep one size (ViTs) have `block1` … `blockN`, before the final normalisation.
"""

import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.models.layout import feature_info, feature_layout, qualified

# Constructor arguments that have keys of their own.
_KEYS = ("num_classes", "in_chans", "in_channels", "pretrained", "weights", "img_size", "image_size", "input_size")
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


@dataclass(frozen=True)
class InputFormat:
    """The images that pretrained weights were made for, as their library records them."""

    mean: tuple[float, ...]  # by channel, of pixels in 0…1
    std: tuple[float, ...]
    size: int
    interpolation: str  # "bilinear", "bicubic", …
    source: str  # the library and its name of the weights
    classes: int  # of their classifier


class Resize:
    """A hook before a network's `forward`: images `[B, C, H, W]` → `[B, C, size, size]`, bicubic or bilinear, antialiased."""

    def __init__(self, size: int, interpolation: str = "bilinear") -> None:
        self.size, self.mode = size, "bicubic" if interpolation == "bicubic" else "bilinear"

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *others = inputs
        size = (self.size, self.size)
        if images.shape[-2:] == size:
            return inputs
        return F.interpolate(images, size, mode=self.mode, align_corners=False, antialias=True), *others


def resize_inputs(model: nn.Module, size: int | None, interpolation: str = "bilinear") -> None:
    """Have a network look at its images resized to `size`; None, or one that resizes them already: as it is."""
    if size is not None and resized_to(model) is None:
        model.register_forward_pre_hook(Resize(size, interpolation), prepend=True)


def resized_to(model: nn.Module) -> int | None:
    """The size to which a network resizes its images; None: it looks at them as they come."""
    return next((hook.size for hook in model._forward_pre_hooks.values() if isinstance(hook, Resize)), None)


def torchvision_model(
    arch: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: int | None = None,
    input_size: int | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classification network of torchvision.

    Args:
        arch: its name there, such as "resnet50".
        num_classes: number of logits; the classifier is replaced where the weights have another number, and left out for 0.
        in_channels: channels of the images.
        pretrained: start from torchvision's default weights for ImageNet (downloaded once).
        image_size: height and width of the images in pixels; None: those of the network's default.
        input_size: the size to which the network resizes its images; None: as they come; "auto": that of its pretrained weights.
        arguments: further arguments of the network's constructor there, such as {"stochastic_depth_prob": 0.1}.

    Returns:
        The network, images [B, in_channels, H, W] -> logits [B, num_classes], with named layers (see `nst.models.parts.name_layers`) and,
        if pretrained, an `InputFormat` as `input_format`.

    Raises:
        ValueError: the library is missing, has no such name, argument or size, or its weights cannot be had, or are for 3 channels.
    """
    from nst.vision import models

    _check_name("torchvision", arch, models.list_models(module=models))
    if pretrained and in_channels != 3:
        raise ValueError(f"in_channels={in_channels}: torchvision's pretrained weights are for 3 channels")
    record, native = None, None
    if pretrained:
        chosen = models.get_model_weights(arch)["DEFAULT"]
        how, classes, native = chosen.transforms(), len(chosen.meta["categories"]), chosen.meta["min_size"][0]
        source, mode = f"torchvision's {chosen}", how.interpolation.value
        record = InputFormat(tuple(how.mean), tuple(how.std), how.crop_size[0], mode, source, classes)
    options, size, resized = _start(arguments, image_size, input_size, record)
    if arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False} if pretrained else {"aux_logits": False, "init_weights": True}
    if size is not None and arch.startswith(("vit_", "maxvit")):  # built for one size
        if pretrained and size != native:
            raise ValueError(f"arch={arch}: for {native}×{native}, not {size}×{size}; input_size={native} resizes")
        options |= {"image_size": size} if arch.startswith("vit_") else {"input_size": (size, size)}
    if not pretrained and num_classes:
        options["num_classes"] = num_classes
    with _building("torchvision", arch, pretrained, options):
        model: nn.Module = models.get_model(arch, weights="DEFAULT" if pretrained else None, **options)
    if pretrained or not num_classes:  # the last layer is linear, or SqueezeNet's 1x1 convolution
        name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        if not num_classes:
            model.set_submodule(name, nn.Identity())
        elif isinstance(last, nn.Linear) and last.out_features != num_classes:
            model.set_submodule(name, nn.Linear(last.in_features, num_classes, bias=last.bias is not None))
        elif isinstance(last, nn.Conv2d) and last.out_channels != num_classes:
            model.set_submodule(name, nn.Conv2d(last.in_channels, num_classes, 1))
    if in_channels != 3:
        stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        stem.in_channels = in_channels
        stem.weight = nn.Parameter(torch.empty(stem.out_channels, in_channels, *stem.kernel_size))
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return _prepare(model, _residual_layers(model) or _torchvision_layers(model), resized, record)


def timm_model(
    arch: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: int | None = None,
    input_size: int | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classification network of timm (an optional extra), with arguments, result and errors as `torchvision_model`.

    `arch` may have a tag: "resnet50.a1_in1k". timm adapts pretrained weights to the channels, and a ViT's position embedding to
    the size.
    """
    importlib.import_module("nst.vision")  # timm imports torchvision
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError("the model is one of timm, which is not installed: pip install 'nst[timm]'") from error
    if not timm.is_model(arch):
        _check_name("timm", arch, timm.list_models())
    record, config = None, timm.models.get_pretrained_cfg(arch)
    if pretrained and config is not None:
        source = "timm's " + ".".join(part for part in (config.architecture, config.tag) if part)
        mean, std, native = tuple(config.mean), tuple(config.std), config.input_size[-1]
        record = InputFormat(mean, std, native, config.interpolation, source, config.num_classes)
    options, size, resized = _start(arguments, image_size, input_size, record)
    fixed = config is not None and config.fixed_input_size
    if size is not None and fixed:
        options["img_size"] = size
    with _building("timm", arch, pretrained, options):
        model = timm.create_model(arch, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **options)
    embed = getattr(model, "patch_embed", None)
    patch, padded = getattr(embed, "patch_size", None), getattr(embed, "dynamic_img_pad", False)
    patch = patch[0] if isinstance(patch, tuple) else patch
    if size is not None and fixed and isinstance(patch, int) and size % patch and not padded:
        near = size // patch * patch or patch
        raise ValueError(f"arch={arch}: {size}×{size} are no whole {patch}×{patch} patches; input_size={near} resizes")
    return _prepare(model, _residual_layers(model) or _timm_layers(model), resized, record)


def _check_name(library: str, arch: str, names: list[str]) -> None:
    if arch not in names:
        nearest = ", ".join(difflib.get_close_matches(arch, names, n=5, cutoff=0.4) or names[:5])
        raise ValueError(f"arch={arch!r}: {library} has no classification model of that name; it has {nearest}, …")


def _start(
    arguments: Mapping[str, Any] | None, image_size: int | None, input_size: Any, record: InputFormat | None
) -> tuple[dict[str, Any], int | None, int | None]:
    """The constructor's further arguments, the size that the network gets, and the one that it resizes its images to."""
    if taken := [name for name in arguments or () if name in _KEYS]:
        raise ValueError(f"arguments.{taken[0]}: classes, channels, sizes and weights have keys of their own")
    if input_size == "auto":
        input_size = None if record is None else record.size
    for key, size in (("image_size", image_size), ("input_size", input_size)):
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"{key}={size!r}: a positive whole number of pixels is needed")
    return dict(arguments or {}), image_size if input_size is None else input_size, input_size


@contextmanager
def _building(library: str, arch: str, pretrained: bool, options: Mapping[str, Any]) -> Iterator[None]:
    """Raises ValueError if a network or its weights are not available; the libraries raise a dozen kinds of errors."""
    try:
        yield
    except Exception as error:
        hint = "; pretrained=false needs no download and fits any input_size" if pretrained else ""
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{library} cannot build arch={arch} with arguments {dict(options)} ({why}){hint}") from error


def _prepare(
    network: nn.Module, layers: dict[str, str], input_size: int | None, record: InputFormat | None
) -> nn.Module:
    """Nothing in place; the layers' names, "stage1_out" … and "pooled" (a linear classifier's input) too; the images resized."""
    model: Any = network
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    out = {f"{name}_out": path for name, path in layers.items() if re.fullmatch(r"stage\d+|last", name)}
    classifier = getattr(model, "get_classifier", lambda: None)()  # of timm's networks
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if classifier is not None:
        linear = [name for name in linear if model.get_submodule(name) is classifier]
    model.named_layers = layers | out | ({"pooled": f"{linear[-1]}:input"} if linear else {})
    model.feature_layout = feature_layout
    if record is not None:
        model.input_format = record
    resize_inputs(model, input_size, "bilinear" if record is None else record.interpolation)
    return model


def _timm_layers(model: nn.Module) -> dict[str, str]:
    """The named layers of a network of timm, from its `feature_info`; {} where that names no module that is called."""
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
    if len(modules) < len(names) or qualified(model).startswith("crossvit."):
        return {}
    layers = _named("block" if one_size else "stage", modules)
    return layers if one_size else layers | _pre_relu(model, layers)


def _torchvision_layers(model: nn.Module) -> dict[str, str]:
    """The named layers of a network of torchvision."""
    kind = qualified(model)
    if kind in _STAGES:
        layers = _named("stage", _STAGES[kind])
        return layers | _pre_relu(model, layers)
    if kind == "vision_transformer.VisionTransformer":
        blocks = model.get_submodule("encoder.layers").named_children()
        return _named("block", [f"encoder.layers.{name}" for name, _ in blocks])
    if kind == "shufflenetv2.ShuffleNetV2":
        return {"stage2": "stage2", "stage3": "stage3", "stage4": "stage4", "last": "conv5"}
    for container in ("features", "layers"):  # `layers` in MNASNet
        if isinstance(body := getattr(model, container, None), nn.Sequential):
            return _named("stage", [f"{container}.{k}" for k in _stage_ends(body)]) | {"last": container}
    return {}


def _residual_layers(model: nn.Module) -> dict[str, str]:
    """Named layers of a network with stages `layer1`, `layer2`, ... whose blocks end in a ReLU of a known name; else {}."""
    stages = [name for name, _ in model.named_children() if re.fullmatch("layer[1-9]", name)]
    layers = _named("stage", stages)
    relus = _pre_relu(model, layers, families=None)
    return layers | relus if len(stages) >= 3 and len(relus) == len(stages) + 1 else {}


def _named(kind: str, names: list[str]) -> dict[str, str]:
    layers = {f"{kind}{k}": name for k, name in enumerate(names, start=1)}
    return layers | {"last": names[-1]} if names else {}


def _pre_relu(model: nn.Module, layers: dict[str, str], families: Iterable[str] | None = _RELU_LAST) -> dict[str, str]:
    """The inputs of the ReLUs that end the stages, where the family's blocks end in one."""
    if families is not None and qualified(model).partition(".")[0] not in families:
        return {}
    relus: dict[str, str] = {}
    kinds: Any = nn.Module if families is None else nn.ReLU
    for layer, name in layers.items():
        for inner, block in list(model.get_submodule(name).named_children())[-1:]:
            for relu in [r for r in _LAST_RELU if isinstance(getattr(block, r, None), kinds)][:1]:
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
    ends, reduction, strided = [], 1, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
    for k, child in enumerate(body):
        strides: list[Any] = [module.stride for module in child.modules() if isinstance(module, strided)]
        step = max((stride if isinstance(stride, int) else stride[0] for stride in strides), default=1)
        if step > 1 and reduction >= 4:
            ends.append(k - 1)
        reduction *= step
    return [*ends, len(body) - 1] if reduction >= 4 else []
