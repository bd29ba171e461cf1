"""The map of logits: the classifier of a network at each position of its last map.

For a network that ends in global average pooling and a linear classifier, W F(x) + b at each position x is a map
`[B, classes, H, W]` whose mean is the logits. It is a layer like others, "logit_map"; "cam", the class activation maps (Zhou et al.,
2016), is the same without b. The gradient reaches the map before the pooling and the classifier. A dropout between pooling and classifier
is left out, so in training the mean is the logits only without one.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nst.models.layout import qualified

LOGIT_MAPS = {"logit_map": True, "cam": False}
"""Names of the layers, and whether they include the bias."""
TOLERANCE = 1e-3
"""Of the largest value: what the mean of the map may differ by, since sums run in another order."""
_NONE = (
    "the network does not end in global average pooling and a linear classifier, so it has no map of logits; take another "
    "layer, or a loss on the logits"
)
_POOLS = ("SelectAdaptivePool2d", "FastAdaptiveAvgPool")  # timm's, besides nn.AdaptiveAvgPool2d
_BEFORE_POOLING = {  # the module whose output is pooled, in families where the pooling is none; it is followed by a ReLU in DenseNet
    "densenet.DenseNet": "features",
    "mlp_mixer.MlpMixer": "norm",
    "twins.Twins": "norm",
}


class LogitMap(nn.Module):
    """The classifier at each position of a map; it has no parameters of its own."""

    output_fmt = "NCHW"  # for `nst.models.layout`

    def __init__(self, classifier: nn.Module, bias: bool, relu: bool = False) -> None:
        super().__init__()
        self.classifier = (classifier,)  # in a tuple: a submodule would own the weights twice
        self.bias, self.relu = bias, relu

    def forward(self, feature: Tensor) -> Tensor:
        """What comes before the pooling → `[B, classes, H, W]`. Raises ValueError as `positions`."""
        classifier: Any = self.classifier[0]  # its parameters are plain tensors where a trial calls the network
        weight = classifier.weight.flatten(1)  # [classes, C], of a linear layer or a 1×1 convolution
        return F.conv2d(self.positions(feature), weight[:, :, None, None], classifier.bias if self.bias else None)

    def positions(self, feature: Tensor) -> Tensor:
        """`[B, C, H, W]`, `[B, H, W, C]` or tokens `[B, N, C]` of a square → `[B, C, H, W]`, whose mean the classifier gets.

        Raises:
            ValueError: the classifier takes another number of channels.
        """
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


class _Feed:
    """Hook before the pooling, or after the last layer: computes the map while something listens to it."""

    def __init__(self, logit_map: LogitMap) -> None:
        self.logit_map = logit_map

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], *output: Tensor) -> None:
        if self.logit_map._forward_hooks:
            self.logit_map(output[0] if output else inputs[0])


def add_logit_map(model: nn.Module, layer: str) -> str:
    """The module path of the layer "logit_map" or "cam"; the module is added below the classifier the first time.

    Raises:
        ValueError: the network has no linear classifier, or nothing is known of what comes before its pooling.
    """
    name, classifier = _classifier(model)
    path = f"{name}.{layer}"
    if layer in dict(classifier.named_children()):
        return path
    modules = dict(model.named_modules())
    pools = [
        module
        for module in modules.values()
        if type(module).__name__ in _POOLS
        or (isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)))
    ]
    last: str = getattr(model, "named_layers", {}).get("last", "")
    body = modules.get(_BEFORE_POOLING.get(qualified(model), last.removesuffix(":input")) or "nothing")
    logit_map = LogitMap(classifier, LOGIT_MAPS[layer], relu=not pools and qualified(model) == "densenet.DenseNet")
    if pools:
        pools[-1].register_forward_pre_hook(_Feed(logit_map))
    elif body is not None:
        body.register_forward_hook(_Feed(logit_map))
    else:
        raise ValueError(f"layer '{layer}' of {type(model).__name__}: {_NONE}")
    classifier.add_module(layer, logit_map)
    return path


@torch.no_grad()
def check_logit_map(model: nn.Module, layer: str, image_shape: tuple[int, int, int]) -> None:
    """Check on one image of noise that the classifier gets the mean of the map and gives the logits.

    Raises:
        ValueError: it does not: the network ends in something else.
    """
    _, classifier = _classifier(model)
    logit_map = model.get_submodule(add_logit_map(model, layer))
    assert isinstance(logit_map, LogitMap)
    maps: list[Tensor] = []
    given: list[Any] = []
    parameter, training = next(model.parameters()), model.training
    noise = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0))
    handles = [
        logit_map.register_forward_hook(lambda _module, inputs, _output: maps.append(logit_map.positions(inputs[0]))),
        classifier.register_forward_hook(lambda _module, inputs, output: given.extend([inputs[0], output])),
    ]
    try:
        logits = model.eval()(noise.to(parameter))
    except ValueError as error:
        raise ValueError(f"layer '{layer}' of {type(model).__name__}: {error}") from error
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    pairs = [] if not maps or len(given) != 2 else [(maps[-1].mean(dim=(2, 3)), given[0]), (logits, given[1])]
    if not pairs or not all(
        a.numel() == b.numel() and (a.flatten() - b.flatten()).abs().max() <= TOLERANCE * b.abs().max()
        for a, b in pairs
    ):
        raise ValueError(f"layer '{layer}' of {type(model).__name__}: {_NONE}")


def _classifier(model: nn.Module) -> tuple[str, nn.Module]:
    """The last linear layer, by timm's word where it has one. Raises ValueError where there is none."""
    named = model.get_classifier() if hasattr(model, "get_classifier") else None  # pyright: ignore[reportCallIssue]
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if (module is named if isinstance(named, nn.Linear | nn.Conv2d) else isinstance(module, nn.Linear))
    ]
    if not linear:
        raise ValueError(
            f"{type(model).__name__} has no linear classifier, and so no map of logits; take another layer"
        )
    return linear[-1]
