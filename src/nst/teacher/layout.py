"""The arrays of a teacher cache for the targets that a student's terms need, and their sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from nst.distiller import TargetSpec
from nst.losses import Shape, TransferLoss


@dataclass(frozen=True)
class Array:
    """One tensor of one spec's target, as a cache holds it: `[views, images, *shape]`."""

    spec: str  # key of the spec
    tensor: str  # its name in the target
    name: str  # of the array: arrays of one name have the same values, whichever loss needs them
    shape: Shape  # for one image in one view


def arrays(spec: TargetSpec, path: str, teacher_shape: Shape) -> list[Array]:
    """The arrays behind a spec.

    Args:
        path: the layer as a module path of the teacher, so that different roles of one layer share an array.
        teacher_shape: of one image's feature at the layer.
    """
    loss_spec = spec.loss.spec(spec.student_shape, teacher_shape)
    size = "x".join(str(side) for side in spec.student_shape[1:])
    parts = [path.replace(":", "_"), spec.loss.target_key or "", loss_spec.implementation.replace(" ", "-"), size]
    stem = ".".join(part for part in parts if part)
    return [Array(spec.key, tensor, f"{stem}.{tensor}", shape) for tensor, shape in loss_spec.target.items()]


def large(target_specs: Sequence[TargetSpec], shapes: Mapping[str, Shape]) -> list[TargetSpec]:
    """The target_specs whose target has as many values as the feature itself, or more (FitNet, exact Gaussian); logits are small.

    Args:
        shapes: of one image's feature, by layer.
    """
    return [r for r in target_specs if not r.loss.on_logits and _values(r, shapes) >= _feature_values(r, shapes)]


def kept_live(target_specs: Sequence[TargetSpec], shapes: Mapping[str, Shape], allow_large: bool) -> dict[str, str]:
    """Requests that are not cached, by key, and why.

    Args:
        shapes: of one image's feature, by layer.
        allow_large: cache targets that are as large as the feature itself, too.
    """
    too_large = {} if allow_large else {r.key: _values(r, shapes) for r in large(target_specs, shapes)}
    reasons: dict[str, str] = {}
    for spec in target_specs:
        if not _names_its_target(spec.loss):
            reasons[spec.key] = "its loss does not say what its target depends on (target_key)"
        elif spec.key in too_large:
            reasons[spec.key] = (
                f"its target is as large as the feature, {too_large[spec.key]:,} values for each image and view; "
                "cache.large=true caches it all the same"
            )
    return reasons


def _names_its_target(loss: TransferLoss) -> bool:
    """Whether the loss has a `target_key`: an inherited one does not count where a subclass has a `target` of its own."""
    for level in type(loss).__mro__:
        if "target_key" in vars(level):
            return loss.target_key is not None
        if "target" in vars(level):
            return False
    return False


def _values(spec: TargetSpec, shapes: Mapping[str, Shape]) -> int:
    """Values of one image's target."""
    return sum(prod(shape) for shape in spec.loss.spec(spec.student_shape, shapes[spec.layer]).target.values())


def _feature_values(spec: TargetSpec, shapes: Mapping[str, Shape]) -> int:
    """Values of one image's feature, at the student's size."""
    return prod((shapes[spec.layer][0], *spec.student_shape[1:]))


def readable_bytes(size: float) -> str:
    """In decimal units: 3.4 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
