"""The layers of a network, their output shapes, and the pairs of two networks' layers with maps of the same size."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from torch import Tensor, nn

from nst.layers import VersionedHooks, resolve, shown
from nst.losses import Shape


@dataclass(frozen=True)
class Layer:
    """One module of a network, in the order in which modules finish."""

    name: str  # usable as a layer; "…:input" for a name of a module's input
    kind: str  # class
    shape: Shape  # of one image's output
    names: tuple[str, ...]  # in `model.named_layers`
    intact: bool  # False: a later operation writes into the output, so a layer here reads something else


class _Everything(VersionedHooks):
    """Skips what has no maps, such as separate windows of the images."""

    def _keep_output(self, layer: str, convert: Any) -> Any:
        keep = super()._keep_output(layer, convert)

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            with suppress(ValueError):
                keep(module, inputs, output)

        return hook


@torch.no_grad()
def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The modules that output one tensor for images of `image_shape` `(C, H, W)`; if called more than once, the last call.

    Shapes are those of a layer. Layers without maps are left out.
    """
    named: dict[str, list[str]] = {}
    for name in getattr(model, "named_layers", {}):
        named.setdefault(resolve(model, name), []).append(name)
    modules, training = dict(model.named_modules()), model.training
    hooks = _Everything(model, [*filter(None, modules), *(path for path in named if path.endswith(":input"))])
    try:
        model.eval()(torch.zeros(1, *image_shape))
    finally:
        model.train(training)
        hooks.remove()
    return [
        Layer(
            path,
            type(modules[path.removesuffix(":input")]).__name__,
            tuple(feature.shape[1:]),
            tuple(named.get(path, ())),
            feature._version == hooks.versions[path],
        )
        for path, feature in hooks.read().items()
        if isinstance(feature, Tensor)
    ]


def matching(teacher: list[Layer], student: list[Layer]) -> list[tuple[Layer, Layer]]:
    """For each map size that both networks have, the last layer of each, large maps first.

    Only maps `[C, H, W]` of more than one position count, and only layers whose output is not overwritten.
    """
    ends_t, ends_s = _ends(teacher), _ends(student)
    sizes = sorted(set(ends_t) & set(ends_s), key=lambda size: -size[0] * size[1])
    return [(ends_t[size], ends_s[size]) for size in sizes]


def _ends(all_layers: list[Layer]) -> dict[tuple[int, ...], Layer]:
    maps = [
        layer for layer in all_layers if len(layer.shape) == 3 and layer.intact and not layer.name.endswith(":input")
    ]
    return {layer.shape[1:]: layer for layer in maps if layer.shape[1] * layer.shape[2] > 1}


def describe(side: str, name: str, all_layers: list[Layer], list_all: bool = True) -> str:
    """A table: a line a layer.

    Args:
        list_all: False: only named layers; of a network without any, the last layer of each map size.
    """
    chosen = (
        all_layers if list_all else [layer for layer in all_layers if layer.names] or list(_ends(all_layers).values())
    )
    rows = [("layer", "module", "output", "also called")]
    for layer in chosen:
        note = ", ".join(layer.names) + ("" if layer.intact else "overwritten by what follows: cannot be compared")
        rows.append((layer.name, layer.kind, shown(layer.shape), note))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows]
    if len(chosen) < len(all_layers):
        lines.append(f"and {len(all_layers) - len(chosen)} more layers: all=true lists them")
    return "\n".join([f"{side}: {name}", *lines])


def layer_name(layer: Layer) -> str:
    """The shortest way to name a layer: its own, if it has one."""
    return layer.names[0] if layer.names else layer.name


def pairs_text(pairs: list[tuple[Layer, Layer]], key: str | None) -> str:
    """The pairs, and the override that uses the one with the smallest maps.

    Args:
        key: of the layers: `layers`, or a loss's own; None: nothing is named.
    """
    if not pairs:
        return "no two layers have maps of the same size; any two can be paired, the teacher's map is then resized"
    lines = ["teacher and student layers with maps of the same size:"]
    for teacher, student in pairs:
        sides = [f"{layer_name(side)} ({shown(side.shape)})" for side in (teacher, student)]
        lines.append(f"  {sides[0]} → {sides[1]}")
    if key is not None:
        teacher, student = pairs[-1]
        names = [_as_text(layer_name(side)) for side in (teacher, student)]
        lines.append(f"use the last: '{key}=[{{teacher: {names[0]}, student: {names[1]}}}]'")
    return "\n".join(lines)


def _as_text(name: str) -> str:
    """A layer's name in quotes where YAML or Hydra would read it as something else, such as the number 0.10."""
    try:
        hydra = OverridesParser.create().parse_override(f"x=[{name}]").value()
        return name if hydra == yaml.safe_load(f"[{name}]") == [name] else f'"{name}"'
    except (HydraException, yaml.YAMLError):
        return f'"{name}"'
