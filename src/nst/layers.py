"""What a network's layers are called and yield, and which of two networks' layers can be compared as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nst.losses import Shape
from nst.taps import resolve


@dataclass(frozen=True)
class Layer:
    """One module of a network, in the order in which modules finish."""

    name: str  # usable as a tap
    kind: str  # class
    shape: Shape  # of one image's output
    roles: tuple[str, ...]  # names in `model.taps` for this place
    intact: bool  # False: a later operation writes into the output, so a tap here reads something else


@torch.no_grad()
def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The modules that yield one tensor for images of `image_shape` `(C, H, W)`; the last call of each counts."""
    seen: dict[str, tuple[Tensor, int]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.pop(name, None)
                seen[name] = (output, output._version)

        return hook

    modules, training = dict(model.named_modules()), model.training
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items() if name]
    try:
        model.eval()(torch.zeros(1, *image_shape))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    named: dict[str, list[str]] = {}
    for role in getattr(model, "taps", {}):
        named.setdefault(resolve(model, role), []).append(role)
    return [
        Layer(name, type(modules[name]).__name__, tuple(output.shape[1:]), tuple(named.get(name, ())),
              output._version == version)
        for name, (output, version) in seen.items()
    ]  # fmt: skip


def matching(teacher: list[Layer], student: list[Layer]) -> list[tuple[Layer, Layer]]:
    """For each map size that both have, the last layer of either with it, large maps first.

    Only maps `[C, H, W]` of more than one position count, and only layers whose output stays as it is.
    """
    ends_t, ends_s = _ends(teacher), _ends(student)
    sizes = sorted(set(ends_t) & set(ends_s), key=lambda size: -size[0] * size[1])
    return [(ends_t[size], ends_s[size]) for size in sizes]


def _ends(found: list[Layer]) -> dict[tuple[int, ...], Layer]:
    maps = [layer for layer in found if len(layer.shape) == 3 and layer.intact]
    return {layer.shape[1:]: layer for layer in maps if layer.shape[1] * layer.shape[2] > 1}


def describe(who: str, name: str, found: list[Layer]) -> str:
    """A table: a line a layer."""
    rows = [("layer", "module", "output", "also called")]
    for layer in found:
        note = ", ".join(layer.roles) + ("" if layer.intact else "overwritten by what follows: do not tap")
        rows.append((layer.name, layer.kind, shown(layer.shape), note))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]).rstrip() for row in rows]
    return "\n".join([f"{who}: {name}", *lines])


def shown(shape: Shape) -> str:
    """`64×8×8`."""
    return "×".join(str(n) for n in shape)


def tap_name(layer: Layer) -> str:
    """The shortest way to name a layer: its role, if it has one."""
    return layer.roles[0] if layer.roles else layer.name


def pairs_text(pairs: list[tuple[Layer, Layer]], term: str | None) -> str:
    """The pairs, and the override that uses the one with the smallest maps."""
    if not pairs:
        return "no two layers have maps of one size; any two can be paired, the teacher's map is then resized"
    lines = ["teacher and student layers with maps of one size:"]
    for teacher, student in pairs:
        sides = [f"{tap_name(side)} ({shown(side.shape)})" for side in (teacher, student)]
        lines.append(f"  {sides[0]} → {sides[1]}")
    if term is not None:
        teacher, student = pairs[-1]
        lines.append(
            f"use the last: 'loss.{term}.taps=[{{teacher: {tap_name(teacher)}, student: {tap_name(student)}}}]'"
        )
    return "\n".join(lines)
