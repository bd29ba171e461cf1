"""The arrays of a teacher cache for the summaries that a student's terms need, and their sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from nst.distiller import Request
from nst.losses import Shape, TransferLoss


@dataclass(frozen=True)
class Array:
    """One tensor of one request's summary, as a cache holds it: `[views, images, *shape]`."""

    request: str  # key of the request
    tensor: str  # its name in the summary
    name: str  # of the array: arrays of one name have the same values, whichever loss needs them
    shape: Shape  # for one image in one view


def arrays(request: Request, path: str, teacher_shape: Shape) -> list[Array]:
    """The arrays behind a request.

    Args:
        path: the tap as a module path of the teacher, so that different roles of one layer share an array.
        teacher_shape: of one image's feature at the tap.
    """
    plan = request.loss.plan(request.student_shape, teacher_shape)
    size = "x".join(str(side) for side in request.student_shape[1:])
    parts = [path.replace(":", "_"), request.loss.summary_key or "", plan.form.replace(" ", "-"), size]
    stem = ".".join(part for part in parts if part)
    return [Array(request.key, tensor, f"{stem}.{tensor}", shape) for tensor, shape in plan.summary.items()]


def large(requests: Sequence[Request], shapes: Mapping[str, Shape]) -> list[Request]:
    """The requests whose summary has as many values as the feature itself, or more (FitNet, exact Gaussian); logits are small.

    Args:
        shapes: of one image's feature, by tap.
    """
    return [r for r in requests if not r.loss.on_logits and _values(r, shapes) >= _feature_values(r, shapes)]


def kept_live(requests: Sequence[Request], shapes: Mapping[str, Shape], allow_large: bool) -> dict[str, str]:
    """Requests that are not cached, by key, and why.

    Args:
        shapes: of one image's feature, by tap.
        allow_large: cache summaries that are as large as the feature itself, too.
    """
    too_large = {} if allow_large else {r.key: _values(r, shapes) for r in large(requests, shapes)}
    reasons: dict[str, str] = {}
    for request in requests:
        if not _names_its_summary(request.loss):
            reasons[request.key] = "its loss does not say what its summary depends on (summary_key)"
        elif request.key in too_large:
            reasons[request.key] = (
                f"its summary is as large as the feature, {too_large[request.key]:,} values for each image and view; "
                "knowledge.allow_large=true caches it all the same"
            )
    return reasons


def _names_its_summary(loss: TransferLoss) -> bool:
    """Whether the loss has a `summary_key`: an inherited one does not count where a subclass has a `summarize` of its own."""
    for level in type(loss).__mro__:
        if "summary_key" in vars(level):
            return loss.summary_key is not None
        if "summarize" in vars(level):
            return False
    return False


def _values(request: Request, shapes: Mapping[str, Shape]) -> int:
    """Values of one image's summary."""
    return sum(prod(shape) for shape in request.loss.plan(request.student_shape, shapes[request.tap]).summary.values())


def _feature_values(request: Request, shapes: Mapping[str, Shape]) -> int:
    """Values of one image's feature, at the student's size."""
    return prod((shapes[request.tap][0], *request.student_shape[1:]))


def readable_bytes(size: float) -> str:
    """In decimal units: 3.4 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
