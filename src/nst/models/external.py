"""Networks of torchvision and timm by name, made fit to be tapped.

Activations are set to work out of place. Additions and activations that such a network does in place inside its own
`forward` stay (`out += identity` after a block's last normalisation, the functional ReLU of GoogLeNet): a layer whose
output they overwrite can't be tapped; tap the input of the layer behind it.
"""

import difflib
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
import torchvision
from torch import nn

# Families of torchvision whose `features` give the last map [B, C, H, W] to the pooling before the classifier.
_FEATURES = ("alexnet", "convnext", "efficientnet", "mobilenet", "squeezenet", "vgg")
_LAST_RELU = ("act3", "act2", "relu")  # of a residual block: timm bottleneck, timm basic, torchvision


def torchvision_model(arch: str, num_classes: int, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
    """A classification network of torchvision.

    Args:
        arch: its name there, such as "resnet50".
        num_classes: number of logits; the classifier is replaced where the weights have another number.
        in_channels: channels of the images.
        pretrained: start from torchvision's default weights for ImageNet (downloaded once).

    Returns:
        The network, images [B, in_channels, H, W] -> logits [B, num_classes], with `taps`: all roles for ResNets,
        "last" where the family has one place for it, nothing otherwise.

    Raises:
        ValueError: no such name, pretrained weights for other than 3 channels, or they cannot be downloaded.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    _check_name("torchvision", arch, names)
    if pretrained and in_channels != 3:
        raise ValueError(f"in_channels={in_channels}: torchvision's pretrained weights are for 3 channels")
    options: dict[str, bool | int] = {}
    if arch in ("googlenet", "inception_v3"):
        options = {"aux_logits": False} if pretrained else {"aux_logits": False, "init_weights": True}
    if not pretrained:
        options["num_classes"] = num_classes
    with _downloading("torchvision", arch, pretrained):
        model: nn.Module = torchvision.models.get_model(arch, weights="DEFAULT" if pretrained else None, **options)
    if pretrained:
        _replace_classifier(model, num_classes)
    if in_channels != 3:
        _replace_stem(model, in_channels)
    taps = _residual_taps(model)
    if not taps and arch.startswith(_FEATURES):
        taps = {"last": "features"}
    return _prepare(model, taps)


def timm_model(arch: str, num_classes: int, in_channels: int = 3, pretrained: bool = False) -> nn.Module:
    """A classification network of timm (an optional extra).

    Args:
        arch: its name there, with or without a tag: "resnet50", "resnet50.a1_in1k".
        num_classes: number of logits.
        in_channels: channels of the images; timm adapts pretrained weights to it.
        pretrained: start from timm's weights (downloaded once).

    Returns:
        The network, images [B, in_channels, H, W] -> logits [B, num_classes], with `taps`: all roles for ResNets,
        nothing otherwise.

    Raises:
        ValueError: timm is not installed, or has no such name, or its weights cannot be downloaded.
    """
    timm = _import_timm()
    if not timm.is_model(arch):
        _check_name("timm", arch, timm.list_models())
    with _downloading("timm", arch, pretrained):
        model = timm.create_model(arch, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)
    return _prepare(model, _residual_taps(model))


@contextmanager
def _downloading(library: str, arch: str, pretrained: bool) -> Iterator[None]:
    """Raises ValueError where weights cannot be had; the libraries raise a dozen kinds of errors for it."""
    try:
        yield
    except Exception as error:
        if not pretrained:
            raise
        raise ValueError(
            f"arch={arch}: {library}'s pretrained weights are not on this machine and could not be downloaded "
            f"({type(error).__name__}: {error}); pretrained=false leaves them out"
        ) from error


def _import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError("the model is one of timm, which is not installed: pip install 'nst[timm]'") from error


def _check_name(library: str, arch: str, names: list[str]) -> None:
    if arch in names:
        return
    near = difflib.get_close_matches(arch, names, n=5, cutoff=0.4)
    hint = f"nearest names: {', '.join(near)}" if near else f"it has {len(names)}, such as {', '.join(names[:3])}"
    raise ValueError(f"arch={arch!r}: {library} has no classification model of that name; {hint}")


def _replace_classifier(model: nn.Module, num_classes: int) -> None:
    """Put a fresh last layer (linear, or SqueezeNet's 1x1 convolution) in, if the number of classes differs."""
    name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    if isinstance(last, nn.Linear):
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


def _residual_taps(model: nn.Module) -> dict[str, str]:
    """Roles of a network with stages `layer1`, `layer2`, ... whose blocks end in a ReLU of a known name; else {}."""
    taps: dict[str, str] = {}
    stages = [name for name, _ in model.named_children() if re.fullmatch("layer[1-9]", name)]
    if len(stages) < 3:
        return {}
    for k, name in enumerate(stages, start=1):
        stage = model.get_submodule(name)
        if not isinstance(stage, nn.Sequential) or len(stage) == 0:
            return {}
        block = stage[-1]
        relu = next((r for r in _LAST_RELU if isinstance(getattr(block, r, None), nn.Module)), None)
        if relu is None:
            return {}
        taps[f"stage{k}"] = name
        taps[f"stage{k}_pre_relu"] = f"{name}.{len(stage) - 1}.{relu}:input"
    taps["last"] = taps[f"stage{len(stages)}"]
    taps["last_pre_relu"] = taps[f"stage{len(stages)}_pre_relu"]
    return taps


def _prepare(model: nn.Module, taps: dict[str, str]) -> nn.Module:
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    model.taps = taps  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return model
