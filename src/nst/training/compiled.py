"""Compiled steps, used only after a comparison with the eager step."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nst.dist import Dist
from nst.distiller import Distiller, Targets

log = logging.getLogger(__name__)

LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}  # relative
GRADIENT_TOLERANCE = {"fp32": 2e-2, "bf16": 2e-1, "fp16": 1e-1}  # norm of the difference over the norm

Attempt = tuple[Tensor, list[Tensor]]  # loss and gradients of a forward and backward pass on one batch


class CompiledForward:
    """The distiller's forward pass, compiled for full batches if that is enabled and agrees with eager code.

    Other batch sizes always run eager, so that the tail batch of an epoch does not recompile.
    """

    def __init__(self, forward: nn.Module, distiller: Distiller, enabled: bool, ranks: Dist, graphs: bool) -> None:
        """Nothing is compiled yet.

        Args:
            forward: the distiller, or a wrapper of it.
            enabled: by `trainer.compile`.
            graphs: use CUDA graphs; they need one backward pass a step, in one process.
        """
        self.forward, self.distiller, self.ranks = forward, distiller, ranks
        self.graphs = graphs and ranks.device.type == "cuda"
        self.chosen: bool | None = None if enabled else False  # kept for the whole run, over all its starts
        self._compiled: nn.Module | None = None
        self._size = 0

    @property
    def undecided(self) -> bool:
        """Whether to call `choose`: not tried yet in this start, and no disagreement in an earlier one."""
        return self.chosen is not False and self._compiled is None

    def __call__(
        self, images: Tensor, labels: Tensor, targets: Targets, context: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Distiller.forward`."""
        if self._compiled is None or len(images) != self._size:
            return self.forward(images, labels, targets, context)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(images, labels, targets, context)

    def choose(
        self, attempt: Callable[[], Attempt], size: int, precision: str, compile_source: Callable[[], None]
    ) -> None:
        """Compile, and use the result if it agrees with eager code on every rank.

        Args:
            attempt: forward and backward on a batch, by this object, that leave weights, statistics and gradients as they were.
            size: images of one forward pass.
            compile_source: compiles the source of the teacher's targets.
        """
        eager = attempt()
        compile_source()
        # Dropout must draw as in eager code, else the two cannot be compared.
        options: dict[str, str | int | bool | Callable[..., object]] = {
            "fallback_random": True,
            "triton.cudagraphs": self.graphs,
        }
        self._compiled = cast(nn.Module, torch.compile(self.forward, dynamic=False, options=options))
        self._size = size
        try:
            reason = disagreement(attempt(), eager, precision)
        except Exception as error:  # no C++ compiler, an operator that does not compile, …: all end in eager code
            reason = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
        self.chosen = self.ranks.max(int(reason is not None)) == [0]
        if not self.chosen:
            log.warning("the step is not compiled: %s", reason or "it fails on another rank")
            self._size = 0


def disagreement(compiled: Attempt, eager: Attempt, precision: str) -> str | None:
    """How loss and gradients of the compiled step differ from those of the eager one; None: by rounding only."""
    (loss, gradients), (eager_loss, eager_gradients) = compiled, eager
    bad = sum(not bool(torch.isfinite(g).all()) for g in gradients)
    if bad and all(bool(torch.isfinite(g).all()) for g in eager_gradients):
        return f"compiled code gives non-finite gradients in {bad} of {len(gradients)} parameters, eager code does not"
    change = float((loss - eager_loss).abs() / eager_loss.abs().clamp(min=1e-12))
    if not change <= LOSS_TOLERANCE[precision]:
        return f"compiled and eager loss differ by {change:.1e} of its value"
    change = _relative_difference(gradients, eager_gradients)
    if not change <= GRADIENT_TOLERANCE[precision]:
        return f"compiled and eager gradient differ by {change:.1e} of its norm"
    return None


def _relative_difference(compiled: Sequence[Tensor], eager: Sequence[Tensor]) -> float:
    difference = torch.stack([(g - e).float().norm() for g, e in zip(compiled, eager, strict=True)]).norm()
    return float(difference / torch.stack([e.float().norm() for e in eager]).norm().clamp(min=1e-12))
