"""Networks of torchvision and timm by name, prepared for layers.

Activations are set to work out of place. Additions and activations that such a network does in place inside its own
`forward` stay (`out += identity` after a block's last normalisation, the functional ReLU of GoogLeNet): a layer whose
output they overwrite can't be named; layer the input of the layer behind it.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.models.layout import feature_layout
from nst.models.named_layers import further_layers, timm_layers, torchvision_layers

_RESERVED = {  # constructor arguments with their own keys
    "num_classes": "num_classes",
    "in_chans": "in_channels",
    "in_channels": "in_channels",
    "pretrained": "pretrained",
    "weights": "pretrained",
    "img_size": "input_size",
    "image_size": "input_size",
    "input_size": "input_size",
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
    """A hook before a network's `forward`: images `[B, C, H, W]` at its own size, `[B, C, size, size]`.

    Args:
        size: height and width.
        interpolation: "bicubic" or, for any other, "bilinear"; with antialiasing where the images shrink.
    """

    def __init__(self, size: int, interpolation: str = "bilinear") -> None:
        self.size, self.mode = size, "bicubic" if interpolation == "bicubic" else "bilinear"

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *others = inputs
        if images.shape[-2:] == (self.size, self.size):
            return inputs
        size = (self.size, self.size)
        return F.interpolate(images, size, mode=self.mode, align_corners=False, antialias=True), *others


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
        input_size: the size at which the network looks at the images, resized inside it; None: as they come; "auto": that of
            the pretrained weights, without those as they come.
        arguments: further arguments of the network's constructor there, such as {"stochastic_depth_prob": 0.1}.

    Returns:
        The network, images [B, in_channels, H, W] -> logits [B, num_classes], with named layers (see `nst.models.named_layers`) and,
        if pretrained, an `InputFormat` as `input_format`.

    Raises:
        ValueError: torchvision cannot be imported, no such name, argument or size, pretrained weights for other than 3
                channels, or they cannot be downloaded.
    """
    from nst.vision import models

    _check_name("torchvision", arch, models.list_models(module=models))
    if pretrained and in_channels != 3:
        raise ValueError(f"in_channels={in_channels}: torchvision's pretrained weights are for 3 channels")
    build = models.get_model
    extra, record = _extra(arguments), None
    if pretrained:
        chosen = models.get_model_weights(arch)["DEFAULT"]
        how, classes = chosen.transforms(), len(chosen.meta["categories"])
        record = InputFormat(
            tuple(how.mean),
            tuple(how.std),
            how.crop_size[0],
            how.interpolation.value,
            f"torchvision's {chosen}",
            classes,
        )
    input_size = _own_size(input_size, record)
    size = _checked_size(image_size, input_size)
    options: dict[str, Any] = dict(extra)
    if arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False} if pretrained else {"aux_logits": False, "init_weights": True}
    if not pretrained and num_classes:
        options["num_classes"] = num_classes
    options |= _torchvision_size(arch, size, pretrained)
    with _building("torchvision", arch, pretrained, size, extra):
        model: nn.Module = build(arch, weights="DEFAULT" if pretrained else None, **options)
    if pretrained or not num_classes:
        _replace_classifier(model, num_classes)
    if in_channels != 3:
        _replace_stem(model, in_channels)
    return _prepare(model, torchvision_layers(model), input_size, record)


