"""Layers: their names, the pairs of them that a loss compares, and the hooks that read their features.

A layer is `"module.name"` (that module's output, of the last call in a forward pass), `"module.name:input"` (its first
input), or a name in the model's `named_layers`. A model's `feature_layout` says how outputs become maps `[B, C, H, W]`.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nst.models.layout import LOGIT_MAPS, Convert, add_logit_map, check_logit_map

LOGITS = "logits"  # the layer that is the model's own output
STAGES = ("stages", "stages_pre_relu", "stages_out")  # all stages that both networks have

LAYER_NAMES = ("last", "stages", "last_out", "stages_out", "stage2_out", "pooled")
"""Names that the shipped losses use for their layers."""


def resolve(model: nn.Module, layer: str) -> str:
    """The module path behind a layer: a name in `model.named_layers`, a module's own name, or a map of logits, which is added.

    Raises ValueError, with the nearest names, if the model has none of them.
    """
    named: dict[str, str] = getattr(model, "named_layers", {})
    path = named.get(layer, layer)
    modules = dict(model.named_modules())
    name = path.removesuffix(":input")
    if path == LOGITS or (name and name in modules):
        return path
    if layer in LOGIT_MAPS:
        return add_logit_map(model, layer)
    known = [*named, *filter(None, modules)]
    nearest = difflib.get_close_matches(layer, known, n=4, cutoff=0.4) or known[:8]
    raise ValueError(f"unknown layer '{layer}' in {type(model).__name__}; nearest: {', '.join(nearest)} (`nst layers`)")


class LayerHooks:
    """Records the features at layers during a forward pass.

    Attach before `torch.compile`: hooks added later never fire in a compiled model. Deep copies of the model record here, too.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], versions: bool = False) -> None:
        """Attach to `model`. Raises ValueError for a name that it does not have.

        Args:
            layers: names of layers or modules; see the module's docstring. `"logits"` needs no hook and is ignored here.
            versions: also record the version of each feature, which in-place operations increment.
        """
        self.features: dict[str, Tensor] = {}
        self.versions: dict[str, int] | None = {} if versions else None
        self._images: tuple[int, ...] = ()  # the shape of the input images
        self._handles: list[RemovableHandle] = []
        layout = getattr(model, "feature_layout", None)
        if layout is not None:

            def note_images(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                self._images = tuple(inputs[0].shape)

            self._handles.append(model.register_forward_pre_hook(note_images))
        for layer in dict.fromkeys(layers):
            if (path := resolve(model, layer)) == LOGITS:
                continue
            convert = None if layout is None else layout(model, path)
            name = path.removesuffix(":input")
            module = model.get_submodule(name)
            register = module.register_forward_hook if name == path else module.register_forward_pre_hook
            self._handles.append(register(self._keep(layer, convert)))

    def _keep(self, layer: str, convert: Convert | None) -> Any:
        """A hook before a module, which keeps its first input, or after it, which keeps its output."""

        def hook(module: nn.Module, inputs: Any, *output: Any) -> None:
            feature = output[0] if output else inputs[0]
            self.features[layer] = feature if convert is None else convert(feature, self._images)
            if self.versions is not None and isinstance(kept := self.features[layer], Tensor):
                self.versions[layer] = kept._version  # of a view: that of its base

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


@torch.no_grad()
def feature_shapes(
    model: nn.Module, layers: Iterable[str], image_shape: tuple[int, int, int], trained: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shape of one image's feature at each layer, by a forward pass of one blank image `(C, H, W)`.

    Args:
        trained: the network is to be trained, so an in-place dropout counts as overwriting, too.

    Raises:
        ValueError: a layer that is unknown, not reached, no `[B, ...]` tensor or overwritten later in the forward pass; images
            that the model does not take; a map of logits whose mean is not the logits.
    """
    layers, network, training = list(layers), type(model).__name__, model.training
    recorder = LayerHooks(model, layers, versions=True)
    parameter = next(model.parameters())
    try:
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.train(trained)
        with torch.random.fork_rng(devices=[]):
            logits = model(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    except (AssertionError, RuntimeError) as error:  # a network for other image sizes
        hint = "; input_size=224, for instance, resizes them inside it" if hasattr(model, "feature_layout") else ""
        raise ValueError(f"{network} cannot take images of {image_shape}: {error}{hint}") from error
    finally:
        model.train(training)
        recorder.remove()
    features, versions = recorder.read() | {LOGITS: logits}, recorder.versions or {}
    for layer in layers:
        if resolve(model, layer).endswith(f".{layer}") and layer in LOGIT_MAPS:
            check_logit_map(model, layer, image_shape)
        if not isinstance(features.get(layer), Tensor):
            raise ValueError(f"layer '{layer}' of {network} yields no tensor in a forward pass")
        if layer in versions and features[layer]._version != versions[layer]:
            raise ValueError(f"layer '{layer}' of {network} is overwritten by what follows, such as an in-place ReLU")
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
    """The pairs that the setting `key` names: by a layer of both networks, or a list of `{teacher, student, weight}`.

    Without `models`, student and teacher, `stages` is one pair. Raises ValueError for no pair, one of another form, stages on
    one side only, or none that both networks have.
    """
    if isinstance(layers, str):
        layers = [{"teacher": layers, "student": layers}]
    if not isinstance(layers, list | tuple) or not layers:
        raise ValueError(f"{key}={layers!r}: a layer such as last, pooled or stages, or a list of pairs is needed")
    pairs: list[Pair] = []
    for node in layers:
        if not isinstance(node, Mapping) or not {"teacher", "student"} <= set(node) <= {"teacher", "student", "weight"}:
            raise ValueError(f"{key}: {node!r}: entries like {{teacher: last, student: last, weight: 1.0}} are needed")
        pair = Pair(**node)
        sides = (pair.student, pair.teacher)
        if others := [name for name in sides if not isinstance(name, str)]:
            raise ValueError(f"{key}: YAML reads {others[0]!r} there; write the layer in quotes, such as '0.10'")
        if not isinstance(pair.weight, int | float) or not 0 < pair.weight < math.inf:
            raise ValueError(f"{key}: weight={pair.weight!r}: a positive number is needed")
        if not {*sides} & {*STAGES}:
            pairs.append(pair)
            continue
        names = [side.replace("stages", "stage{}", 1) for side in sides]
        sets = [getattr(model, "named_layers", {}) for model in models]
        count = range(1, 100 if models else 2)
        stages = [k for k in count if all(name.format(k) in known for name, known in zip(names, sets, strict=False))]
        if not stages or not {*sides} <= {*STAGES}:
            raise ValueError(f"{key}: the networks have no {pair.teacher} (teacher) and {pair.student} in common")
        pairs += [Pair(names[1].format(k), names[0].format(k), pair.weight) for k in stages]
    return tuple(pairs)


def assign_layers(layers: Any, losses: Mapping[str, dict[str, Any]], on_features: Collection[str]) -> None:
    """Write a run's key `layers` into the nodes of its losses, for those without layers of their own.

    `layers` are pairs, a layer that both networks have, or a mapping from the names that losses use to either; `on_features`
    the losses that compare layers. Raises ValueError for a name that no loss uses, and for layers that are no pairs.
    """
    named = layers if isinstance(layers, Mapping) else {"last": layers}
    used = {*LAYER_NAMES, *(node["layers"] for node in losses.values() if isinstance(node.get("layers"), str))}
    if unknown := [str(name) for name in named if name not in used]:
        nearest = difflib.get_close_matches(unknown[0], used, n=1) or sorted(used)
        raise ValueError(f"layers.{unknown[0]}: no loss uses this name; did you mean {', '.join(nearest)}?")
    for name, node in losses.items():
        # A run whose layers are the default keeps its name: nothing is added.
        if "layers" not in node and named.get("last", "last") != "last" and name in on_features:
            node["layers"] = None
        if "layers" in node:
            own = "last" if node["layers"] is None else node["layers"]
            node["layers"] = named.get(own, own) if isinstance(own, str) else own
            pairs_of(f"loss.{name}.layers", node["layers"])
