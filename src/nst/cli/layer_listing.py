"""The layers of a network, their output shapes, and the pairs of two networks' layers with maps of the same size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nst.layers import resolve, shown
from nst.losses import Shape


@dataclass(frozen=True)
class Layer:
    """One module of a network, in the order in which modules finish."""

    name: str  # usable as a layer; "…:input" for a role that is the input of a module
    kind: str  # class
    shape: Shape  # of one image's output
    roles: tuple[str, ...]  # names in `model.named_layers` for this place
    intact: bool  # False: a later operation writes into the output, so a layer here reads something else


@torch.no_grad()
def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The modules that output one tensor for images of `image_shape` `(C, H, W)`; if called more than once, the last call.

    Shapes are those of a layer. Layers without maps (such as separate windows of the images) are left out.
    """
    named: dict[str, list[str]] = {}
    for role in getattr(model, "named_layers", {}):
        named.setdefault(resolve(model, role), []).append(role)
    recorded: dict[str, tuple[Tensor, int]] = {}
    layout = getattr(model, "feature_layout", None)
    images: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        images.append(tuple(inputs[0].shape))

    def keep(path: str) -> Callable[[Any], None]:
        convert = None if layout is None else layout(model, path)

        def keep_value(value: Any) -> None:
            try:
                value = value if convert is None else convert(value, images[-1])
            except ValueError:
                return
            if isinstance(value, Tensor):
                recorded.pop(path, None)
                recorded[path] = (value, value._version)

        return keep_value

    modules, training = dict(model.named_modules()), model.training
    handles = [model.register_forward_pre_hook(note)]
    handles += [_on_output(module, keep(name)) for name, module in modules.items() if name]
    for path in named:
        if path.endswith(":input"):
            handles.append(_on_input(modules[path.removesuffix(":input")], keep(path)))
    try:
        model.eval()(torch.zeros(1, *image_shape))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return [
        Layer(
            path,
            type(modules[path.removesuffix(":input")]).__name__,
            tuple(value.shape[1:]),
            tuple(named.get(path, ())),
            value._version == version,
        )
        for path, (value, version) in recorded.items()
    ]


def _on_output(module: nn.Module, keep: Callable[[Any], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda _module, _inputs, output: keep(output))


def _on_input(module: nn.Module, keep: Callable[[Any], None]) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _module, inputs: keep(inputs[0]))


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
        list_all: False: only layers with a role; of a network without roles, the last layer of each map size.
    """
    chosen = (
        all_layers if list_all else [layer for layer in all_layers if layer.roles] or list(_ends(all_layers).values())
    )
    rows = [("layer", "module", "output", "also called")]
    for layer in chosen:
        note = ", ".join(layer.roles) + ("" if layer.intact else "overwritten by what follows: do not layer")
        rows.append((layer.name, layer.kind, shown(layer.shape), note))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows]
    if len(chosen) < len(all_layers):
        lines.append(f"and {len(all_layers) - len(chosen)} more layers: all=true lists them")
    return "\n".join([f"{side}: {name}", *lines])


def layer_name(layer: Layer) -> str:
    """The shortest way to name a layer: its role, if it has one."""
    return layer.roles[0] if layer.roles else layer.name


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
        lines.append(f"use the last: '{key}=[{{teacher: {layer_name(teacher)}, student: {layer_name(student)}}}]'")
    return "\n".join(lines)
