"""Which arrays a store needs for the summaries that a student's terms ask for, and how large they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from nst.distiller import Request
from nst.losses import Shape


@dataclass(frozen=True)
class Array:
    """One tensor of one request's summary, as a store holds it: `[views, images, *shape]`."""

    request: str  # key of the request
    tensor: str  # its name in the summary
    name: str  # of the array: equal names hold equal values, whichever loss asks
    shape: Shape  # for one image in one view


def arrays(request: Request, path: str, teacher_shape: Shape) -> list[Array]:
    """The arrays behind a request.

    Args:
        path: the tap as a module path of the teacher, so that different roles of one layer share.
        teacher_shape: of one image's feature at the tap.
    """
    plan = request.loss.plan(request.student_shape, teacher_shape)
    size = "x".join(str(side) for side in request.student_shape[1:])
    parts = [path.replace(":", "_"), request.loss.summary_key or "", plan.form.replace(" ", "-"), size]
    stem = ".".join(part for part in parts if part)
    return [Array(request.key, tensor, f"{stem}.{tensor}", shape) for tensor, shape in plan.summary.items()]


def kept_live(requests: Sequence[Request], shapes: Mapping[str, Shape], allow_large: bool) -> dict[str, str]:
    """Requests that a store does not serve, by key, and why.

    Args:
        shapes: of one image's feature, by tap.
        allow_large: store summaries that are as large as the feature itself, too.
    """
    reasons: dict[str, str] = {}
    for request in requests:
        plan = request.loss.plan(request.student_shape, shapes[request.tap])
        values = sum(prod(shape) for shape in plan.summary.values())
        feature = prod((shapes[request.tap][0], *request.student_shape[1:]))
        if request.loss.summary_key is None:
            reasons[request.key] = "its loss does not say what its summary depends on (summary_key)"
        elif values >= feature and not request.loss.on_logits and not allow_large:
            reasons[request.key] = (
                f"its summary is as large as the feature, {values:,} values for each image and view; "
                "knowledge.allow_large=true stores it all the same"
            )
    return reasons


def readable_bytes(size: float) -> str:
    """In decimal units: 3.4 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