def timm_model(
    arch: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    image_size: int | None = None,
    input_size: int | str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A classification network of timm (an optional extra).

    Args:
        arch: its name there, with or without a tag: "resnet50", "resnet50.a1_in1k".
        num_classes: number of logits; 0: without a classifier, the output is the pooled features.
        in_channels: channels of the images; timm adapts pretrained weights to it.
        pretrained: start from timm's weights (downloaded once); timm adapts a ViT's position embedding to the size.
        image_size: height and width of the images in pixels; None: those of the network's default.
        input_size: the size at which the network looks at the images, resized inside it; None: as they come; "auto": that of
            the pretrained weights, without those as they come.
        arguments: further arguments of the network's constructor there, such as {"drop_path_rate": 0.1}.

    Returns:
        The network, images [B, in_channels, H, W] -> logits [B, num_classes], with named layers (see `nst.models.named_layers`) and,
        if pretrained, an `InputFormat` as `input_format`.

    Raises:
        ValueError: timm is not installed, has no such name, argument or size, or its weights cannot be downloaded.
    """
    timm = _import_timm()
    if not timm.is_model(arch):
        _check_name("timm", arch, timm.list_models())
    extra, record = _extra(arguments), None
    config = timm.models.get_pretrained_cfg(arch)
    if pretrained and config is not None:
        name = ".".join(part for part in (config.architecture, config.tag) if part)
        record = InputFormat(
            tuple(config.mean),
            tuple(config.std),
            config.input_size[-1],
            config.interpolation,
            f"timm's {name}",
            config.num_classes,
        )
    input_size = _own_size(input_size, record)
    size = _checked_size(image_size, input_size)
    options: dict[str, Any] = dict(extra)
    if size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = size
    with _building("timm", arch, pretrained, size, extra):
        model = timm.create_model(arch, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels, **options)
    if "img_size" in options:
        _check_patches(arch, model, options["img_size"])
    return _prepare(model, timm_layers(model), input_size, record)


def _extra(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further arguments of a constructor. Raises ValueError for one that has its own key."""
    for name in arguments or {}:
        if name in _RESERVED:
            raise ValueError(f"arguments.{name}: use the key {_RESERVED[name]}")
    return dict(arguments or {})


def _own_size(input_size: int | str | None, record: InputFormat | None) -> int | None:
    """The input size in pixels behind "auto"; any other text is left to be refused."""
    if input_size != "auto":
        return input_size  # pyright: ignore[reportReturnType]
    return None if record is None else record.size


def _checked_size(image_size: int | None, input_size: int | None) -> int | None:
    """The input size of the network."""
    for key, size in (("image_size", image_size), ("input_size", input_size)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"{key}={size!r}: a positive whole number of pixels is needed")
    return image_size if input_size is None else input_size


def _torchvision_size(arch: str, size: int | None, pretrained: bool) -> dict[str, Any]:
    """The argument that fixes the size of the images, in the two families that have one."""
    if size is None or not arch.startswith(("vit_", "maxvit")):
        return {}
    if pretrained:
        from nst.vision import models

        native = models.get_model_weights(arch)["DEFAULT"].meta["min_size"][0]
        if size != native:
            raise ValueError(
                f"arch={arch}: torchvision's pretrained weights are for images of {native}×{native}, not "
                f"{size}×{size}; input_size={native} resizes them for this network"
            )
        return {}
    return {"image_size": size} if arch.startswith("vit_") else {"input_size": (size, size)}


def _check_patches(arch: str, model: nn.Module, size: int) -> None:
    """Raises ValueError if patches do not cover the whole image."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    if not isinstance(patch, int) or size % patch == 0 or getattr(embed, "dynamic_img_pad", False):
        return
    below = size // patch * patch
    sizes = " or ".join(str(fit) for fit in (below, below + patch) if fit > 0)
    raise ValueError(
        f"arch={arch}: images of {size}×{size} are no whole number of its {patch}×{patch} patches; "
        f"input_size={sizes} resizes them for this network"
    )


@contextmanager
def _building(
    library: str, arch: str, pretrained: bool, size: int | None, arguments: Mapping[str, Any]
) -> Iterator[None]:
    """Raises ValueError if a network or its weights are not available; the libraries raise a dozen kinds of errors."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        built = f"arch={arch}{f' for images of {size}×{size}' if size else ''}"
        if arguments:
            built += f" with arguments {dict(arguments)}"
        if not pretrained:
            raise ValueError(f"{library} cannot build {built} ({reason})") from error
        if "size mismatch" in str(error):
            raise ValueError(
                f"{library}'s pretrained weights do not fit {built}: input_size at the size of the weights, fewer "
                f"arguments or pretrained=false would do ({reason})"
            ) from error
        raise ValueError(
            f"arch={arch}: {library}'s pretrained weights are not on this machine and could not be downloaded "
            f"({reason}); pretrained=false leaves them out"
        ) from error


def _import_timm() -> ModuleType:
    importlib.import_module("nst.vision")  # timm imports torchvision
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError("the model is one of timm, which is not installed: pip install 'nst[timm]'") from error


def _check_name(library: str, arch: str, names: list[str]) -> None:
    if arch in names:
        return
    nearest = difflib.get_close_matches(arch, names, n=5, cutoff=0.4)
    hint = f"nearest names: {', '.join(nearest)}" if nearest else f"it has {len(names)}, such as {', '.join(names[:3])}"
    raise ValueError(f"arch={arch!r}: {library} has no classification model of that name; {hint}")


def _replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Replace the last layer (linear, or SqueezeNet's 1x1 convolution), if the number of classes differs; 0: take it out."""
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if not num_classes:
        model.set_submodule(name, nn.Identity())
    elif isinstance(last, nn.Linear):
        if last.out_features != num_classes:
            model.set_submodule(name, nn.Linear(last.in_features, num_classes, bias=last.bias is not None))
    elif last.out_channels != num_classes:
        model.set_submodule(name, nn.Conv2d(last.in_channels, num_classes, 1))


def _replace_stem(model: nn.Module, in_channels: int) -> None:
    """Give the first convolution fresh weights for `in_channels`."""
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    stem.in_channels = in_channels
    stem.weight = nn.Parameter(torch.empty(stem.out_channels, in_channels, *stem.kernel_size))
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")


def _prepare(
    model: nn.Module, layers: dict[str, str], input_size: int | None, record: InputFormat | None = None
) -> nn.Module:
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    model.named_layers = layers | further_layers(model, layers)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    model.feature_layout = feature_layout  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    if record is not None:
        model.input_format = record  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    if input_size is not None:
        model.register_forward_pre_hook(Resize(input_size, record.interpolation if record is not None else "bilinear"))
    return model
