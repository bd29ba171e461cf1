"""LayerHooks: layer names → features.

A layer is `"module.name"` (that module's output) or `"module.name:input"` (its first input; if a module is called several
times in one forward pass, the last call counts). A model's `named_layers` attribute names common places: `"last"`, `"stage1"`,
`"pooled"` …; see `nst.models.named_layers.name_layers`.

A model's own `feature_layout` (see `nst.models.layout`) says how its layers' outputs become maps `[B, C, H, W]`: networks of
timm and torchvision have one. Without it, a feature is what the layer yields.

`"logit_map"` and `"cam"` are layers of every network that ends in global average pooling and a linear classifier; see
`nst.models.logit_map`.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nst.models.logit_map import LOGIT_MAPS, add_logit_map, check_logit_map

LOGITS = "logits"  # the layer that is the model's own output
_SIZE_HINT = "; input_size=224, for instance, resizes the images for this network alone"

Convert = Callable[[Any, tuple[int, ...]], Any]  # a layer's output, the images' shape → the feature


def resolve(model: nn.Module, layer: str) -> str:
    """The module path behind a layer: a name in `model.named_layers`, a module's own name, or a map of logits, which is added.

    Raises:
        ValueError: if the model has none of them; names the nearest ones.
    """
    named: dict[str, str] = getattr(model, "named_layers", {})
    path = named.get(layer, layer)
    modules = dict(model.named_modules())
    name = path.removesuffix(":input")
    if path == LOGITS or (name and name in modules):
        return path
    if layer in LOGIT_MAPS:
        return add_logit_map(model, layer)
    nearest = difflib.get_close_matches(layer, [*named, *(m for m in modules if m)], n=4, cutoff=0.4)
    raise ValueError(
        f"unknown layer '{layer}' in {type(model).__name__}: "
        f"{'nearest names: ' + ', '.join(nearest) + '; ' if nearest else ''}"
        f"named layers: {', '.join(named) or 'none'}; any module name works too, `nst layers` lists them"
    )


class LayerHooks:
    """Records the features at layers during a forward pass.

    Attach before `torch.compile`: hooks added later never fire in a compiled model.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        """Attach to `model`.

        Args:
            layers: names of layers or modules; see the module's docstring. `"logits"` needs no hook and is ignored here.

        Raises:
            ValueError: for a name the model does not have.
        """
        self.features: dict[str, Tensor] = {}
        self._images: tuple[int, ...] = ()  # the shape of the input images
        self._handles: list[RemovableHandle] = []
        layout = getattr(model, "feature_layout", None)
        if layout is not None:
            self._handles.append(model.register_forward_pre_hook(self._note_images))
        for layer in dict.fromkeys(layers):
            path = resolve(model, layer)
            if path == LOGITS:
                continue
            convert = None if layout is None else layout(model, path)
            if path.endswith(":input"):
                hook = self._keep_input(layer, convert)
                handle = model.get_submodule(path.removesuffix(":input")).register_forward_pre_hook(hook)
            else:
                handle = model.get_submodule(path).register_forward_hook(self._keep_output(layer, convert))
            self._handles.append(handle)

    def _note_images(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._images = tuple(inputs[0].shape)

    def _keep_output(self, layer: str, convert: Convert | None) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.features[layer] = output if convert is None else convert(output, self._images)

        return hook

    def _keep_input(self, layer: str, convert: Convert | None) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.features[layer] = inputs[0] if convert is None else convert(inputs[0], self._images)

        return hook

    def read(self) -> dict[str, Tensor]:
        """The features of the last forward pass; they are cleared here."""
        features, self.features = self.features, {}
        return features

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class VersionedHooks(LayerHooks):
    """Also records the version of each feature, which in-place operations increment."""

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.versions: dict[str, int] = {}
        super().__init__(model, layers)

    def _keep_output(self, layer: str, convert: Convert | None) -> Any:
        keep = super()._keep_output(layer, convert)

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            keep(module, inputs, output)
            if isinstance(feature := self.features[layer], Tensor):  # a view has the version of its base
                self.versions[layer] = feature._version

        return hook

    def _keep_input(self, layer: str, convert: Convert | None) -> Any:
        keep = self._keep_output(layer, convert)
        return lambda module, inputs: keep(module, None, inputs[0])


@torch.no_grad()
def feature_shapes(
    model: nn.Module, layers: Iterable[str], image_shape: tuple[int, int, int], trained: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shape of one image's feature at each layer, by a forward pass of one blank image.

    Args:
        image_shape: `(C, H, W)`.
        trained: the network is to be trained, so an in-place dropout counts as overwriting, too.

    Raises:
        ValueError: for an unknown layer, one that is not reached or yields no `[B, ...]` tensor, or one whose feature
            is overwritten later in the forward pass; for images that the model does not take; for a map of logits whose mean
            is not the logits.
    """
    layers = list(layers)
    recorder, training = VersionedHooks(model, layers), model.training
    parameter = next(model.parameters())
    try:
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.train(trained)
        with torch.random.fork_rng(devices=[]):
            logits = model(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    except (AssertionError, RuntimeError) as error:  # a network for other image sizes
        hint = _SIZE_HINT if hasattr(model, "feature_layout") else ""
        raise ValueError(f"{type(model).__name__} cannot take images of {image_shape}: {error}{hint}") from error
    finally:
        model.train(training)
        recorder.remove()
    features = recorder.read() | {LOGITS: logits}
    for layer in layers:
        if resolve(model, layer).endswith(f".{layer}") and layer in LOGIT_MAPS:
            check_logit_map(model, layer, image_shape)
        if not isinstance(features.get(layer), Tensor):
            raise ValueError(f"layer '{layer}' of {type(model).__name__} yields no tensor in a forward pass")
        if layer in recorder.versions and features[layer]._version != recorder.versions[layer]:
            raise ValueError(
                f"layer '{layer}' of {type(model).__name__} is overwritten by what follows, such as an in-place ReLU or dropout: "
                "name the layer that overwrites it, or make that one inplace=False"
            )
    return {layer: tuple(features[layer].shape[1:]) for layer in layers}


def shown(shape: tuple[int, ...]) -> str:
    """A shape as text: `64×8×8`."""
    return "×".join(str(n) for n in shape)
