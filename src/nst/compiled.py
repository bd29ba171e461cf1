"""The compiled step: made from the first full batch, and used only if its loss and gradients agree with eager code."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nst.data.batch import Batch
from nst.dist import autocast
from nst.distiller import seed_draws
from nst.teacher import Teacher

if TYPE_CHECKING:
    from nst.loop import Forward, Training

log = logging.getLogger(__name__)

Result = tuple[Tensor, list[Tensor]]  # loss and gradients
TOLERANCE = {
    "fp32": (1e-3, 2e-2),
    "bf16": (3e-2, 2e-1),
    "fp16": (1e-2, 1e-1),
}  # relative: of the loss, of the gradient's norm


def compile_step(training: "Training", teacher: Teacher, batch: Batch) -> None:
    """Compile the forward pass and the teacher for batches of this size, and use both if loss and gradients agree with eager code.

    Wrong gradients of compiled code have been seen (torch 2.15, bf16). Weights, statistics and gradients stay as they were.
    """
    distiller, precision, dist = training.distiller, training.settings.precision, training.dist
    rows = training.parts(len(batch.labels))[0]

    def attempt(forward: "Forward") -> Result:
        """One forward and backward pass."""
        before = [buffer.clone() for buffer in distiller.buffers()]
        seed_draws(0)
        try:
            taught = {key: {n: v[rows] for n, v in target.items()} for key, target in teacher(batch).items()}
            inputs = {name: value[rows] if value.ndim else value for name, value in training.context(batch).items()}
            with autocast(dist.device, precision):
                _, values = forward(batch.images[rows], batch.labels[rows], taught, inputs)
            loss = distiller.total(values)
            (loss if training.scaler is None else training.scaler.scale(loss)).backward()
            return loss.detach(), [p.grad.clone() for p in distiller.parameters() if p.grad is not None]
        finally:
            for p in distiller.parameters():
                p.grad = None
            for buffer, old in zip(distiller.buffers(), before, strict=True):
                buffer.copy_(old)

    eager = attempt(training.forward)
    teacher.compile(len(batch.labels))
    # CUDA graphs need one backward pass a step, in one process. Dropout must draw as in eager code, else the two cannot be compared.
    graphs = dist.device.type == "cuda" and training.settings.accumulate == 1 and dist.world == 1
    options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": graphs}
    compiled: Any = torch.compile(training.forward, dynamic=False, options=options)

    def forward(*inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs)

    try:
        reason = disagreement(attempt(forward), eager, precision)
    except Exception as error:  # no C++ compiler, an operator that does not compile, …: all end in eager code
        reason = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
    training.compiles = dist.max(int(reason is not None)) == [0]
    if training.compiles:
        training.compiled = (rows.stop - rows.start, forward)
    else:
        teacher.compile(0)
        log.warning("the step is not compiled: %s", reason or "it fails on another rank")


def disagreement(compiled: Result, eager: Result, precision: str) -> str | None:
    """How loss and gradients of the compiled step differ from those of the eager one; None: by rounding only."""
    (loss, gradients), (eager_loss, eager_gradients) = compiled, eager
    bad = sum(not bool(torch.isfinite(g).all()) for g in gradients)
    if bad and all(bool(torch.isfinite(g).all()) for g in eager_gradients):
        return f"compiled code gives non-finite gradients in {bad} of {len(gradients)} parameters, eager code does not"
    for_loss, for_gradient = TOLERANCE[precision]
    change = float((loss - eager_loss).abs() / eager_loss.abs().clamp(min=1e-12))
    if not change <= for_loss:
        return f"compiled and eager loss differ by {change:.1e} of its value"
    difference = torch.stack([(g - e).float().norm() for g, e in zip(gradients, eager_gradients, strict=True)]).norm()
    change = float(difference / torch.stack([e.float().norm() for e in eager_gradients]).norm().clamp(min=1e-12))
    if not change <= for_gradient:
        return f"compiled and eager gradient differ by {change:.1e} of its norm"
    return None
