"""Compiled steps: chosen by measurement, trusted only after a comparison with the eager step."""

import logging
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from nst.data.batch import Batch
from nst.distiller import Distiller, Summaries
from nst.training.ranks import Ranks

log = logging.getLogger(__name__)

COST = 60.0  # seconds: what compiling a student and a teacher takes on two cores, about
GAIN = 0.35  # of an eager step: what compiling may save, about; decides only whether trying can pay
WORTH = 0.95  # compiled is kept where a step takes at most this part of an eager one
REPEATS = 3
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}  # relative
GRADIENT_TOLERANCE = {"fp32": 2e-2, "bf16": 2e-1}  # norm of the difference over the norm

Step = Callable[[], tuple[Tensor, list[Tensor]]]  # forward and backward on one batch: loss and gradients


def cut(summaries: Summaries, part: slice) -> Summaries:
    """The summaries of some images of a batch."""
    return {key: {name: value[part] for name, value in summary.items()} for key, summary in summaries.items()}


class CompiledForward:
    """The distiller's forward pass, compiled for full batches where that was chosen; other sizes always run eager.

    So neither early batches nor the tail batch of an epoch recompile.
    """

    def __init__(
        self,
        forward: nn.Module,
        distiller: Distiller,
        *,
        asked: bool | str,
        precision: str,
        ranks: Ranks,
        compile_knowledge: Callable[[int], None] | None = None,
        graphs: bool = False,
    ) -> None:
        """Nothing is compiled yet.

        Args:
            forward: the distiller, or a wrapper of it.
            asked: True: compile if it agrees with eager. "auto": if it also pays. False: do not.
            compile_knowledge: compiles the teacher's side for a batch size, 0: back to eager.
            graphs: use CUDA graphs; they need one backward pass a step, in one process.
        """
        self.forward, self.distiller, self.asked, self.precision, self.ranks = (
            forward,
            distiller,
            asked,
            precision,
            ranks,
        )
        self.compile_knowledge, self.graphs = compile_knowledge, graphs and ranks.device.type == "cuda"
        self.chosen: bool | None = None if asked else False  # kept for the whole run, over all its starts
        self._compiled: nn.Module | None = None
        self._size = 0

    @property
    def undecided(self) -> bool:
        """Whether `choose` is due: nothing chosen, or compiled in an earlier start and not yet in this one."""
        return self.chosen is None or (self.chosen and self._compiled is None)

    @property
    def tried(self) -> bool:
        """Whether compiled code was made in this start, kept or not."""
        return self._compiled is not None

    def __call__(self, images: Tensor, labels: Tensor, summaries: Summaries) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Distiller.forward`."""
        if self._compiled is None or len(images) != self._size:
            return self.forward(images, labels, summaries)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(images, labels, summaries)

    def choose(self, batch: Batch, part: slice, knowledge: Callable[[Batch], Summaries], steps: int) -> None:
        """Decide how the next `steps` steps run, on the first full batch; a continued run does what it did before.

        Weights, statistics and gradients are afterwards as before.

        Args:
            part: the images of one forward pass.
        """

        def eager() -> tuple[Tensor, list[Tensor]]:
            self._switch(0, 0)
            return self._try(batch, part, knowledge)

        def compiled() -> tuple[Tensor, list[Tensor]]:
            self._switch(part.stop - part.start, len(batch.labels))
            return self._try(batch, part, knowledge)

        measure = self.asked == "auto" and self.chosen is None
        self.chosen = (not measure or self._long(eager, steps)) and self._sound(eager, compiled)
        if measure and self.chosen:
            self.chosen = self._faster(eager, compiled)
        self._switch(*((part.stop - part.start, len(batch.labels)) if self.chosen else (0, 0)))

    def _switch(self, size: int, batch_size: int) -> None:
        """Compiled code for parts of this size from batches of that one; 0: none."""
        if size and self._compiled is None:
            # Dropout draws what it draws in eager code, else the two could not be compared.
            options: dict[str, str | int | bool | Callable[..., Any]] = {
                "fallback_random": True,
                "triton.cudagraphs": self.graphs,
            }
            self._compiled = cast(nn.Module, torch.compile(self.forward, dynamic=False, options=options))
        if self.compile_knowledge is not None and size != self._size:
            self.compile_knowledge(batch_size)
        self._size = size

    def _try(self, batch: Batch, part: slice, knowledge: Callable[[Batch], Summaries]) -> tuple[Tensor, list[Tensor]]:
        buffers, parameters = list(self.distiller.buffers()), list(self.distiller.parameters())
        before = [buffer.clone() for buffer in buffers]
        torch.manual_seed(0)  # dropout
        try:
            summaries = cut(knowledge(batch), part)
            with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                _, values = self(batch.images[part], batch.labels[part], summaries)
            loss = self.distiller.total(values)
            loss.backward()
            return loss.detach(), [p.grad.clone() for p in parameters if p.grad is not None]
        finally:
            for p in parameters:
                p.grad = None
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)

    def _long(self, eager: Step, steps: int) -> bool:
        """Whether the run is long enough for compiling to pay for itself."""
        eager()  # warms up
        return steps * self._slowest(median(_seconds(eager) for _ in range(REPEATS))) * GAIN >= COST

    def _sound(self, eager: Step, compiled: Step) -> bool:
        """Whether compiled code can be made, and says what eager code says, on every rank."""
        try:
            found = compiled()
            trouble = disagreement(found, eager(), self.precision)
        except Exception as error:  # no C++ compiler, an operator that does not compile, …: all of them end in eager
            trouble = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
        if self._slowest(float(trouble is not None)):
            log.warning("the step is not compiled: %s", trouble or "another rank has trouble")
            return False
        return True

    def _faster(self, eager: Step, compiled: Step) -> bool:
        """Measured in turns: a busy machine changes its speed."""
        rounds = [(_seconds(eager), _seconds(compiled)) for _ in range(REPEATS)]
        slow, fast = (self._slowest(median(times)) for times in zip(*rounds, strict=True))
        log.info("a step takes %.1f ms eager, %.1f ms compiled", 1e3 * slow, 1e3 * fast)
        return fast <= WORTH * slow

    def _slowest(self, value: float) -> float:
        """The largest value on any rank: all ranks decide alike."""
        return self.ranks.max(int(1e6 * value))[0] / 1e6


def disagreement(
    found: tuple[Tensor, Sequence[Tensor]], right: tuple[Tensor, Sequence[Tensor]], precision: str
) -> str | None:
    """How loss and gradients of the compiled step depart from those of the eager one; None: no more than rounding."""
    (loss, gradients), (eager_loss, eager_gradients) = found, right
    bad = sum(not bool(torch.isfinite(g).all()) for g in gradients)
    if bad and all(bool(torch.isfinite(g).all()) for g in eager_gradients):
        return f"compiled code gives non-finite gradients in {bad} of {len(gradients)} parameters, eager code does not"
    change = float((loss - eager_loss).abs() / eager_loss.abs().clamp(min=1e-12))
    if change > LOSS_TOLERANCE[precision]:
        return f"compiled and eager loss differ by {change:.1e} of its value"
    pairs = list(zip(gradients, eager_gradients, strict=True))
    difference = torch.stack([(g - e).float().norm() for g, e in pairs]).norm()
    change = float(difference / torch.stack([e.float().norm() for _, e in pairs]).norm().clamp(min=1e-12))
    if change > GRADIENT_TOLERANCE[precision]:
        return f"compiled and eager gradient differ by {change:.1e} of its norm"
    return None


def _seconds(step: Step) -> float:
    begin = time.perf_counter()
    loss, _ = step()
    float(loss)  # waits for the device
    return time.perf_counter() - begin
