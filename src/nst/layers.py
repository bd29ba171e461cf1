"""Layers: their names, the pairs of them that a loss compares, and the hooks that read their features.

A layer is `"module.name"` (that module's output) or `"module.name:input"` (its first input; if a module is called several
times in one forward pass, the last call counts). A model's `named_layers` attribute names common places: `"last"`, `"stage1"`,
`"pooled"` …; see `nst.models.parts.name_layers`.

A model's own `feature_layout` (see `nst.models.layout`) says how its layers' outputs become maps `[B, C, H, W]`: networks of
timm and torchvision have one. Without it, a feature is what the layer yields.

`"logit_map"` and `"cam"` are layers of every network that ends in global average pooling and a linear classifier; see
`nst.models.logit_map`.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nst.models.logit_map import LOGIT_MAPS, add_logit_map, check_logit_map

LOGITS = "logits"  # the layer that is the model's own output
_SIZE_HINT = "; input_size=224, for instance, resizes the images for this network alone"

LAYER_NAMES = ("last", "stages", "last_out", "stages_out", "stage2_out", "pooled")
"""Names that the shipped losses use for their layers."""

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


@dataclass(frozen=True)
class Pair:
    """A teacher layer and the student layer that is compared with it."""

    teacher: str
    student: str
    weight: float = 1.0


def pairs_of(key: str, layers: Any, models: Sequence[nn.Module] = ()) -> tuple[Pair, ...]:
    """The pairs that a setting names: by a layer of both networks, or a list of `{teacher, student, weight}`.

    `stages`, `stages_pre_relu` and `stages_out` stand for all stages that both networks have so.

    Args:
        key: of the setting, for errors.
        models: student and teacher; without them `stages` is one pair.

    Raises:
        ValueError: no pair, an entry of another form, stages on one side only, or none that both have.
    """
    if isinstance(layers, str):
        layers = [{"teacher": layers, "student": layers}]
    if not isinstance(layers, list | tuple) or not layers:
        raise ValueError(f"{key}={layers!r}: a layer such as last, pooled or stages, or a list of pairs is needed")
    pairs: list[Pair] = []
    for node in layers:
        if not isinstance(node, Mapping) or not {"teacher", "student"} <= set(node) <= {"teacher", "student", "weight"}:
            raise ValueError(f"{key}: {node!r}: entries like {{teacher: last, student: last, weight: 1.0}} are needed")
        pair = Pair(**{"weight": 1.0, **node})
        for name in (pair.teacher, pair.student):
            if not isinstance(name, str):
                raise ValueError(
                    f"{key}: {name!r} is what YAML reads there, no name; write the layer's name in quotes, as nst layers shows it, such as '0.10'"
                )
        if isinstance(pair.weight, bool) or not isinstance(pair.weight, int | float) or not 0 < pair.weight < math.inf:
            raise ValueError(f"{key}: weight={pair.weight!r}: a positive number is needed")
        kinds = [re.fullmatch("stages(_pre_relu|_out|)", side) for side in (pair.student, pair.teacher)]
        if not any(kinds):
            pairs.append(pair)
            continue
        if not all(kinds):
            raise ValueError(
                f"{key}: teacher {pair.teacher}, student {pair.student}: name all stages on both sides, or one layer"
            )
        suffixes = [kind[1] for kind in kinds if kind]
        sides = [(getattr(model, "named_layers", {}), suffix) for model, suffix in zip(models, suffixes, strict=False)]
        stages = [
            k for k in range(1, 100 if models else 2) if all(f"stage{k}{suffix}" in names for names, suffix in sides)
        ]
        if not stages:
            raise ValueError(
                f"{key}: teacher {pair.teacher}, student {pair.student}: the networks have no stages in common; name pairs of layers, "
                "`nst layers` lists them"
            )
        student, teacher = suffixes
        pairs += [Pair(f"stage{k}{teacher}", f"stage{k}{student}", pair.weight) for k in stages]
    return tuple(pairs)


def assign_layers(layers: Any, losses: Mapping[str, dict[str, Any]], on_features: Collection[str]) -> None:
    """Write a run's key `layers` into the nodes of its losses, for those without layers of their own.

    Args:
        layers: a list of pairs, a layer that both networks have, or a mapping from the names that losses use to either.
        losses: nodes by name.
        on_features: the losses that compare layers, even where their node has no key `layers`.

    Raises:
        ValueError: a name that no loss uses; layers of a loss that are no pairs.
    """
    if not layers:
        raise ValueError(f"layers={layers}: a layer such as last, pooled or stages, or at least one pair is needed")
    named = layers if isinstance(layers, Mapping) else {"last": layers}
    used = {*LAYER_NAMES, *(node["layers"] for node in losses.values() if isinstance(node.get("layers"), str))}
    for name in named:
        if name not in used:
            nearest = difflib.get_close_matches(str(name), LAYER_NAMES, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"losses use {', '.join(sorted(used))}"
            raise ValueError(f"layers.{name}: no loss uses this name; {hint}")
    for name, node in losses.items():
        # A run whose layers are the default keeps its name: nothing is added.
        if "layers" not in node and named.get("last", "last") != "last" and name in on_features:
            node["layers"] = None
        if "layers" in node:
            own = "last" if node["layers"] is None else node["layers"]
            node["layers"] = named.get(own, own) if isinstance(own, str) else own
            pairs_of(f"loss.{name}.layers", node["layers"])
